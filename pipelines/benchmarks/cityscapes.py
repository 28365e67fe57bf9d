"""Cityscapes, the fine annotations of its validation cities.

    leftImg8bit/val/CITY/NAME_leftImg8bit.png
    gtFine/val/CITY/NAME_gtFine_labelTrainIds.png         value = class, 255 = ignored; used if they exist
    gtFine/val/CITY/NAME_gtFine_labelIds.png              as distributed: value = id, of which 19 are classes

DIR or DIR/cityscapes contains both folders. There is no background.
"""

from pipelines import storage
from pipelines.benchmarks.class_lists import read_classes
from pipelines.benchmarks.files import IGNORED, FileDataset, find_folder, open_files, pair_by_name

IMAGES, LABELS = "leftImg8bit/val", "gtFine/val"
MADE_ENDING, RAW_ENDING = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
PAGE = "https://www.cityscapes-dataset.com/"
NUM_IMAGES = 500
NUM_IDS = 34


def open_cityscapes(root: str) -> FileDataset:
    """Opens Cityscapes with 19 classes. The other 15 ids are ignored."""
    folder = find_folder(root, ("cityscapes", ""), IMAGES, benchmark="cityscapes", page=PAGE)
    classes = read_classes("cityscapes")
    is_made = any(name.endswith(MADE_ENDING) for name in storage.list_sizes(storage.join(folder, LABELS)))
    if is_made:
        label_of_value = {index: index for index in range(len(classes))} | {255: IGNORED}
    else:
        label_of_value = dict.fromkeys([*range(NUM_IDS), 255], IGNORED)
        label_of_value |= {entry.number: index for index, entry in enumerate(classes)}
    ending = MADE_ENDING if is_made else RAW_ENDING
    return open_files(
        folder,
        "cityscapes",
        classes,
        label_of_value,
        pair_by_name(folder, IMAGES, LABELS, image_ending="_leftImg8bit.png", label_ending=ending),
        official_counts=(NUM_IMAGES,),
        page=PAGE,
    )
