"""What Ray makes of errors is Ray's own: each comes out of a real task."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from ray.data import ActorPoolStrategy

from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import ray_cluster
from pipelines.errors import WorkFailedError
from pipelines.storage import StorageError, StorageRefusedError
from pipelines.training.failures import FailureLimit

# Starting Ray's processes takes minutes on a machine that is busy.
pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(900)]

NUM_CPUS = 3
KINDS: dict[str, Exception] = {
    "damaged": ValueError("a.parquet: is damaged;\n  copy it again"),
    "column": KeyError("captions"),
    "access": PermissionError(13, "Permission denied", "/data/a.parquet"),
    "encoding": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "refused": StorageRefusedError("s3://data: access is refused"),
    "away": StorageError("s3://data: http://store fails (timeout)"),
    "memory": MemoryError(),
    "disk": OSError(28, "No space left on device", "/data"),
}
LINES = {
    "damaged": "a.parquet: is damaged; copy it again",
    "column": "KeyError: 'captions'",
    "access": "[Errno 13] Permission denied: '/data/a.parquet'",
    "encoding": "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    "refused": "s3://data: access is refused",
    "away": "s3://data: http://store fails (timeout)",
    "memory": "MemoryError",
    "disk": "[Errno 28] No space left on device: '/data'",
}
LASTING = ("damaged", "column", "access", "encoding", "refused")


def fail(kind: str) -> None:
    try:
        raise OSError("what a library found")
    except OSError as error:
        raise KINDS[kind] from error


class Failing:
    def __init__(self, kind: str, *, at_once: bool = False) -> None:
        self._kind = kind
        if at_once:
            fail(kind)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        fail(self._kind)
        yield batch


def from_actor(kind: str, *, at_once: bool = False, split: bool = False) -> None:
    rows = ray.data.range(1).map_batches(
        Failing,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(kind,),
        fn_constructor_kwargs={"at_once": at_once},
        compute=ActorPoolStrategy(size=1),
    )
    for _ in (rows.streaming_split(1)[0] if split else rows).iter_batches():
        pass


def from_task(kind: str) -> None:
    ray.get(ray.remote(fail).options(max_retries=0).remote(kind))


def from_data_task(kind: str) -> None:
    for _ in ray.data.range(1).map_batches(lambda batch: fail(kind)).iter_batches():
        pass


def failure(make: Any, *args: Any, **kwargs: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of any kind)
        make(*args, **kwargs)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_task_is_told_in_its_own_line(kind: str) -> None:
    cause = root_cause(failure(from_task, kind))
    assert (cause.line, cause.is_lasting) == (LINES[kind], kind in LASTING)


@pytest.mark.parametrize(
    ("kind", "how"),
    [("damaged", {"split": True}), ("column", {}), ("access", {"at_once": True})],
)
def test_the_error_of_an_actor_of_ray_data_is_told_in_its_own_line(kind: str, how: dict[str, bool]) -> None:
    cause = root_cause(failure(from_actor, kind, **how))
    assert (cause.line, cause.is_lasting) == (LINES[kind], kind in LASTING)


@pytest.mark.parametrize("kind", ["column", "access", "damaged"])
def test_the_advice_that_ray_data_adds_is_left_out(kind: str) -> None:
    cause = root_cause(failure(from_data_task, kind))
    assert (cause.line, cause.is_lasting) == (LINES[kind], True)


def test_a_process_that_dies_may_be_started_again() -> None:
    def die() -> None:
        os._exit(1)

    cause = root_cause(failure(lambda: ray.get(ray.remote(die).options(max_retries=0).remote())))
    assert not cause.is_lasting
    assert cause.line.startswith("The worker died unexpectedly")


def test_of_several_workers_the_one_with_a_lasting_error_tells() -> None:
    damaged = failure(from_task, "damaged")
    failures: dict[int, Exception] = {0: RuntimeError("Connection closed by peer"), 1: damaged}
    assert root_cause(ray.train.WorkerGroupError("both", failures)).line == LINES["damaged"]
    with pytest.raises(ValueError, match="is damaged"):
        FailureLimit(1).after_exception(None, failures)
    assert root_cause(ray.train.ControllerError(ValueError("is damaged"))).line == "is damaged"
    # Ray starts these again: nothing is raised.
    FailureLimit(1).after_exception(None, {0: RuntimeError("out of memory"), 1: failure(from_task, "away")})


@pytest.mark.parametrize(
    ("kind", "error"),
    [("column", ValueError), ("refused", StorageRefusedError), ("away", StorageError), ("memory", WorkFailedError)],
)
def test_a_cluster_that_is_left_by_an_error_of_a_task_raises_its_root_cause(kind: str, error: type[Exception]) -> None:
    def work() -> None:
        with ray_cluster():
            from_task(kind)

    raised = failure(work)
    assert (type(raised), str(raised)) == (error, LINES[kind])


def test_an_error_without_ray_stays_as_it_is() -> None:
    error = RuntimeError("ours")

    def work() -> None:
        with ray_cluster():
            raise error

    assert failure(work) is error
