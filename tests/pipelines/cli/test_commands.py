"""The command line as a user sees it: exit codes, and what is on which stream."""

import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from pipelines.cli.commands import COMMANDS
from pipelines.cli.flags import parse
from pipelines.cli.main import main
from pipelines.errors import WorkFailedError
from tests.support.dataset_folder import make_dataset
from tests.support.raw_shards import good_rows, write_shards


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrian debug", "unknown command pretrian: did you mean pretrain?"),
        ("pretrain debugg", "unknown experiment debugg: did you mean debug?"),
        ("pretrain gcc_yfc_30e", "did you mean gcc_yfcc_30e?"),
        (
            "pretrain debug --training.num-step 3",
            "unknown flag --training.num-step: did you mean --training.num-steps?",
        ),
        ("pretrain debug --num-workers 3", "unknown flag --num-workers: did you mean --training.num-workers?"),
        ("pretrain debug --training.num_wrokers=3", "did you mean --training.num-workers?"),
        (
            "pretrain debug --training.num-steps ten",
            "--training.num-steps: invalid literal for int() with base 10: 'ten'",
        ),
        ("pretrain debug --model.image.depths 1 1", "image.num_heads=(2, 2, 2) has 3 entries, but depths=(1, 1) has 2"),
        ("pretrain debug --training.num-workers 3", "training.num_workers=3 is more than the 2 slices"),
        ("pretrain gcc_yfcc_30e", "data.sources is empty"),
        ("pretrain debug --data.sources /nowhere/at/all", "/nowhere/at/all"),
        ("pretrain debug --data", "--data: a value is missing"),
        ("pretrain debug --data a:0.5 --data b", "1 of 2 sources have a weight (a:0.5 b): give all one"),
        ("pretrain debug --data a --data.weights 1", "--data stands for --data.sources, --data.weights"),
        ("pretrain debug --data a=/nowhere/one:1 --data=/nowhere/two:2", "/nowhere/one: no dataset.json"),
        ("pretrain debug surplus", "'surplus' belongs to no flag"),
        ("evaluate --root x", "checkpoint"),
        ("demo-data stamp --out x", "did you mean stamps?"),
        ("download --url-list x --out y --presett coco", "unknown flag --presett: did you mean --preset?"),
        ("segment --checkpoint x --classes dog", "images is empty"),
        ("segment a.jpg --checkpoint /nowhere --classes dog", "/nowhere is neither a checkpoint"),
        ("app --checkpoint x --port 99999", "port=99999 is not a port"),
        ("app --checkpoint x --no-port", "unknown flag --no-port"),
        # Truth values may stand without one.
        ("download --out y --retry-failed --url-list /nowhere.csv", "/nowhere.csv: no such file or folder"),
        ("download --out y --url-list /nowhere.csv --allow-private-addresses", "/nowhere.csv: no such file or folder"),
        ("download --out y --url-list /nowhere.csv --retry-failed maybe", "'maybe' belongs to no flag"),
    ],
)
def test_mistakes_are_one_line_on_stderr_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("groupvit: error: ")
    assert captured.err.count("\n") == 1


def test_an_ascii_terminal_shows_the_same_line() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "debug", "--training.num-steps", "ten"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    line = "Error parsing --training.num-steps: invalid literal for int() with base 10: 'ten'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"groupvit: error: {line}\n")


def test_work_that_fails_is_one_line_on_stderr_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: Sequence[str]) -> dict[str, Any]:
        raise WorkFailedError("The worker died unexpectedly")

    monkeypatch.setitem(COMMANDS, "curate", fail)
    assert main(["curate", "--json"]) == 1
    assert capsys.readouterr() == ("", "groupvit: error: The worker died unexpectedly\n")
    monkeypatch.setenv("GROUPVIT_TRACEBACK", "1")
    with pytest.raises(WorkFailedError):
        main(["curate"])


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    """What commands read, and a file below which nothing can be written."""
    (tmp_path / "file").touch()
    (tmp_path / "list.csv").write_text("url,caption\nhttp://127.0.0.1:9/a.jpg,a dog\n")
    make_dataset(tmp_path / "data", 40)
    write_shards(tmp_path / "raw", good_rows(range(2)), 2)
    return {"file": f"{tmp_path}/file", "in": str(tmp_path)}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        # Of what is needed for the work itself, much is missing here: the place is looked at first.
        ("segment photo.jpg --checkpoint /nowhere --classes dog --out {file}/below", "out"),
        ("export --checkpoint /nowhere --to onnx --out {file}/below", "out"),
        ("import-weights /nowhere --out {file}/below", "out"),
        ("evaluate --checkpoint /nowhere --root /nowhere --out {file}/below", "out"),
        ("compare /nowhere /nor-here --out {file}/below", "out"),
        ("compare /nowhere /nor-here --tracking-uri sqlite:///{file}/below/mlflow.db", "tracking_uri"),
        ("register --checkpoint /nowhere --name a --tracking-uri sqlite:///{file}/below/mlflow.db", "tracking_uri"),
        ("demo-data shapes --out {file}/below", "out"),
        ("demo --out {file}/below", "out"),
        ("download --url-list {in}/list.csv --out {file}/below", "out"),
        ("curate --raw {in}/raw --out {file}/below", "out"),
        ("inspect {in}/data --out {file}/below/page.html", "out"),
        ("pretrain debug --data {in}/data --training.runs-folder {file}/below", "training.runs_folder"),
        ("pretrain debug --data {in}/data --training.record-samples {file}/below", "training.record_samples"),
        ("pretrain debug --data {in}/data --tracking.uri sqlite:///{file}/mlflow.db", "tracking.uri"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    arguments: str, field: str, inputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path(inputs["in"]).rglob("*"))
    if "runs-folder" not in arguments and arguments.startswith("pretrain"):
        arguments += " --training.runs-folder {in}/runs"
    assert main(arguments.format(**inputs).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"groupvit: error: {field}=") and error.count("\n") == 1
    assert f"cannot be written: {inputs['file']} is a file" in error
    assert sorted(Path(inputs["in"]).rglob("*")) == before


def test_an_error_of_the_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(uri: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), uri)

    data = make_dataset(tmp_path / "data", 8).uri
    monkeypatch.setattr(storage, "write_bytes", write)
    assert main(["inspect", data, "--out", f"{tmp_path}/page.html"]) == 1
    assert capsys.readouterr().err == f"groupvit: error: {tmp_path}/page.html: No space left on device\n"


@pytest.mark.parametrize("argument", ["caf\udce9.jpg", "caf\udce9"])
def test_names_that_are_not_utf_8_are_named(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["demo-data", "shapes", "--out", argument],
        ["inspect", argument],
        ["pretrain", "debug", "--data", argument],
        ["download", "--url-list", argument, "--out", "x"],
        ["segment", "a.jpg", "--checkpoint", argument, "--classes", "dog"],
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert error.isascii() and error.count("\n") == 1 and "caf\\udce9" in error and "not UTF-8" in error, error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    name: str = ""
    on: bool = False
    off: bool = True
    two_words: bool = False


@pytest.mark.parametrize(
    ("arguments", "switches"),
    [
        ("--on", Switches(on=True)),
        ("--on --name on", Switches(on=True, name="on")),
        ("--on False --off False", Switches(off=False)),
        ("--on=True --off", Switches(on=True)),
        ("--on --no-off", Switches(on=True, off=False)),
        ("--two_words --no_off", Switches(two_words=True, off=False)),
    ],
)
def test_a_switch_needs_no_value(arguments: str, switches: Switches) -> None:
    assert parse(Switches, arguments.split(), prog="x") == switches


def test_missing_experiment_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain"]) == 2
    assert "gcc_yfcc_30e" in capsys.readouterr().out


def test_help_shows_the_docs_of_fields_with_the_experiments_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", "gcc_redcaps_30e", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Optimiser steps of the whole run. (default: 189780)" in shown
    assert "Noun prompts per image, K. 0: image-text contrastive loss only. (default: 0)" in shown


def test_general_help_does_not_wait_for_heavy_imports() -> None:
    heavy = {"torch", "ray", "mlflow"}
    code = f"import sys; from pipelines.cli.main import main; main(['--help']); print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "groupvit pretrain debug" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


def test_mlflow_says_nothing_of_its_tables() -> None:
    code = (
        "from pipelines.cli.main import main; main(['--help']); import mlflow.utils.logging_utils, logging; "
        "print(logging.getLogger('mlflow.store.db.utils').isEnabledFor(logging.INFO))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_pretrain_help_does_not_import_ray() -> None:
    code = (
        "import sys\nfrom pipelines.cli.main import main\n"
        "try: main(['pretrain', 'debug', '--help'])\n"
        "finally: print('ray' in sys.modules, 'mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "False False"
