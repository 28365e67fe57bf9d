"""The limit of a start, in an actor as Ray Train's controller is one."""

import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError

from pipelines.training.failures import StartLimit

NUM_CPUS = 2


class Controller:
    """Starts workers, of which one may never come."""

    def __init__(self, limit: StartLimit) -> None:
        self._limit = limit

    def start(self, *, comes_to_an_end: bool) -> str:
        with self._limit.on_worker_group_start():
            if comes_to_an_end:
                self._limit.before_init_train_context([])
            time.sleep(8)
        return "started"


@pytest.mark.parametrize("comes_to_an_end", [True, False])
def test_a_start_that_hangs_ends_the_controller(cluster: None, tmp_path: Path, comes_to_an_end: bool) -> None:
    said = tmp_path / "said"
    limit = StartLimit(1.0, said.write_text)  # type: ignore[arg-type]
    controller = ray.remote(num_cpus=0)(Controller).remote(limit)
    result = controller.start.remote(comes_to_an_end=comes_to_an_end)
    if comes_to_an_end:
        assert ray.get(result) == "started"
        assert not said.exists()
    else:
        with pytest.raises(ActorDiedError):
            ray.get(result)
        assert said.read_text().startswith("the workers have not started within 1 s")
