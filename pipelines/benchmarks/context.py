"""PASCAL Context: images of VOC 2010, labels made from `trainval_merged.json` of PASCAL in Detail.

    VOCdevkit/VOC2010/JPEGImages/*.jpg
    VOCdevkit/VOC2010/SegmentationClassContext/*.png              made by `groupvit prepare-context --root DIR`
    VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt       made by it, too

Value k of a label file is class k of the 59 frequent ones; 0 is everything else. It is the background of context60, and
context59 ignores it. Lists of 5,105 and of 5,104 images are both in use.
"""

from pipelines import storage
from pipelines.benchmarks.class_lists import read_classes
from pipelines.benchmarks.files import IGNORED, FileDataset, find_folder, open_files, read_names

FOLDERS = ("VOCdevkit/VOC2010", "VOC2010", "")
IMAGES, LABELS = "JPEGImages", "SegmentationClassContext"
LIST = "ImageSets/SegmentationContext/val.txt"
PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and https://cs.stanford.edu/~roozbeh/pascal-context/"
NUM_IMAGES = (5104, 5105)


def open_context60(root: str) -> FileDataset:
    """Opens Context with 59 classes and the background."""
    return _open(root, "context60", background=True)


def open_context59(root: str) -> FileDataset:
    """Opens Context with 59 classes. Pixels of no class are ignored."""
    return _open(root, "context59", background=False)


def find_context(root: str, benchmark: str) -> str:
    """Returns the VOC2010 folder in `root`. Raises ValueError if there is none."""
    return find_folder(root, FOLDERS, IMAGES, benchmark=benchmark, page=PAGE)


def _open(root: str, benchmark: str, *, background: bool) -> FileDataset:
    folder = find_context(root, benchmark)
    list_uri = storage.join(folder, LIST)
    if not storage.exists(list_uri):
        raise ValueError(
            f"root={root} has no labels of {benchmark}: {list_uri} does not exist; put trainval_merged.json "
            f"in {folder} and run `groupvit prepare-context --root {root}`"
        )
    classes = read_classes("context")
    first = 0 if background else 1
    return open_files(
        folder,
        benchmark,
        classes[first:],
        {0: IGNORED, IGNORED: IGNORED} | {value: value - first for value in range(first, len(classes))},
        [(f"{IMAGES}/{name}.jpg", f"{LABELS}/{name}.png") for name in read_names(list_uri)],
        official_counts=NUM_IMAGES,
        page=PAGE,
    )
