"""A storm: events of all kinds in an order that a seed fixes, at steps that it fixes, upon a run that trains."""

import dataclasses
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.weather import Cluster, kill

KINDS = ("worker", "data task", "node", "driver", "controller", "drain", "join", "store", "tracking")
_PROCESSES = {"worker": "ray::RayTrainWorker", "data task": "ray::MapWorker", "controller": "ray::TrainController"}
NUM_STEPS = 60
_FIRST_STEP, _LAST_STEP = 4, 50
_STORE_SECONDS, _TRACKING_SECONDS = 5.0, 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """What happened, and when."""

    kind: str
    step: int
    """Number of steps that were done."""
    detail: str


def plan(seed: int) -> list[tuple[int, str]]:
    """Steps with kinds, ascending by step. A node comes after the first that goes, so that there is always room."""
    draw = random.Random(seed)
    kinds = list(KINDS)
    draw.shuffle(kinds)
    kinds.remove("join")
    first_loss = min(kinds.index("node"), kinds.index("drain"))
    kinds.insert(first_loss + 1, "join")
    steps = sorted(draw.sample(range(_FIRST_STEP, _LAST_STEP), len(kinds)))
    return list(zip(steps, kinds, strict=True))


class Storm:
    """Plays the plan of a seed upon a run. `steps_done` says how far the run is; `command` starts it again."""

    def __init__(
        self, cluster: Cluster, seed: int, command: list[str], log: Path, steps_done: Callable[[], int]
    ) -> None:
        self._cluster, self._draw, self._command, self._log = cluster, random.Random(seed), command, log
        self._plan, self._steps_done = plan(seed), steps_done
        self._away: list[threading.Timer] = []
        self.events: list[Event] = []

    def blow(self, seconds: float) -> None:
        """Starts the run, and returns when it has ended well. AssertionError with its log if it does not."""
        deadline = time.monotonic() + seconds
        driver = self._start()
        for step, kind in self._plan:
            while (done := self._steps_done()) < step:
                assert driver.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, f"{self.events}\n{self._log.read_text()}"
                time.sleep(0.1)
            detail = "ended and started again" if kind == "driver" else self._happen(kind)
            if kind == "driver":
                kill(self._cluster.head, "pipelines.cli pretrain")
                driver.wait()
                driver = self._start()
            self.events.append(Event(kind=kind, step=done, detail=detail))
            print(f"step {done}: {kind}: {detail}", flush=True)
        for server in self._away:
            server.join()
        assert driver.wait(timeout=max(deadline - time.monotonic(), 1)) == 0, self._log.read_text()

    def _start(self) -> "subprocess.Popen[str]":
        return self._cluster.start_on_head(*self._command, log=self._log)

    def _happen(self, kind: str) -> str:
        cluster = self._cluster
        if kind in _PROCESSES:
            machines = [cluster.head, *cluster.nodes]
            self._draw.shuffle(machines)
            hit = next((machine.name for machine in machines if kill(machine, _PROCESSES[kind], most=1)), None)
            return f"kill -9 on {hit}" if hit else "there was none"
        if kind == "node":
            node = self._draw.choice(cluster.nodes)
            cluster.remove(node)
            return f"{node.name} gone at once"
        if kind == "drain":
            node = self._draw.choice(cluster.nodes)
            cluster.drain(node)
            cluster.nodes.remove(node)
            return f"{node.name} has a minute"
        if kind == "join":
            return f"{cluster.add_node().name} is there"
        server, start, seconds = {
            "store": (cluster.store, cluster.start_store, _STORE_SECONDS),
            "tracking": (cluster.tracking, cluster.start_mlflow, _TRACKING_SECONDS),
        }[kind]
        kill(server, "weed" if kind == "store" else "mlflow")
        back = threading.Timer(seconds, start)  # the steps and the storm go on meanwhile
        back.start()
        self._away.append(back)
        return f"away for {seconds:g} s"
