"""Scoring goes on when a worker is killed, and its sums stay exact."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from groupvit.config import SegmentationConfig
from pipelines.benchmarks.scenes import open_scenes
from pipelines.evaluation.scoring import SCENES_PER_BLOCK, Method, Scorer, Scores, Task, score_all
from pipelines.evaluation.workers import model_workers
from tests.support.local_cluster import local_cluster
from tests.support.scenes_folder import write_scenes
from tests.support.small_model import one_stage_model

pytestmark = pytest.mark.chaos

NUM_SCENES = 10 * SCENES_PER_BLOCK


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster(2):
        yield


def workers_of_this_test() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "_ModelWorker" in " ".join(process.cmdline())
    ]


def test_a_killed_worker_is_replaced_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    model = one_stage_model()
    dataset = open_scenes(str(write_scenes(tmp_path / "scenes", NUM_SCENES, row_group_size=20)))
    segmentation = SegmentationConfig(short_side=64, window=None, scales=(1.0, 2.0, 4.0), flip=True)
    method = Method(name="groups", segmentation=segmentation, thresholds=(0.05, 0.1, 0.15))
    task = Task(dataset=dataset, methods=(method,), details=True)

    expected, alone = Scores(), Scorer(model, num_threads=1)
    for block in dataset.blocks(range(NUM_SCENES), 7):
        expected.add(alone.score(task, block))

    killed: list[int] = []
    finished = threading.Event()

    def kill_the_first_busy_worker() -> None:
        while not finished.is_set() and not killed:
            for process in workers_of_this_test():
                if process.cpu_times().user > 0 and ".do" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_the_first_busy_worker, daemon=True)
    with model_workers(Scorer, model, 2) as workers:
        killer.start()
        scores = score_all(workers, task, range(NUM_SCENES))
        finished.set()
    killer.join()
    assert killed, "no worker was caught at work"
    assert scores.confusion.keys() == expected.confusion.keys()
    for key, matrix in expected.confusion.items():
        np.testing.assert_array_equal(scores.confusion[key], matrix)
    assert scores.usage == expected.usage and scores.predictions == expected.predictions
