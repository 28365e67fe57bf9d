"""Judges the facts of machines. Pure functions: facts in, findings out."""

from collections.abc import Mapping, Sequence

from pipelines.console.findings import Finding
from pipelines.doctor.facts import Disk, Facts

MOST_SKEW, BROKEN_SKEW = 1.0, 5.0
"""Difference of two clocks in seconds from which there is a warning, or a fault. S3 refuses requests from 15 minutes
on, and logs of several machines can't be compared long before."""
LEAST_DESCRIPTORS, ENOUGH_DESCRIPTORS = 1024, 8192
"""Open files below which there is a fault, or a warning. Ray's processes keep a connection to each other process."""
LEAST_SHARED_MEMORY, ENOUGH_SHARED_MEMORY = 100e6, 1e9
"""Bytes of free shared memory. Containers have 64 MB by default; below 1 GB Ray keeps its objects on disk."""
LEAST_OBJECT_STORE = 1e9
"""Bytes of Ray's object store on a machine below which slices may not fit."""
RAY_STOPS_AT = 0.95
"""Used share of a disk from which Ray refuses to spill objects to it."""


def versions(facts: Mapping[str, Facts]) -> list[Finding]:
    """Compare versions between machines. Ray itself needs equal ones of Ray and Python."""
    findings = []
    names = next(iter(facts.values())).versions if facts else {}
    for name in names:
        nodes_of: dict[str, list[str]] = {}
        for node, one in facts.items():
            nodes_of.setdefault(one.versions[name], []).append(node)
        if len(nodes_of) > 1:
            parts = (f"{found} on {', '.join(nodes)}" for found, nodes in sorted(nodes_of.items()))
            fix = f"install one version of {name} everywhere"
            findings.append(Finding(check="versions", status="fault", text=f"{name} {'; '.join(parts)}", fix=fix))
        elif "missing" in nodes_of:
            fix = "install groupvit with its dependencies"
            findings.append(Finding(check="versions", status="fault", text=f"{name} is missing", fix=fix))
    if not findings and names:
        text = ", ".join(f"{name} {found}" for name, found in names.items())
        findings.append(Finding(check="versions", status="OK", text=text))
    return findings


def gpus(node: str, facts: Facts, num_gpus: float) -> Finding:
    """Whether torch can use the GPUs that Ray counts, and what computes bfloat16."""
    if facts.gpu_problem is not None:
        return Finding(check="gpu", node=node, status="fault", text=facts.gpu_problem)
    if num_gpus > 0:
        kinds = ", ".join(f"{facts.gpus.count(name)} x {name}" for name in dict.fromkeys(facts.gpus))
        how = "bfloat16" if facts.has_bfloat16 else "no bfloat16: precision auto takes float32"
        text = f"{kinds}, driver {facts.driver}, {how}"
        if len(facts.gpus) >= num_gpus:
            return Finding(check="gpu", node=node, status="OK", text=text)
        fix = f"torch sees {len(facts.gpus)} of the {num_gpus:g} that Ray counts: start Ray with that --num-gpus"
        return Finding(check="gpu", node=node, status="fault", text=text, fix=fix)
    if facts.driver is not None:
        fix = "start Ray with --num-gpus, or leave it so for a machine that only reads"
        text = f"{len(facts.gpus) or 'there are'} GPUs, driver {facts.driver}, but Ray counts none"
        return Finding(check="gpu", node=node, status="warning", text=text, fix=fix)
    how = "has bfloat16" if facts.has_bfloat16 else "emulates bfloat16: precision auto takes float32"
    return Finding(check="gpu", node=node, status="OK", text=f"none; the CPU {how}")


def kinds_of_gpu(facts: Mapping[str, Facts]) -> list[Finding]:
    """Compare the GPUs of machines that have some: the slowest sets the pace, and bits differ between kinds."""
    kinds = {name for one in facts.values() for name in one.gpus}
    if len(kinds) < 2:
        return []
    fix = "train on one kind: the slowest sets the pace, and results differ in their last bits"
    return [Finding(check="gpu", status="warning", text=f"several kinds: {', '.join(sorted(kinds))}", fix=fix)]


def clock(node: str, offset: float, error: float) -> Finding:
    """Judge how far a machine's clock is ahead of this one's, known to within `error` seconds."""
    skew = max(abs(offset) - error, 0.0)
    text = f"{offset:+.3f} s from this machine's, within {error:.3f} s"
    if skew < MOST_SKEW:
        return Finding(check="clock", node=node, status="OK", text=text)
    fix = "let chrony or systemd-timesyncd set it: S3 refuses requests from 15 minutes on"
    return Finding(check="clock", node=node, status="fault" if skew >= BROKEN_SKEW else "warning", text=text, fix=fix)


def disks(node: str, facts: Facts, enough: float) -> list[Finding]:
    """Judge free disk space, each file system once. `enough`: bytes."""
    findings, seen = [], set()
    for purpose, disk in facts.disks.items():
        if disk.device in seen:
            continue
        seen.add(disk.device)
        text = f"{disk.folder} ({purpose}): {_bytes(disk.free)} of {_bytes(disk.size)} free"
        is_full = disk.free < enough / 10 or (purpose == "Ray" and _used(disk) > RAY_STOPS_AT)
        if is_full:
            reason = "it is full: free some" if disk.free < enough / 10 else "Ray spills nothing above 95 %: free some"
            fix = f"{reason}, or start Ray with --temp-dir on another disk" if purpose == "Ray" else reason
            findings.append(Finding(check="disk", node=node, status="fault", text=text, fix=fix))
        elif disk.free < enough:
            findings.append(Finding(check="disk", node=node, status="warning", text=text, fix="free some"))
        else:
            findings.append(Finding(check="disk", node=node, status="OK", text=text))
    return findings


def shared_memory(node: str, facts: Facts, object_store: float | None) -> Finding:
    """Judge /dev/shm, and Ray's object store in it. `object_store`: its bytes; None if Ray does not run."""
    shared = facts.shared_memory
    if shared is None:
        text, fix = "there is no /dev/shm", "mount it: without it Ray keeps its objects on disk, which is slow"
        return Finding(check="shared memory", node=node, status="warning", text=text, fix=fix)
    store = "" if object_store is None else f"; Ray's object store has {_bytes(object_store)}"
    text = f"{_bytes(shared.free)} of {_bytes(shared.size)} free{store}"
    if shared.free < ENOUGH_SHARED_MEMORY:
        status = "fault" if shared.free < LEAST_SHARED_MEMORY else "warning"
        fix = "give the container more by --shm-size, or on Kubernetes an emptyDir of medium Memory at /dev/shm"
        return Finding(check="shared memory", node=node, status=status, text=text, fix=fix)
    if object_store is not None and object_store < LEAST_OBJECT_STORE:
        fix = "start Ray with more --object-store-memory: slices of images wait there"
        return Finding(check="shared memory", node=node, status="warning", text=text, fix=fix)
    return Finding(check="shared memory", node=node, status="OK", text=text)


def descriptors(node: str, facts: Facts) -> Finding:
    """Judge how many files and connections a process may have open."""
    limit = facts.num_descriptors
    text = "unlimited" if limit < 0 else f"{limit:,} open files in a process"
    if limit < 0 or limit >= ENOUGH_DESCRIPTORS:
        return Finding(check="file descriptors", node=node, status="OK", text=text)
    status = "fault" if limit < LEAST_DESCRIPTORS else "warning"
    fix = "raise it before `ray start`: ulimit -n 65536"
    return Finding(check="file descriptors", node=node, status=status, text=text, fix=fix)


def credentials(facts: Mapping[str, Facts], *, needs_s3: bool) -> list[Finding]:
    """Say which credentials are where, by name. Machines should have the same."""
    nodes_of: dict[tuple[str, ...], list[str]] = {}
    for node, one in facts.items():
        nodes_of.setdefault(one.credentials, []).append(node)
    findings = []
    for names, nodes in nodes_of.items():
        node = "" if len(nodes_of) == 1 else ", ".join(nodes)
        text = f"present: {', '.join(names)}" if names else "none in the environment or in files"
        if needs_s3 and not any(name.startswith(("AWS_", "~/.aws")) for name in names):
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, unless the machine has a role for the store"
            findings.append(Finding(check="credentials", node=node, status="warning", text=text, fix=fix))
        else:
            findings.append(Finding(check="credentials", node=node, status="OK", text=text))
    if len(nodes_of) > 1:
        text, fix = "they differ between machines", "give all of them the same"
        findings.append(Finding(check="credentials", status="warning", text=text, fix=fix))
    return findings


def unreached(node: str, others: Sequence[str], num_asked: int) -> Finding:
    """Judge whether a machine reaches the others at ports that the system chose."""
    if not others:
        text = f"reaches {num_asked} other machine{'s' if num_asked != 1 else ''} at ports that the system chooses"
        return Finding(check="ports", node=node, status="OK", text=text)
    fix = "open all TCP ports between the machines: Ray, gloo and NCCL choose theirs"
    return Finding(check="ports", node=node, status="fault", text=f"does not reach {', '.join(others)}", fix=fix)


def _used(disk: Disk) -> float:
    return 1 - disk.free / max(disk.size, 1)


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
