import threading
import time

import ray
from ray.data import DataContext

from tests.support.local_cluster import local_cluster


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "iter_threaded"]


def rows_with_a_pause(batch):
    for row in range(5):
        yield {"id": [row]}
        time.sleep(1)


def test_nothing_reads_from_a_cluster_that_is_shut_down(monkeypatch):
    reading = []
    shutdown = ray.shutdown

    def recorded():
        reading.append(readers())
        shutdown()

    monkeypatch.setattr(ray, "shutdown", recorded)
    with local_cluster(1):
        monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 1)  # byte: every row is a block
        (shard,) = ray.data.range(1).map_batches(rows_with_a_pause).streaming_split(1, equal=False)
        rows = iter(shard.iter_batches(batch_size=1))
        next(rows)
        assert readers()
        del rows  # its thread waits for another
    assert reading == [[]]
