"""What is told of how much was evaluated, and when published numbers are set beside it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from groupvit.config import SegmentationConfig
from pipelines.evaluation.report import EvaluationReport, PartResult, comparison, image_counts, table

PART = PartResult(
    num_scenes=1,
    confusion=np.eye(2, dtype=np.int64),
    baselines={},
    oracle=None,
    boundary=np.ones((2, 2), dtype=np.int64),
    usage=[],
)


def report_of(num_images: int, official_counts: tuple[int, ...], **fields: Any) -> EvaluationReport:
    report = EvaluationReport(
        checkpoint="c",
        benchmark="voc21",
        root="data",
        data_digest="d",
        step=1,
        license=None,
        classes=("background", "cat"),
        words=(("cat",),),
        has_background=True,
        protocol="unified",
        rules_changed=False,
        segmentation=SegmentationConfig(background_threshold=0.5),
        precision="float32",
        thresholds={"groups": 0.5},
        parts={"voc21": PART},
        num_scenes=num_images,
        seconds=1.0,
        official_counts=official_counts,
    )
    return dataclasses.replace(report, **fields)


def test_published_numbers_stand_beside_complete_data_only() -> None:
    whole, part = report_of(1449, (1449,)), report_of(40, (1449,))
    assert dict(whole.summary()["published"]) == {"GroupViT": "50.4-52.3", "TCL + PAMR": "55.0"}
    assert "published: GroupViT 50.4-52.3, TCL + PAMR 55.0" in table(whole)
    assert part.summary()["published"] == {}
    lines = table(part).splitlines()
    assert lines[0] == "voc21: 40 of 1,449 images of data in 1.0 s" and "50.4" not in "".join(lines)
    assert "published numbers are left out: they are of 1,449 images" in lines
    rows = comparison({"voc21": whole.summary(), "part": part.summary()}, {}).splitlines()[2:]
    assert rows[0].split()[1:3] == ["1,449", "unified"] and "50.4-52.3" in rows[0]
    assert " 40 of 1,449 " in rows[1] and "50.4" not in rows[1]


@pytest.mark.parametrize(
    "fields", [{"rules_changed": True}, {"changed_words": {"cat": ("kitten",)}}, {"protocol": "model"}]
)
def test_numbers_of_other_rules_do_not_compare(fields: dict[str, Any]) -> None:
    assert report_of(1449, (1449,), **fields).published == ()
    assert "published" not in table(report_of(40, (1449,), **fields))


@pytest.mark.parametrize(
    ("num_images", "official_counts", "official"),
    [
        (40, (1449,), 1449),
        (5104, (5104, 5105), 5104),
        (5105, (5104, 5105), 5105),
        (7, (5104, 5105), 5105),
        (7, (), None),
    ],
)
def test_counts_are_in_the_summary_and_for_tracking(
    num_images: int, official_counts: tuple[int, ...], official: int | None
) -> None:
    summary = report_of(num_images, official_counts).summary()
    assert (summary["num_images"], summary["official_num_images"]) == (num_images, official)
    tracked = {"voc21/num_images": num_images, "voc21/official_num_images": official}
    assert image_counts(summary) == {name: count for name, count in tracked.items() if count is not None}
