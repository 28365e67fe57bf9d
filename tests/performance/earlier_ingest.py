"""The ingest of an earlier version, from the repository's history, as a process that reads the same images.

Its code is imported from a folder of its own, also in the processes that read: they join the cluster of the benchmark.
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
EARLIER = "42be6e0fe2"
"""Commit of the version whose modules lay side by side in `pipelines/`."""

_CODE = """
import dataclasses, os, sys
import ray
from pipelines.config import DataConfig, IngestConfig, TrainingConfig
from pipelines.experiments import gcc_yfcc_30e
from pipelines.ingest import iter_slices, training_slices

address, folder, uri, num_processes, window_size, slice_size = sys.argv[1:]
ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": folder}}, log_to_driver=False)
ingest = IngestConfig(window_size=int(window_size), slice_size=int(slice_size), max_processes=int(num_processes))
training = TrainingConfig(num_steps=200_000)
config = dataclasses.replace(gcc_yfcc_30e(), data=DataConfig(sources=(uri,)), ingest=ingest, training=training)
(shard,) = training_slices(config, first_step=0).streaming_split(1, equal=False)
slices = iter_slices(shard)
for _ in sys.stdin:
    next(slices)
    print("done", flush=True)
slices.close()
ray.shutdown()
os._exit(0)  # Ray's threads may keep an interpreter from ending
"""


def extract(folder: Path) -> bool:
    """Write the earlier version's packages to a folder. False: the history of this clone does not reach it."""
    command = ["git", "-C", str(ROOT), "archive", EARLIER, "groupvit", "pipelines"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        return False
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return True


def slices(
    folder: Path, address: str, uri: str, *, num_processes: int, window_size: int, slice_size: int
) -> Iterator[None]:
    """Yield whenever the process has got a slice of a data set through the cluster at that address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, address, str(folder), uri, *map(str, (num_processes, window_size, slice_size))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        while True:
            process.stdin.write("next\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise RuntimeError(f"the earlier version ended with {process.wait()}")
            yield
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
