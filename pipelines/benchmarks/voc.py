"""PASCAL VOC 2012, as unpacked from its archive: `VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets}`.

Value k of a label file is class k; 0 is the background, 255 the unlabelled borders. voc21 has the background as a
class; voc20 ignores its pixels.
"""

from pipelines import storage
from pipelines.benchmarks.class_lists import read_classes
from pipelines.benchmarks.files import IGNORED, FileDataset, find_folder, open_files, read_names

FOLDERS = ("VOCdevkit/VOC2012", "VOC2012", "")
LIST = "ImageSets/Segmentation/val.txt"
PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
NUM_IMAGES = 1449


def open_voc21(root: str) -> FileDataset:
    """Opens VOC with 20 classes and the background."""
    return _open(root, "voc21", background=True)


def open_voc20(root: str) -> FileDataset:
    """Opens VOC with 20 classes. Pixels of the background are ignored."""
    return _open(root, "voc20", background=False)


def _open(root: str, benchmark: str, *, background: bool) -> FileDataset:
    folder = find_folder(root, FOLDERS, LIST, benchmark=benchmark, page=PAGE)
    classes = read_classes("voc")[0 if background else 1 :]
    names = read_names(storage.join(folder, LIST))
    return open_files(
        folder,
        benchmark,
        classes,
        {0: IGNORED, IGNORED: IGNORED} | {entry.number: index for index, entry in enumerate(classes)},
        [(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names],
        official_counts=(NUM_IMAGES,),
        page=PAGE,
    )
