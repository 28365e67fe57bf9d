"""What the doctor makes of facts: the status and the fix, without a cluster."""

import dataclasses

import pytest

from pipelines.cli.main import main
from pipelines.console.findings import Finding, failure_of, summary_of
from pipelines.doctor import judge
from pipelines.doctor.facts import Disk, Facts, collect

VERSIONS = {"python": "3.11.7", "torch": "2.14.1", "groupvit": "abc"}
WELL = Facts(
    host="a",
    versions=VERSIONS,
    gpus=("NVIDIA H100",) * 2,
    driver="580.95.05",
    gpu_problem=None,
    has_bfloat16=True,
    num_descriptors=65536,
    disks={"Ray": Disk(folder="/tmp/ray", free=50 * 10**9, size=100 * 10**9, device=1)},
    shared_memory=Disk(folder="/dev/shm", free=8 * 10**9, size=8 * 10**9, device=2),
    credentials=("AWS_PROFILE",),
)


def but(**changes: object) -> Facts:
    return dataclasses.replace(WELL, **changes)  # pyright: ignore


def disk(free: float, size: float = 100e9) -> dict[str, Disk]:
    return {"Ray": Disk(folder="/tmp/ray", free=int(free), size=int(size), device=1)}


def shared(free: float) -> Disk:
    return Disk(folder="/dev/shm", free=int(free), size=int(8e9), device=2)


@pytest.mark.parametrize(
    ("finding", "status", "words"),
    [
        (judge.gpus("a", WELL, 2), "OK", "2 x NVIDIA H100, driver 580.95.05, bfloat16"),
        (judge.gpus("a", WELL, 4), "fault", "torch sees 2 of the 4 that Ray counts"),
        (judge.gpus("a", but(gpu_problem="the driver is old"), 2), "fault", "the driver is old"),
        (judge.gpus("a", WELL, 0), "warning", "Ray counts none; start Ray with --num-gpus"),
        (judge.gpus("a", but(gpus=(), driver=None, has_bfloat16=False), 0), "OK", "emulates bfloat16"),
        (judge.clock("a", -0.4, 0.001), "OK", "-0.400 s"),
        (judge.clock("a", 2.0, 0.001), "warning", "chrony"),
        (judge.clock("a", -100.0, 0.001), "fault", "S3 refuses requests from 15 minutes on"),
        (judge.clock("a", 6.0, 5.5), "OK", "within 5.500 s"),  # a slow answer says nothing
        (judge.disks("a", WELL, 10e9)[0], "OK", "/tmp/ray (Ray): 50.0 GB of 100.0 GB free"),
        (judge.disks("a", but(disks=disk(6e9)), 10e9)[0], "warning", "free some"),
        (judge.disks("a", but(disks=disk(0.5e9)), 10e9)[0], "fault", "500 MB of 100.0 GB free; it is full"),
        (judge.disks("a", but(disks=disk(40e9, 1e12)), 10e9)[0], "fault", "Ray spills nothing above 95 %"),
        (judge.shared_memory("a", WELL, 2e9), "OK", "Ray's object store has 2.0 GB"),
        (judge.shared_memory("a", but(shared_memory=shared(64e6)), 2e9), "fault", "--shm-size"),
        (judge.shared_memory("a", but(shared_memory=shared(500e6)), 2e9), "warning", "--shm-size"),
        (judge.shared_memory("a", WELL, 0.1e9), "warning", "--object-store-memory"),
        (judge.shared_memory("a", but(shared_memory=None), None), "warning", "there is no /dev/shm"),
        (judge.descriptors("a", WELL), "OK", "65,536 open files"),
        (judge.descriptors("a", but(num_descriptors=-1)), "OK", "unlimited"),
        (judge.descriptors("a", but(num_descriptors=4096)), "warning", "ulimit -n 65536"),
        (judge.descriptors("a", but(num_descriptors=256)), "fault", "ulimit -n 65536"),
        (judge.unreached("a", [], 2), "OK", "reaches 2 other machines"),
        (judge.unreached("a", ["b", "c"], 2), "fault", "does not reach b, c; open all TCP ports"),
    ],
)
def test_a_fact_gets_its_status_and_its_fix(finding: Finding, status: str, words: str) -> None:
    assert finding.status == status and words in finding.line
    assert (status == "OK") == (not finding.fix) or finding.check == "gpu"


def test_versions_that_disagree_are_named_with_their_nodes() -> None:
    others = but(versions=VERSIONS | {"torch": "2.13.0"})
    [finding] = judge.versions({"a": WELL, "b": others, "c": WELL})
    assert finding.status == "fault" and finding.text == "torch 2.13.0 on b; 2.14.1 on a, c"
    assert finding.fix == "install one version of torch everywhere"
    [finding] = judge.versions({"a": WELL, "b": WELL})
    assert finding.status == "OK" and "python 3.11.7" in finding.text
    [finding] = judge.versions({"a": but(versions=VERSIONS | {"torch": "missing"})})
    assert finding.status == "fault" and finding.text == "torch is missing"


def test_gpus_of_several_kinds_are_a_warning() -> None:
    assert judge.kinds_of_gpu({"a": WELL, "b": but(gpus=())}) == []
    [finding] = judge.kinds_of_gpu({"a": WELL, "b": but(gpus=("NVIDIA L4",))})
    assert finding.status == "warning" and "NVIDIA H100, NVIDIA L4" in finding.text


def test_credentials_are_named_and_should_be_everywhere() -> None:
    [finding] = judge.credentials({"a": WELL, "b": WELL}, needs_s3=True)
    assert finding.status == "OK" and finding.text == "present: AWS_PROFILE"
    lines = judge.credentials({"a": WELL, "b": but(credentials=())}, needs_s3=True)
    assert [(one.node, one.status) for one in lines] == [("a", "OK"), ("b", "warning"), ("", "warning")]


def test_facts_of_this_machine_hold_no_value_of_a_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    facts = collect(None, 0)
    assert "AWS_SECRET_ACCESS_KEY" in facts.credentials and "planted-secret" not in repr(facts)
    assert facts.versions["torch"] != "missing" and facts.disks["temporary files"].size > 0
    assert collect(None, 1).gpu_problem is not None or facts.gpus


def test_a_line_shows_no_credential() -> None:
    finding = Finding(check="store", status="fault", text="http://me:pa55@host: token=abc", fix="password=abc")
    assert "pa55" not in finding.line and "abc" not in finding.line
    assert "pa55" not in str(summary_of([finding])) and "abc" not in str(summary_of([finding]))
    assert failure_of([finding, finding]) == "2 faults: store" and failure_of([]) is None


def test_a_cluster_file_is_answered_with_the_command_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster", "ray-cluster.yaml"]) == 2
    assert 'give `ray exec ray-cluster.yaml "groupvit doctor --cluster auto"`' in capsys.readouterr().err
