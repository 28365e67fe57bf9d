"""The messages that docs/operations.md quotes are those that come, and what it calls free to change is."""

import dataclasses
import operator
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.cli.requests import pretrain_config
from pipelines.cluster.session import check_room
from pipelines.experiments.config import validate
from pipelines.runs.folder import RunFolder
from pipelines.training.gpu import check_gpu
from pipelines.training.job import start_or_continue, with_absolute_paths
from pipelines.training.pretrain import open_datasets
from pipelines.training.progress import Totals
from tests.support.pages import ROOT
from tests.support.small_run import write_noise

PAGE = (ROOT / "docs/operations.md").read_text()
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that works")


def start(folder: Path, *flags: str) -> None:
    """Starts or continues the run NAME, up to where Ray would begin."""
    data = folder / "data"
    if not data.exists():
        write_noise(str(data))
    words = ["debug", "--data", str(data), "--training.runs-folder", str(folder), "--training.run-name", "NAME", *flags]
    config = with_absolute_paths(pretrain_config(words))
    validate(config)
    start_or_continue(RunFolder(f"{folder}/NAME"), config, open_datasets(config))


def change_the_model(folder: Path) -> None:
    start(folder, "--ingest.slice-size", "8")


def change_the_data(folder: Path) -> None:
    data = folder / "data"
    text = (data / "dataset.json").read_text()
    (data / "dataset.json").write_text(re.sub(r'("digest": ")\w', r"\1x", text))
    start(folder)


def take_too_many_workers(folder: Path) -> None:
    check_room("training.num_workers", 16, {"GPU": 1.0}, {"GPU": 8.0}, "the Ray cluster, beside one CPU for the data,")


def meet_corrupt_images(folder: Path) -> None:
    totals = Totals(1, None, torch.device("cpu"))
    totals.load({"samples_seen": [2000], "substituted_images": 50})
    totals.check(0.01)


@pytest.mark.parametrize(
    ("quote", "provoke"),
    [
        ("training.num_workers=16 with 1 GPU each needs 16 GPUs, and the Ray cluster, … has 8", take_too_many_workers),
        (
            "training.global_batch_size=… is not a multiple of ingest.slice_size",
            lambda folder: start(folder, "--training.global-batch-size", "33"),
        ),
        ("… but run 'NAME' in … was started with …", change_the_model),
        ("data.digests=… but run 'NAME' … was started with …", change_the_data),
        ("… images were corrupt, more than ingest.max_corrupt_fraction", meet_corrupt_images),
        pytest.param(
            "training.device: Ray counts a GPU on this machine, but torch cannot use it. The NVIDIA driver is …",
            lambda folder: check_gpu(),
            marks=no_gpu,
        ),
    ],
)
def test_quoted_messages_come(quote: str, provoke: Callable[[Path], None], tmp_path: Path) -> None:
    assert f"`{quote}`" in PAGE
    start(tmp_path)
    with pytest.raises(ValueError, match=re.escape(quote).replace("…", ".*")):
        provoke(tmp_path)


@no_gpu
def test_the_page_on_clusters_quotes_the_line_that_names_the_driver() -> None:
    with pytest.raises(ValueError, match="The NVIDIA driver is") as refused:
        check_gpu()
    line = str(refused.value).replace("missing or not running", "550.54.15")
    assert line in (ROOT / "docs/clusters.md").read_text()


def test_what_may_change_in_mid_run_may(tmp_path: Path) -> None:
    start(tmp_path)
    flags = ["--training.num-workers 2", "--ingest.max-corrupt-fraction 0.05", "--ingest.max-processes 1"]
    flags += ["--ingest.prefetch-slices 1", "--training.keep-checkpoints 5", "--training.max-failures 9"]
    flags += ["--training.checkpoint-every-n-steps 5", "--training.device cpu"]
    assert not [flag for flag in flags if flag.split()[0] not in PAGE]
    start(tmp_path, *" ".join(flags).split())


def test_flags_of_the_page_exist() -> None:
    known = set()
    for part in ("training", "ingest", "loss", "optimizer", "model.image"):
        value = operator.attrgetter(part)(pretrain_config(["debug"]))
        known |= {f"--{part}.{field.name.replace('_', '-')}" for field in dataclasses.fields(value)}
    asked = set(re.findall(r"--(?:training|ingest|loss|optimizer|model)\.[\w.-]+\w", PAGE))
    assert len(asked) > 10 and not asked - known
