"""ADE20K, its scene parsing challenge of 2016: `ADEChallengeData2016/{images,annotations}/validation`.

Value k of a label file is class k − 1. Value 0 is everything outside the 150 classes, and is ignored. There is no
background.
"""

from pipelines.benchmarks.class_lists import read_classes
from pipelines.benchmarks.files import IGNORED, FileDataset, find_folder, open_files, pair_by_name

IMAGES, LABELS = "images/validation", "annotations/validation"
PAGE = "http://sceneparsing.csail.mit.edu/"
NUM_IMAGES = 2000


def open_ade20k(root: str) -> FileDataset:
    """Opens ADE20K with 150 classes. Pixels of no class are ignored."""
    folder = find_folder(root, ("ADEChallengeData2016", ""), IMAGES, benchmark="ade20k", page=PAGE)
    classes = read_classes("ade20k")
    return open_files(
        folder,
        "ade20k",
        classes,
        {0: IGNORED} | {entry.number: index for index, entry in enumerate(classes)},
        pair_by_name(folder, IMAGES, LABELS, image_ending=".jpg", label_ending=".png"),
        official_counts=(NUM_IMAGES,),
        page=PAGE,
    )
