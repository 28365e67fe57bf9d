"""A Ray cluster on this machine for the tests of a module."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipelines.cluster.session import shut_down


@contextmanager
def local_cluster(num_cpus: int) -> Iterator[None]:
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        shut_down()
