import dataclasses
from pathlib import Path

import pytest

from pipelines.cli.requests import pretrain_config
from pipelines.experiments.caption_mix import check_caption_mix, parse_caption_mix
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.experiments.fixed import fixes_the_result
from pipelines.runs.folder import RunFolder
from pipelines.training.job import start_or_continue
from pipelines.training.pretrain import open_datasets
from tests.support.dataset_folder import make_dataset, make_recaptioned


def with_mix(*mix: str) -> ExperimentConfig:
    base = debug()
    data = dataclasses.replace(base.data, sources=("data",), caption_mix=mix or None)
    return dataclasses.replace(base, data=data, tracking=dataclasses.replace(base.tracking, uri=None))


def test_flags_give_names_and_weights() -> None:
    flags = ["--data", "a=x:0.5", "--data.caption-mix", "original:0.5", "llava-1.6:2", "--data", "b=y:1"]
    data = pretrain_config(["debug", *flags]).data
    assert data.caption_mix is not None
    assert data.sources == ("x", "y") and data.caption_mix == ("original:0.5", "llava-1.6:2")
    assert parse_caption_mix(data.caption_mix) == {"original": 0.5, "llava-1.6": 2.0}
    validate(with_mix(*data.caption_mix))


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (("original",), "data.caption_mix='original': give NAME:WEIGHT with a weight above 0"),
        (("original:",), "data.caption_mix='original:': give NAME:WEIGHT"),
        ((":1",), "data.caption_mix=':1': give NAME:WEIGHT"),
        (("original:1", "llava:0"), "data.caption_mix='llava:0': give NAME:WEIGHT with a weight above 0"),
        (("original:-1",), "'original:-1'"),
        (("original:nan",), "'original:nan'"),
        (("original:inf",), "'original:inf'"),
        (("original:half",), "'original:half'"),
        (("original:1", "original:2"), "original is given twice"),
    ],
)
def test_an_invalid_mix_is_one_line(mix: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=r"data\.caption_mix") as caught:
        validate(with_mix(*mix))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"data\.caption_mix is empty"):
        parse_caption_mix(())


def test_names_are_those_of_the_data_sets(tmp_path: Path) -> None:
    plain, other = make_dataset(tmp_path / "plain", 12), make_recaptioned(tmp_path / "other", 12)
    base = with_mix("original:1", "llava:1")

    def opened(config: ExperimentConfig, *uris: str) -> int:
        training = dataclasses.replace(config.training, global_batch_size=8)
        return len(
            open_datasets(
                dataclasses.replace(config, training=training, data=dataclasses.replace(config.data, sources=uris))
            )
        )

    assert opened(base, other.uri) == 1 and opened(base, plain.uri, other.uri) == 2
    assert opened(with_mix(), plain.uri) == 1
    with pytest.raises(ValueError, match="no data set has captions of 'llava'; there are original; `groupvit curate"):
        opened(base, plain.uri)
    with pytest.raises(ValueError, match="captions of 'lava'; there are llava, original"):
        check_caption_mix(("lava:1",), other.caption_origins)


def test_a_run_keeps_its_mix(tmp_path: Path) -> None:
    run, mixed = RunFolder(str(tmp_path / "mixed")), with_mix("original:0.5", "llava:0.5")
    start_or_continue(run, mixed, [])
    start_or_continue(run, mixed, [])
    for other in (with_mix(), with_mix("original:0.4", "llava:0.6")):
        with pytest.raises(
            ValueError, match=r"data.caption_mix=.*, but run 'debug' in runs was started with \['original"
        ):
            start_or_continue(run, other, [])
    assert fixes_the_result(mixed) != fixes_the_result(with_mix())

    older = RunFolder(str(tmp_path / "older"))
    start_or_continue(older, with_mix(), [])
    description = older.read_description()
    assert description is not None and description["fixed"].pop("data.caption_mix") is None
    older.write_description(description)  # as a version before the field wrote it
    start_or_continue(older, with_mix(), [])
    with pytest.raises(ValueError, match="was started with None"):
        start_or_continue(older, mixed, [])
