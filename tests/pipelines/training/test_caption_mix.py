"""Training on a mix of captions: resumed, and by the slices of other windows, it has the same bits."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from groupvit.tokenizer import Tokenizer
from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.config import DataConfig, ExperimentConfig
from pipelines.ingest.plan import Slice, plan_ingest
from pipelines.ingest.slices import load_slices
from pipelines.runs.folder import RunFolder
from pipelines.training.loop import WorkerContext, train
from tests.support.dataset_folder import make_recaptioned
from tests.support.lone_worker import lone_config
from tests.support.small_model import WORDS

NUM_STEPS, NUM_SAMPLES, WINDOW = 12, 12, 8  # 4 epochs, in windows that begin and end within them
MIX = ("original:0.5", "llava:0.5")


def config_of(runs: Path, data: DatasetInfo, *mix: str) -> ExperimentConfig:
    config = lone_config(runs, num_steps=NUM_STEPS, keep_checkpoints=None)
    return dataclasses.replace(
        config,
        model=WORDS,
        data=DataConfig(sources=(data.uri,), caption_mix=mix or None),
        ingest=dataclasses.replace(config.ingest, window_size=WINDOW, augmentation="crop_flip", resize="torch"),
        loss=dataclasses.replace(config.loss, num_prompts=2),
    )


def slices_from(config: ExperimentConfig, first: int) -> Iterator[Slice]:
    plan = plan_ingest(config)
    return (load_slices(plan, index, index + 1)[0] for index in itertools.count(first))


def train_to_the_end(config: ExperimentConfig) -> RunFolder:
    """Trains from the newest checkpoint on."""
    run = RunFolder(f"{config.training.runs_folder}/small")
    first = run.latest_step()
    context = WorkerContext(
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        group=None,
        precision="float32",
        first_step=first,
        slices=slices_from(config, first),
        say=lambda line: None,
        tracker=None,
        watch=lambda done, values: None,
        checkpoint_state={},
    )
    train(config, run, context)
    return run


def bits(run: RunFolder) -> tuple[dict[str, torch.Tensor], object]:
    folder = Path(run.checkpoint_uri(NUM_STEPS))
    return load_file(folder / "model.safetensors"), torch.load(folder / "optimizer.pt", weights_only=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return make_recaptioned(tmp_path_factory.mktemp("data") / "data", NUM_SAMPLES, num_captions=2)


@pytest.fixture(scope="module")
def whole(data: DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing interrupted."""
    return train_to_the_end(config_of(tmp_path_factory.mktemp("whole"), data, *MIX))


@pytest.mark.parametrize("killed_at", [2, 3, 7])  # within a window and within an epoch, and at a border of either
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, data: DatasetInfo, whole: RunFolder, killed_at: int) -> None:
    config = config_of(tmp_path, data, *MIX)
    recorded = dataclasses.replace(config.training, record_samples=str(tmp_path / "samples"))
    run = RunFolder(str(tmp_path / "small"))
    shutil.copytree(whole.checkpoint_uri(killed_at), run.checkpoint_uri(killed_at))
    torch.testing.assert_close(
        bits(train_to_the_end(dataclasses.replace(config, training=recorded))), bits(whole), rtol=0, atol=0
    )
    [record] = (tmp_path / "samples").iterdir()
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    expected = [piece["sample_id"].tolist() for piece in itertools.islice(slices_from(config, killed_at), len(lines))]
    assert [line["ids"] for line in lines] == expected and lines[-1]["step"] == NUM_STEPS - 1


def test_another_mix_gives_other_weights(tmp_path: Path, data: DatasetInfo, whole: RunFolder) -> None:
    other = bits(train_to_the_end(config_of(tmp_path, data, "original:0.1", "llava:0.9")))[0]
    assert any(not torch.equal(other[name], tensor) for name, tensor in bits(whole)[0].items())


def test_the_order_of_samples_is_that_without_a_mix(tmp_path: Path, data: DatasetInfo) -> None:
    runs = [config_of(tmp_path, data, *mix) for mix in ((), ("original:1", "llava:3"))]
    seen, tokenizer = [], Tokenizer()
    for config in runs:
        pieces = list(itertools.islice(slices_from(config, 0), NUM_STEPS))
        seen.append([name for piece in pieces for name in piece["sample_id"]])
    assert seen[0] == seen[1] and set(Counter(seen[0]).values()) == {NUM_STEPS * 4 // NUM_SAMPLES}
    texts = [tokenizer.decode(ids[0].tolist()) for piece in pieces for ids in piece["token_ids"]]
    assert 17 < sum("wooden" in text for text in texts) < 36  # 3 of 4, for 9 of 12 samples: 27 of 48
