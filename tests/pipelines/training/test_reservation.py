"""Ray's own coordinator forgets the reservation of a driver that is gone when the next one starts."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from pipelines.runs.folder import RunFolder
from pipelines.training.reservation import take_over

NUM_CPUS = 2
FIRST, SECOND = "0" * 31 + "1", "0" * 31 + "2"


def test_the_next_driver_takes_over(cluster: None, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    take_over(run, FIRST)  # there was none before
    coordinator: Any = get_or_create_autoscaling_coordinator()
    reserve = coordinator.request_resources.remote
    ray.get(reserve(requester_id=f"train-{FIRST}", resources=[{"CPU": 1.0}], expire_after_s=180))
    reserved = coordinator.get_reserved_resources.remote
    assert ray.get(reserved(f"train-{FIRST}"))
    take_over(run, SECOND)
    assert ray.get(reserved(f"train-{FIRST}")) == {}
    take_over(run, SECOND)  # what Ray does not know of is no error


def test_a_file_with_something_else_is_refused(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "reservation.json").write_text('{"requester": "data-1"}')
    with pytest.raises(ValueError, match=r"reservation.json is corrupted .*: delete it"):
        take_over(RunFolder(str(tmp_path)), FIRST)
