"""Files made with ill will: each is read through the functions that commands use, and gives a result or one line."""

import dataclasses
import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groupvit import checkpoint
from groupvit.checkpoint_files import DIGEST_KEY, FILES_KEY, read_state, write_state
from groupvit.protocols import protocol_of
from pipelines import documents, storage
from pipelines.cli.main import main
from pipelines.comparison.source import find_run
from pipelines.dataset.card import card_text, read_card
from pipelines.dataset.format import open_dataset
from pipelines.dataset.raw_shards import raw_shards
from pipelines.experiments.catalogue import debug
from pipelines.runs.evaluations import EvaluationRecord, missing_steps, read_record, write_record
from pipelines.runs.folder import RunFolder
from pipelines.tracking.spool import Spool
from pipelines.tracking.tracker import metrics_record
from pipelines.training.job import start_or_continue, with_absolute_paths
from pipelines.training.slice_size import with_recorded_slice_size
from tests.support.dataset_folder import make_dataset
from tests.support.fuzzing import mutated
from tests.support.hostile_json import VALUES, hostile
from tests.support.small_checkpoint import write_small_checkpoint
from tests.support.training_state import training_state

NUM_MUTANTS = 1000  # of each kind of file
CONFIG = with_absolute_paths(
    dataclasses.replace(debug(), tracking=dataclasses.replace(debug().tracking, uri=None)),
)
Read = Callable[[str], Any]


def run_json(folder: str) -> Any:
    run = RunFolder(folder)
    with_recorded_slice_size(CONFIG, run.read_description())
    return start_or_continue(run, CONFIG, [])


def state_json(folder: str) -> Any:
    state = RunFolder(folder).read_state(3)
    place = Path(folder) / "checkpoints/step-00000003"
    return state, protocol_of("model", checkpoint.load(place), checkpoint.load_state(place))


def evaluations_json(folder: str) -> Any:
    record = read_record(RunFolder(folder))
    missing_steps(RunFolder(folder), 1, 10)
    return record.summary(), record.kept_steps([1, 2], 1, 10)


def dataset_json(folder: str) -> Any:
    return card_text(read_card(open_dataset(folder), 100))


def download_json(folder: str) -> Any:
    return raw_shards(folder)


def metrics_json(folder: str) -> Any:
    return find_run(folder, step=None, benchmark=None, tracking_uri=None, folder=Path(folder))


@pytest.fixture
def seeds(tmp_path: Path) -> dict[Read, Path]:
    """A valid file for each function that reads it."""
    run = RunFolder(str(tmp_path / "run"))
    start_or_continue(run, CONFIG, [])
    place = tmp_path / "run/checkpoints/step-00000003"
    write_small_checkpoint(place, state=training_state(3))
    state = {name: value for name, value in read_state(place).items() if name not in (FILES_KEY, DIGEST_KEY)}
    write_state(place, state)  # without digests, as earlier versions did: else they refuse every change
    record = metrics_record({"train/loss": 1.0}, 3)
    write_record(run, EvaluationRecord(scores={3: 1.5}, part_scores={3: {"seen": 1.5}}, metrics={3: record}))
    make_dataset(tmp_path / "data", 20)
    raw = tmp_path / "raw"
    raw.mkdir()
    pq.write_table(pa.table({"row": [0, 1]}), raw / "00000.parquet")
    (raw / "00000_stats.json").write_text('{"count": 2, "successes": 2, "status_dict": {"success": 2}}')
    urls = {"list": "a", "digest": "d", "rows": 2, "urls": 2, "sample": []}
    passes = [{"folder": "", "rows": 2, "finished": True}]
    description = {"version": 2, "urls": urls, "fixed": {"rows_per_shard": 4}, "passes": passes}
    (raw / "download.json").write_text(json.dumps(description))
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "per_image.csv").write_text("part,sample_id,miou\nseen,a,3.5\n")
    scores = {"metrics": {"seen/miou": 3.5}, "class_iou": {"seen": {"dog": 3.5}}}
    of = {"benchmark": "scenes", "data_digest": "d", "checkpoint": str(place), "step": 3}
    (evaluation / "metrics.json").write_text(json.dumps(of | scores))
    return {
        run_json: tmp_path / "run/run.json",
        state_json: place / "state.json",
        evaluations_json: tmp_path / "run/evaluations.json",
        dataset_json: tmp_path / "data/dataset.json",
        download_json: raw / "download.json",
        metrics_json: evaluation / "metrics.json",
    }


def folder_of(file: Path) -> str:
    return str(file.parents[2] if file.name == "state.json" else file.parent)


def refusal(read: Read, folder: str, content: bytes) -> str | None:
    """The line with which a file is refused; None if it is read."""
    try:
        read(folder)
    except (ValueError, MemoryError) as error:
        refused = error
    except Exception as error:
        pytest.fail(f"{error!r} of {content[:2000]!r}")
    else:
        return None
    if "\n" in str(refused) or len(str(refused)) > 1500 or not isinstance(refused, ValueError):
        pytest.fail(f"{refused!r} of {content[:2000]!r}")
    return str(refused)


READERS = [run_json, state_json, evaluations_json, dataset_json, download_json, metrics_json]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_changed_file_gives_a_result_or_one_line(read: Read, seeds: dict[Read, Path]) -> None:
    file, rng = seeds[read], random.Random(read.__name__)
    document, folder, outcomes = json.loads(file.read_text()), folder_of(seeds[read]), Counter()
    read(folder)
    for _ in range(NUM_MUTANTS):
        content = hostile(document, rng)
        file.write_bytes(content)
        message = refusal(read, folder, content)
        assert message is None or folder in message or read is run_json, (message, content)
        outcomes["read" if message is None else "refused"] += 1
    assert outcomes["refused"] > NUM_MUTANTS // 4 and outcomes["read"], outcomes


def with_changed_values(table: pa.Table, rng: random.Random) -> bytes:
    """A valid Parquet file, with other values, types, columns or numbers of rows."""
    columns: dict[str, Any] = table.to_pydict()
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(columns))
        match rng.randrange(5):
            case 0 if len(columns) > 1:
                del columns[name]
            case 1:
                columns = {column: values[:-1] or values for column, values in columns.items()}
            case 2:
                columns = {column: [*values, values[0]] for column, values in columns.items()}
            case 3:
                columns[name] = [rng.choice(VALUES)] * len(columns[name])
            case _:
                columns[name] = [*columns[name][:-1], rng.choice(VALUES)]
    try:
        return parquet(columns)
    except (pa.ArrowException, OverflowError):  # values of several types, and those that Parquet has no type for
        return parquet({column: [str(value) for value in values] for column, values in columns.items()})


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_a_changed_manifest_gives_a_result_or_one_line(seeds: dict[Read, Path]) -> None:
    file, rng, outcomes = seeds[dataset_json].with_name("manifest.parquet"), random.Random(0), Counter()
    original, table = file.read_bytes(), pq.read_table(file)
    for _ in range(NUM_MUTANTS):
        content = rng.choice((lambda: mutated(original, rng), lambda: with_changed_values(table, rng)))()
        file.write_bytes(content)
        message = refusal(open_dataset, str(file.parent), content)
        assert message is None or str(file.parent) in message
        outcomes["read" if message is None else "refused"] += 1
    assert outcomes["refused"] > NUM_MUTANTS // 4 and outcomes["read"], outcomes


def rewrite(path: Path, columns: dict[str, Any]) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"file": ["../secret/part-000000.parquet"] * 3},
            r"names '\.\./secret/part-000000\.parquet', which is not a path",
        ),
        ({"file": ["/etc/passwd"] * 3}, "names '/etc/passwd', which is not a path in its folder"),
        ({"file": ["s3://bucket/x.parquet"] * 3}, "which is not a path in its folder"),
        ({"file": ["data\\..\\x"] * 3}, "which is not a path in its folder"),
        ({"file": ["data/\0"] * 3}, "which is not a path in its folder"),
        ({"file": ["data/other.parquet"] * 3}, r"files of the manifest are missing, first data/other\.parquet"),
        ({"rows": [-8, 20, 8]}, "manifest.parquet counts 20 samples"),
        ({"rows": [1e300] * 3}, "is corrupted or incomplete"),
        ({"rows": ["x"] * 3}, "is corrupted or incomplete"),
        ({"rows": [None, 8, 8]}, "is corrupted or incomplete"),
    ],
)
def test_a_manifest_that_leaves_its_folder_or_has_other_types(
    columns: dict[str, Any], message: str, seeds: dict[Read, Path]
) -> None:
    folder = seeds[dataset_json].parent
    rewrite(folder / "manifest.parquet", columns)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(folder))


def test_a_link_out_of_a_data_set_is_refused(seeds: dict[Read, Path], tmp_path: Path) -> None:
    folder = seeds[dataset_json].parent
    (part,) = (folder / "data").iterdir()
    part.rename(tmp_path / "elsewhere.parquet")
    part.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match=r"is a link to .*elsewhere\.parquet, out of its folder"):
        open_dataset(str(folder))
    part.unlink()
    (tmp_path / "elsewhere.parquet").rename(folder / "data/own.parquet")
    part.symlink_to("own.parquet")
    assert open_dataset(str(folder)).num_samples == 20


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_file_of_gigabytes_and_a_pipe_are_not_read(read: Read, seeds: dict[Read, Path]) -> None:
    file = seeds[read]
    with file.open("r+b") as opened:
        opened.truncate(2**32 + 1)  # takes no place on the disk
    with pytest.raises(ValueError, match=r"4,294,967,297 bytes, more than the [\d,]+ such a file may have"):
        read(folder_of(file))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"is a device, socket or pipe|no metrics\.json in it"):
        read(folder_of(file))


def test_objects_are_bounded_too(bucket: str) -> None:
    uri = storage.join(bucket, "run.json")
    storage.write_bytes(uri, b" " * 1001)
    with pytest.raises(ValueError, match=r"run\.json: has 1,001 bytes, more than the 1,000"):
        documents.read(uri, dict[str, Any], "fix", 1000)


def test_a_command_says_one_line(seeds: dict[Read, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = seeds[dataset_json]
    file.write_text("[" * 100_000)
    assert main(["inspect", str(file.parent)]) == 2
    assert capsys.readouterr().err == (
        f"groupvit: error: {file} is corrupted (Invalid JSON: recursion limit exceeded at line 1 column 202): "
        "write the data set again\n"
    )


def test_a_spool_uploads_nothing_from_outside_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    (run / "evaluation/step").mkdir(parents=True)
    (run / "evaluation/x.json").write_text("{}")
    (tmp_path / "secret").write_text("hunter2")
    (run / "evaluation/step/link").symlink_to(tmp_path / "secret")
    good = [metrics_record({"a": 1.0}, 1, training=True), {"artifact": str(run / "evaluation/x.json"), "folder": None}]
    places = [tmp_path / "secret", run / "evaluation/../../secret", run / "evaluation/step", Path("/etc/passwd")]
    bad: list[Any] = [{"artifact": str(place), "folder": "x"} for place in places]
    bad += [{"picture": "/etc/passwd", "key": "x", "step": 1, "time": 1}, {"metrics": {"a": "b"}}, 3, {"status": "x"}]
    folder = run / "tracking"
    folder.mkdir()
    lines = [json.dumps(record) for record in (good[0], *bad, good[1])]
    (folder / "spool.jsonl").write_text("\n".join([*lines, "[" * 100_000, "\0"]) + "\n")
    (folder / "spool.sent").write_text("-5 " + "9" * 1000)
    spool = Spool(folder)
    assert [record for batch, _ in spool.unsent_batches() for record in batch] == good
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1 + len(bad) + 2 and all("\n" not in message for message in messages)


def test_nothing_is_unpickled() -> None:
    """No module reads pickles but the one that replaces what they call, and torch reads tensors only."""
    root = Path(documents.__file__).parents[1]
    for file in [*(root / "groupvit").rglob("*.py"), *(root / "pipelines").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        loads = re.findall(r"torch\.load\([^)]*\)", text)
        assert all("weights_only=True" in load for load in loads), file
        assert not re.search(
            r"[^\w_]pickle\.loads?\(|allow_pickle=True|yaml\.(unsafe_|full_)?load\(|[^.\w]eval\(|[^.\w]exec\(", text
        ), file
