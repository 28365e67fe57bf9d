import dataclasses
from typing import Any

import pytest

from pipelines.cli.requests import parse_data
from pipelines.experiments.catalogue import EXPERIMENTS, debug, gcc_redcaps_30e, gcc_yfcc_30e
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.experiments.fixed import fixes_the_result


def changed(**changes: dict[str, Any]) -> ExperimentConfig:
    config = debug()
    parts = {part: dataclasses.replace(getattr(config, part), **fields) for part, fields in changes.items()}
    return dataclasses.replace(config, **parts)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_valid_once_they_have_data(name: str) -> None:
    config = EXPERIMENTS[name]()
    assert config.name == name
    validate(dataclasses.replace(config, data=dataclasses.replace(config.data, sources=("data",))))


def test_paper_numbers() -> None:
    yfcc, redcaps = gcc_yfcc_30e(), gcc_redcaps_30e()
    assert yfcc.training.num_steps == 30 * 6_997 == 209_910
    assert redcaps.training.num_steps == 30 * 6_326 == 189_780
    assert (yfcc.optimizer.warmup_steps, redcaps.optimizer.warmup_steps) == (2 * 6_997, 2 * 6_326)
    assert (yfcc.loss.num_prompts, redcaps.loss.num_prompts) == (3, 0)
    assert yfcc.training.global_batch_size == yfcc.optimizer.reference_batch_size == 4096
    assert yfcc.micro_batches_per_step == 1  # 256 on each of 16 workers


@pytest.mark.parametrize(
    ("texts", "sources", "names", "weights"),
    [
        (["a"], ("a",), ("a",), None),
        (["s3://bucket/cc3m/"], ("s3://bucket/cc3m/",), ("cc3m",), None),
        (["s3://b/x:0.7", "few=/data/y=1:.3"], ("s3://b/x", "/data/y=1"), ("x", "few"), (0.7, 0.3)),
        (["big=s3://b/x", "y:3/"], ("s3://b/x", "y:3/"), ("big", "y:3"), None),
        (["few=year=2020:2", "s3://b/year=2020:1"], ("year=2020", "s3://b/year=2020"), ("few", "year=2020"), (2, 1)),
    ],
)
def test_sources_in_short(texts: list[str], sources: Any, names: Any, weights: Any) -> None:
    data = parse_data(texts)
    assert (data.sources, data.names, data.weights) == (sources, names, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"global_batch_size": 40}},
            "global_batch_size=40 .* ingest.slice_size=16: give 32 or 48",
        ),
        ({"training": {"num_workers": 3}}, "training.num_workers=3 is more than the 2 slices of a batch .* at most 2"),
        ({"training": {"num_workers": 0}}, "training.num_workers=0 is too small: give at least 1"),
        ({"training": {"num_workers": "0:2"}}, "training.num_workers=0:2 is too small: give at least 1"),
        ({"training": {"num_workers": "4:2"}}, "training.num_workers=4:2 is not a range: give 2:4"),
        ({"training": {"num_workers": "2-4"}}, "training.num_workers=2-4 is neither a number nor a range: give e.g. 4"),
        ({"training": {"hang_timeout": 0}}, "training.hang_timeout=0 is too small: give at least 1"),
        ({"training": {"num_steps": 0}}, "training.num_steps=0"),
        ({"training": {"max_grad_norm_ratio": 1.0}}, "training.max_grad_norm_ratio=1.0 .* give more than 1"),
        ({"training": {"max_skipped_steps": -1}}, "training.max_skipped_steps=-1"),
        ({"training": {"ema_decay": 1.0}}, "training.ema_decay=1.0"),
        ({"training": {"run_name": "a/b"}}, "training.run_name='a/b'"),
        ({"training": {"run_name": "n" * 300}}, "training.run_name=nn.* is 300 bytes"),
        ({"training": {"run_name": "mlflow.db"}}, "training.run_name='mlflow.db' is the name of something else"),
        ({"ingest": {"window_size": 40}}, "ingest.window_size=40 .* give 48"),
        ({"ingest": {"max_corrupt_fraction": 2.0}}, "ingest.max_corrupt_fraction=2.0"),
        ({"ingest": {"crop_scale": (0.5, 0.2)}}, "ingest.crop_scale"),
        ({"data": {"sources": ()}}, "data.sources is empty"),
        ({"data": {"weights": (1.0, 2.0)}}, "data.weights=.* has 2 entries for 1 data.sources"),
        ({"data": {"weights": (0.0,)}}, "data.weights=.* above 0"),
        ({"optimizer": {"warmup_steps": 20}}, "optimizer.warmup_steps=20 .* training.num_steps=20"),
    ],
)
def test_broken_rules_name_field_value_and_fix(changes: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        validate(changed(**changes))
    assert "\n" not in str(caught.value)


def test_what_a_continued_run_may_change() -> None:
    base = fixes_the_result(debug())
    same = changed(
        training={"num_workers": 2, "max_failures": 9, "checkpoint_every_n_steps": 3, "run_name": "x"},
        ingest={"max_processes": 2, "prefetch_slices": 5},
    )
    assert fixes_the_result(same) == base
    for changes in (
        {"training": {"num_steps": 21}},
        {"training": {"seed": 1}},
        {"training": {"reduce_precision": "float32"}},
        {"training": {"max_grad_norm_ratio": 5.0}},
        {"data": {"seed": 1}},
        {"ingest": {"slice_size": 8}},
        {"ingest": {"resize": "pillow"}},
        {"ingest": {"augment_on": "device"}},
        {"optimizer": {"weight_decay": 0.1}},
        {"loss": {"num_prompts": 1}},
    ):
        assert fixes_the_result(changed(**changes)) != base, changes
