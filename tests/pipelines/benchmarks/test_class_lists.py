"""Classes of the benchmarks against a second source each."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets import Cityscapes
from torchvision.models import _meta

from pipelines.benchmarks.class_lists import read_classes, read_imagenet_classes

LISTS = Path(__file__).parents[2] / "data/class_lists"


def second_list(name: str, key: str) -> Any:
    return json.loads((LISTS / f"{name}.json").read_text())[key]


def test_voc_is_torchvisions() -> None:
    classes = read_classes("voc")
    assert [entry.name for entry in classes] == ["background", *_meta._VOC_CATEGORIES[1:]]
    assert [entry.number for entry in classes] == list(range(21))
    for entry in classes:  # VOC's colour map spreads the bits of a label over the channels, highest first
        bits = [[entry.number >> (3 * place + channel) & 1 for place in range(8)] for channel in range(3)]
        assert entry.colour == tuple(sum(bit << (7 - place) for place, bit in enumerate(row)) for row in bits)


def test_context_has_the_official_ids_in_their_order() -> None:
    classes = read_classes("context")
    numbers = [entry.number for entry in classes]
    assert numbers == sorted(second_list("context", "ids"))
    names = [entry.name for entry in classes[1:]]
    assert names == sorted(names)  # ids follow the alphabet, so any two names exchanged would show
    shared = set(_meta._VOC_CATEGORIES[1:]) - {"diningtable"} | {"table"}
    assert shared <= set(names) and len(set(names)) == 59


def test_coco_is_the_list_of_the_data_set_and_torchvisions() -> None:
    official = {int(number): name for number, name in second_list("coco_stuff", "names").items()}
    classes = read_classes("coco")
    assert {entry.number: entry.name for entry in classes}.items() <= official.items()
    assert len(classes) == 171 and [entry.number for entry in classes] == sorted(entry.number for entry in classes)
    things = {number: name for number, name in enumerate(_meta._COCO_CATEGORIES) if number and name != "N/A"}
    assert {entry.number: entry.name for entry in classes if entry.number <= 90} == things
    assert {entry.number for entry in classes if entry.number > 90} == set(range(92, 183))


def test_cityscapes_is_torchvisions() -> None:
    expected = sorted((item for item in Cityscapes.classes if 0 <= item.train_id < 19), key=lambda item: item.train_id)
    classes = read_classes("cityscapes")
    assert [(entry.name, entry.number, entry.colour) for entry in classes] == [
        (item.name, item.id, item.color) for item in expected
    ]


def test_ade20k_is_gluoncvs() -> None:
    official = {int(number): names.split(", ")[0] for number, names in second_list("ade20k", "names").items()}
    assert {entry.number: entry.name for entry in read_classes("ade20k")} == official


def test_imagenet_is_timms_folders_and_open_clips_names() -> None:
    classes = read_imagenet_classes()
    assert [folder for folder, _ in classes] == ImageNetInfo().label_names() == sorted(folder for folder, _ in classes)
    assert [name for _, name in classes] == list(open_clip.IMAGENET_CLASSNAMES)
    same = sum(name == other for (_, name), other in zip(classes, _meta._IMAGENET_CATEGORIES, strict=True))
    assert same > 600  # CLIP's authors rewrote the others; lists out of step would agree in next to none


@pytest.mark.parametrize("benchmark", ["voc", "context", "coco", "cityscapes", "ade20k"])
def test_no_two_classes_share_a_name_or_a_word(benchmark: Any) -> None:
    classes = read_classes(benchmark)
    words = [word for entry in classes for word in entry.words]
    assert len(set(words)) == len(words) and len({entry.name for entry in classes}) == len(classes)
    assert all(word == word.strip() and "-" not in word and ";" not in word for word in words)


def test_words_of_the_papers_protocol() -> None:
    changed = {
        benchmark: {entry.name: entry.words for entry in read_classes(benchmark) if entry.words != (entry.name,)}
        for benchmark in ("voc", "context", "cityscapes", "ade20k")
    }
    plant_and_monitor = {"pottedplant": ("plant",), "tvmonitor": ("monitor",)}
    assert changed["voc"] == {"diningtable": ("table",)} | plant_and_monitor
    assert changed["context"] == {"aeroplane": ("airplane",)} | plant_and_monitor
    assert not changed["cityscapes"] and not changed["ade20k"]
    assert all(entry.words == (entry.name,) for entry in read_classes("coco") if entry.number <= 90)
