"""`groupvit submit` against a real cluster with a token: what is refused before, what a job does, what it leaves."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.flags import parse
from pipelines.cli.main import main
from pipelines.cli.submit import split_flags
from pipelines.cli.submittable import SUBMITTABLE
from pipelines.cluster import jobs as job_server
from pipelines.cluster.config import SubmitConfig
from pipelines.cluster.room import Demand, Machine, check_room
from pipelines.cluster.submit import flags_to_repeat
from pipelines.runs.folder import RunFolder
from tests.support.planted_secrets import IN_FILES, PLANTED, files_below, found, plant_in_home
from tests.support.small_run import write_noise

ROOT = Path(__file__).parents[3]
S3 = "--data s3://b/data --training.runs-folder s3://b/runs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "a command is missing"),
        ("pretrian debug", "unknown command to submit pretrian: did you mean pretrain?"),
        ("pretrain debugg", "unknown experiment debugg: did you mean debug?"),
        ("pretrain", "an experiment is missing"),
        ("pretrain debug --training.num-step 3", "did you mean --training.num-steps?"),
        (f"pretrain debug {S3} --training.num-workers 3", "training.num_workers=3 is more than the 2 slices"),
        ("pretrain debug --dry-run", "--dry-run needs no cluster"),
        ("pretrain debug", "data.sources[0]=data/shapes/train is on this machine"),
        ("pretrain debug --data s3://b/data", "training.runs_folder=runs is on this machine"),
        (
            f"pretrain debug {S3} --tracking.uri sqlite:///mlflow.db",
            "tracking.uri=sqlite:///mlflow.db is on this machine",
        ),
        (f"pretrain debug {S3} --tracking.uri http://127.0.0.1:5000", "is a server of this machine"),
        (f"pretrain debug {S3} --tracking.uri http://me:word@mlflow", "the command holds credentials"),
        (f"pretrain debug {S3} --env NO_SUCH_VARIABLE", "env=NO_SUCH_VARIABLE is not set here"),
        (f"pretrain debug {S3} --env KEY=very-secret", "env=KEY... is not a name"),
        (f"pretrain debug {S3} --address nowhere", "address=nowhere is not a job server"),
        (f"pretrain debug {S3} --address", "--address: a value is missing"),
        ("sweep groupin", "unknown space groupin: did you mean grouping?"),
        (f"sweep grouping {S3} --budget 4", "evaluation.root is missing"),
        (f"sweep grouping {S3} --budget 0 --evaluation.root s3://b/x", "budget=0 is below one trial"),
        ("evaluate --checkpoint s3://b/runs/x --root s3://b/voc --out here", "out=here is on this machine"),
        ("curate --raw a=/here --out s3://b/x", "raw[0]=/here is on this machine"),
        ("download --url-list s3://b/l.tsv --out s3://b/x", "give --distributor ray"),
        ("status", "submit status takes one job, not none"),
        ("list --address http://127.0.0.1:9", "no job server answers"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *arguments.split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("groupvit: error: ")
    assert message in error
    assert "very-secret" not in error


def test_a_job_server_that_drops_what_is_sent_is_said_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_server, "_SECONDS_TO_ANSWER", 0.3)
    with socket.socket() as server, contextlib.ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):  # more than the system lets wait: it drops what comes then
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert main(["submit", "list", "--address", address]) == 2
    assert f"address={address}: no job server answers (within 0.3 s)" in capsys.readouterr().err


def test_a_local_server_given_by_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:8333")
    assert main(["submit", "pretrain", "debug", *S3.split(), "--env", "AWS_ENDPOINT_URL"]) == 2
    assert "env AWS_ENDPOINT_URL=http://localhost:8333 is a server of this machine" in capsys.readouterr().err


def test_flags_of_submit_may_stand_anywhere() -> None:
    line = "--follow pretrain debug --env A --training.num-steps 3 --no-code --env=B --allow-local-paths False"
    own, others = split_flags([*line.split(), "--address", "http://x"])
    assert others == ["pretrain", "debug", "--training.num-steps", "3"]
    assert " ".join(own) == "--follow --no-code --allow-local-paths False --address http://x --env A B"


def test_what_is_submitted_again_is_submitted_with_the_same_flags() -> None:
    config = SubmitConfig(
        env=("A", "B"),
        cluster="cluster.yaml",
        wait_minutes=3.0,
        code=False,
        max_code_megabytes=120.0,
        allow_local_paths=True,
    )
    own, _ = split_flags([*flags_to_repeat(config), "resume"])
    assert parse(SubmitConfig, own, prog="groupvit submit") == config
    assert {name for name in vars(config) if getattr(config, name) == getattr(SubmitConfig(), name)} == {
        "address",  # where the job is
        "follow",
    }


@pytest.mark.parametrize("command", SUBMITTABLE)
def test_no_command_has_a_flag_of_submit(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, *{"pretrain": ["debug"], "sweep": ["grouping"]}.get(command, []), "--help"])
    flags = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    assert flags
    assert split_flags(["x", *sorted(flags)])[0] == []


def test_room_is_counted_machine_by_machine() -> None:
    machines = [Machine(cpus=3, gpus=0), Machine(cpus=3, gpus=0), Machine(cpus=8, gpus=2)]
    workers = Demand(what="training.num_workers", count=2, cpus=2, gpus=1, gpus_if_any=True)
    data = Demand(what="reading the data", count=1, cpus=1)
    check_room([workers, data], machines, "the cluster", "")
    check_room([Demand(what="n", count=6, cpus=2)], machines, "the cluster", "")
    with pytest.raises(ValueError, match=r"n=7 with 2 CPU each .* 2 x 3 CPUs, 1 x 8 CPUs and 2 GPUs, with room for 6"):
        check_room([Demand(what="n", count=7, cpus=2)], machines, "the cluster", "")
    with pytest.raises(ValueError, match=r"training.num_workers=3 with 2 CPU and 1 GPU each .* with room for 2"):
        check_room(
            [Demand(what="training.num_workers", count=3, cpus=2, gpus=1, gpus_if_any=True)],
            machines,
            "the cluster",
            "",
        )
    with pytest.raises(ValueError, match=r"n=1 with 9 CPU each"):  # 14 in all
        check_room([Demand(what="n", count=1, cpus=9)], machines, "the cluster", "")
    with pytest.raises(ValueError, match=r"reading the data=1 .* beside what is above it"):
        check_room([Demand(what="n", count=1, cpus=3), data], [Machine(cpus=3, gpus=0)], "the cluster", "")


def test_a_sweep_needs_room_for_all_trials_at_a_time() -> None:
    sweep = f"grouping {S3} --evaluation.root s3://b/x --evaluation.calibration s3://b/y --budget 9 --max-concurrent 3"
    submission = SUBMITTABLE["sweep"](sweep.split())
    assert submission.place == "s3://b/runs/sweep-grouping"
    assert [demand.count for demand in submission.demands] == [6, 3, 3]  # demo trains with 2 workers
    with pytest.raises(ValueError, match=r"max_concurrent=3 x training.num_workers=6 with 1 CPU each .* room for 5"):
        check_room(submission.demands, [Machine(cpus=5, gpus=0)], "the cluster", "")


class Cluster:
    """`ray start --head` with a token, ports and a folder of its own, and the commands of somebody who uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(32)
        self.ports = free_ports(6)
        self.address = f"http://127.0.0.1:{self.ports[1]}"
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port")
        flags = [f"--{name}={port}" for name, port in zip(names, self.ports[:4], strict=True)]
        flags += ["--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--num-cpus=3", "--num-gpus=0"]
        flags += [f"--temp-dir={folder}", "--object-store-memory=200000000", "--include-log-monitor=False"]
        with (folder / "start.log").open("wb") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *flags],
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )

    def environment(self, **others: str) -> dict[str, str]:
        told = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "AWS_"))}
        told |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        told["PATH"] = f"{Path(sys.executable).parent}:{told['PATH']}"
        return told | {"PYTHONPATH": str(ROOT)} | others

    def submit(self, *arguments: str, exit_code: int = 0, **others: str) -> str:
        """What `groupvit submit ...` prints."""
        command = [sys.executable, "-m", "pipelines.cli", "submit", *arguments, "--address", self.address]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(**others),
            check=False,
        )
        assert done.returncode == exit_code, done.stdout
        return done.stdout

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.ports[1])) == 0:
                    return
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "start.log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)  # it ends what it has started
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # not pytest's: Ray's sockets want a short path
    running = Cluster(folder)
    try:
        running.wait()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def wait_for_checkpoint(run: RunFolder) -> None:
    deadline = time.monotonic() + 200
    while not run.latest_step():
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_is_submitted_stopped_and_resumed(cluster: Cluster, tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", write_noise(str(tmp_path / "data"))
    flags = (
        f"--data {data} --training.runs-folder {runs} --training.num-steps 120 --allow-local-paths --env MY_PASSWORD"
    )
    command = ["pretrain", "debug", *flags.split(), "--training.checkpoint-every-n-steps", "5"]
    plant_in_home(tmp_path / "home")
    planted: dict[str, Any] = PLANTED | {"HOME": str(tmp_path / "home")}
    told = cluster.submit(*command, MY_PASSWORD="s3cr3t-of-mine", **planted)
    assert "submitted pretrain-debug-1, which writes" in told
    again = cluster.submit(*command, MY_PASSWORD="s3cr3t-of-mine", exit_code=2)
    assert re.search(r"pretrain-debug-1 is (pending|running) and writes", again)
    wait_for_checkpoint(RunFolder(str(runs / "debug")))
    stopped = cluster.submit("stop", "pretrain-debug-1")
    step = RunFolder(str(runs / "debug")).latest_step()
    assert f"pretrain-debug-1 is stopped; it will continue from step {step}" in stopped
    assert 0 < step < 120
    assert "pretrain-debug-1  STOPPED" in cluster.submit("status", "pretrain-debug")
    text = cluster.submit("resume", "pretrain-debug", "--follow", MY_PASSWORD="s3cr3t-of-mine")
    assert "submitted pretrain-debug-2" in text
    assert f"debug: training from step {step} on 1 x cpu" in text
    assert text.count("step 120/120") == 1
    assert RunFolder(str(runs / "debug")).latest_step() == 120
    listed = cluster.submit("list")
    assert re.search(r"pretrain-debug-1  STOPPED .*\n.*pretrain-debug-2  SUCCEEDED, exit code 0", listed)
    # The code that ran is the code that was packed, and it knows where it comes from.
    assert '"code_version": "unknown"' not in (runs / "debug/run.json").read_text()
    # What came along by --env is in no log, and in nothing that Ray tells of a job; what did not is nowhere.
    listing = f"from ray.job_submission import *; print(JobSubmissionClient('{cluster.address}').list_jobs())"
    jobs = subprocess.check_output([sys.executable, "-c", listing], env=cluster.environment(), text=True)
    assert "pretrain-debug-2" in jobs
    contents = files_below(cluster.folder) | files_below(runs) | {"list_jobs": jobs.encode(), "told": told.encode()}
    packed = [name for name in contents if name.endswith("job-environment.json")]
    assert packed and {name for _, name in found(["s3cr3t-of-mine"], contents)} <= {*packed}
    assert found([*PLANTED.values(), *IN_FILES.values()], contents) == []


@pytest.mark.cluster
def test_a_followed_job_ends_with_its_own_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    command = f"pretrain debug --data {tmp_path}/none --training.runs-folder {tmp_path} --training.run-name bad"
    text = cluster.submit(*command.split(), "--allow-local-paths", "--follow", exit_code=2)
    assert "data.sources: " in text
    assert "pretrain-bad-1 failed: Job entrypoint command failed with exit code 2" in text.splitlines()[-1]


@pytest.mark.cluster
def test_what_the_cluster_can_never_give_is_said_at_once(cluster: Cluster, tmp_path: Path) -> None:
    command = f"pretrain debug {S3} --ingest.slice-size 4 --training.run-name wide --training.num-workers"
    text = cluster.submit(*command.split(), "8", exit_code=2)
    assert "training.num_workers=8 with 1 CPU each is more than the cluster at" in text
    assert "1 x 3 CPUs, with room for 3" in text
    text = cluster.submit(*command.split(), "1", "--training.device", "gpu", exit_code=2)
    assert "training.num_workers=1 with 1 CPU and 1 GPU each" in text
    # A cluster that may grow: more than it can grow to is refused, else the job waits for it.
    growing = ["--cluster", str(ROOT / "ray-cluster.yaml")]
    large = ["8", "--ingest.slice-size", "1", "--training.cpus-per-worker", "60"]
    text = cluster.submit(*command.split(), *large, *growing, exit_code=2)
    assert "ray-cluster.yaml at most" in text
    text = cluster.submit(*command.split(), "8", *growing, "--wait-minutes", "0.05", "--follow", exit_code=1)
    assert "waiting for machines with room for 9 processes" in text
    assert "the machines did not come within wait_minutes=0.05" in text


@pytest.mark.cluster
def test_tokens_are_asked_for(cluster: Cluster) -> None:
    assert "the cluster refuses the token" in cluster.submit("list", RAY_AUTH_TOKEN=secrets.token_hex(32), exit_code=2)
    assert "the cluster asks for a token" in cluster.submit("list", RAY_AUTH_MODE="disabled", exit_code=2)
