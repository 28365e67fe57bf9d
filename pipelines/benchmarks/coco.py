"""COCO 2017 validation with the label maps of COCO-Stuff (`stuffthingmaps`).

    images/val2017/*.jpg                                  in DIR, DIR/coco or DIR/coco_stuff164k
    annotations/val2017/NAME.png                          as distributed: value = category id − 1, 255 = unlabelled
    annotations/val2017/NAME_instanceTrainIds.png         made from them for coco-object, used if they exist
    annotations/val2017/NAME_labelTrainIds.png            made from them for coco-stuff, used if they exist

Category ids are 1 to 182 with 11 gaps; 1 to 90 are things. coco-object has the 80 things, and everything else is
background, including unlabelled pixels. coco-stuff has all 171 categories and ignores unlabelled pixels.
"""

from pipelines import storage
from pipelines.benchmarks.class_lists import LabelClass, read_classes
from pipelines.benchmarks.dataset import BACKGROUND
from pipelines.benchmarks.files import IGNORED, FileDataset, find_folder, open_files, pair_by_name

IMAGES, LABELS = "images/val2017", "annotations/val2017"
PAGE = "https://github.com/nightrome/cocostuff (val2017.zip, stuffthingmaps_trainval2017.zip)"
NUM_IMAGES = 5000
LAST_THING = 90


def open_coco_object(root: str) -> FileDataset:
    """Opens COCO-Object with 80 classes and the background."""
    everything = read_classes("coco")
    things = [entry for entry in everything if entry.number <= LAST_THING]
    background = LabelClass(number=0, name=BACKGROUND, words=(), colour=None)
    label_of_number = {entry.number: 0 for entry in everything} | {
        entry.number: index for index, entry in enumerate(things, start=1)
    }
    raw = {number - 1: label for number, label in label_of_number.items()} | {255: 0}
    made = {index: index for index in range(len(things) + 1)}
    return _open(root, "coco-object", (background, *things), "_instanceTrainIds.png", made, raw)


def open_coco_stuff(root: str) -> FileDataset:
    """Opens COCO-Stuff with 171 classes, things and stuff. Unlabelled pixels are ignored."""
    classes = read_classes("coco")
    raw = {entry.number - 1: index for index, entry in enumerate(classes)} | {255: IGNORED}
    made = {index: index for index in range(len(classes))} | {255: IGNORED}
    return _open(root, "coco-stuff", classes, "_labelTrainIds.png", made, raw)


def _open(
    root: str,
    benchmark: str,
    classes: tuple[LabelClass, ...],
    made_ending: str,
    label_of_made: dict[int, int],
    label_of_raw: dict[int, int],
) -> FileDataset:
    own = "coco" if benchmark == "coco-object" else "coco_stuff164k"
    folder = find_folder(root, (own, "coco", "coco_stuff164k", ""), IMAGES, benchmark=benchmark, page=PAGE)
    is_made = any(name.endswith(made_ending) for name in storage.list_sizes(storage.join(folder, LABELS)))
    ending, other_ending = (made_ending, None) if is_made else (".png", "TrainIds.png")
    return open_files(
        folder,
        benchmark,
        classes,
        label_of_made if is_made else label_of_raw,
        pair_by_name(folder, IMAGES, LABELS, image_ending=".jpg", label_ending=ending, other_ending=other_ending),
        official_counts=(NUM_IMAGES,),
        page=PAGE,
    )
