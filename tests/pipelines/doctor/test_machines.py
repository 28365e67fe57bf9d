"""`groupvit doctor` on a cluster of three machines with planted faults: each is named, with the machine that has it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import HOME, Machine, Network, missing_for_machines
from tests.support.weather import BIN, RAY_PORT, ROOT, Cluster, shared_folder

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing_for_machines() is not None, reason=str(missing_for_machines())),
]
SECONDS_AHEAD = 100
FULL = f"{HOME}/full"
FILL = f"mkdir {FULL} && mount -t tmpfs -o size=1m none {FULL} && head -c 900000 /dev/zero > {FULL}/large"


@pytest.fixture
def clock() -> Iterator[Path]:
    """A library, which all machines see, that moves the clock of processes that load it."""
    folder = Path(shared_folder())
    source = ROOT / "tests/support/skewed_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "skewed_clock.so", source, "-ldl"], check=True)
    yield folder / "skewed_clock.so"
    shutil.rmtree(folder)


@pytest.fixture
def machines(
    tmp_path: Path, clock: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Cluster, Machine, Machine]]:
    """A cluster whose head is well, its machine with a clock that is ahead, and the one whose disk is full."""
    monkeypatch.chdir(ROOT)
    with Network(tmp_path / "machines") as network:
        cluster = Cluster(network, head_cpus=1, node_cpus=1)
        skew = {"LD_PRELOAD": str(clock), "SKEW_SECONDS": str(SECONDS_AHEAD), "RAY_LD_PRELOAD_ON_WORKERS": "1"}
        ahead = cluster.add_node(variables=skew)
        full = cluster.add_node(prepare=FILL, variables={"TMPDIR": FULL})
        yield cluster, ahead, full


def test_planted_faults_are_named_with_their_machines(machines: tuple[Cluster, Machine, Machine]) -> None:
    cluster, ahead, full = machines
    doctor = f"{BIN}/groupvit doctor --cluster {cluster.head.address}:{RAY_PORT} --store s3://no-such-bucket/runs"
    line = f"{doctor} --probe-megabytes 1 --least-free-gigabytes 0.1 --json 2> {HOME}/errors; echo code $?"
    printed = cluster.on_head("bash", "-c", line, timeout=400)
    *_, summary, code = printed.splitlines()
    assert code == "code 1", printed
    faults = [finding for finding in json.loads(summary)["findings"] if finding["status"] == "fault"]
    assert {finding["check"] for finding in faults} == {"clock", "disk", "store"}, printed
    of_clock, of_disk, of_store = (
        [one for one in faults if one["check"] == name] for name in ("clock", "disk", "store")
    )
    assert [finding["node"].split()[0] for finding in of_clock] == [ahead.address]
    assert 0 < float(of_clock[0]["text"].split()[0].lstrip("+")) - SECONDS_AHEAD + 1 < 2, of_clock
    assert [finding["node"].split()[0] for finding in of_disk] == [full.address]
    assert FULL in of_disk[0]["text"] and "it is full: free some" in of_disk[0]["fix"]
    assert {finding["node"].split()[0] for finding in of_store} == {
        machine.address for machine in (cluster.head, ahead, full)
    }
    assert all("there is no bucket 'no-such-bucket'" in finding["text"] for finding in of_store)
    last = (cluster.head.home / "errors").read_text().splitlines()[-1]
    assert last.startswith("groupvit: error: 5 faults: "), last
