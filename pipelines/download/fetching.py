"""Runs img2dataset: turns each shard of a list into a raw shard, in processes of this machine or of a Ray cluster.

img2dataset provides the downloader, its statistics, its parquet writer and its Ray distributor. This module provides an
opener that enforces FetchLimits, a resizer that leaves images unchanged, and a writer that publishes only complete
shards.
"""

import concurrent.futures
import io
import multiprocessing
import multiprocessing.connection
import os
import shutil
import tempfile
import threading
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.cluster.causes import root_cause
from pipelines.dataset.raw_shards import TEMPORARY, shard_name
from pipelines.download.consent import Consent, consent_handlers
from pipelines.download.progress import ShardProgress
from pipelines.download.safe_http import FetchError, FetchLimits, make_opener

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # img2dataset imports albumentations, which looks for updates

from img2dataset.distributor import ray_distributor
from img2dataset.downloader import Downloader
from img2dataset.downloader import is_disallowed as is_disallowed
from img2dataset.writer import ParquetSampleWriter
from PIL import Image, UnidentifiedImageError
from pyarrow import fs

from groupvit.image_metadata import without_metadata
from pipelines import storage

SHARD_DIGITS = 5
_SHARDS_PER_PROCESS = 100  # decoder and resolver libraries leak a little; starting a process takes seconds
Task = tuple[int, str]
"""Number of a shard, and the URI of its rows: an Arrow file, which the downloader removes."""


class GuardedDownloader(Downloader):
    """img2dataset's downloader with `limits` and `consent` enforced."""

    def __init__(
        self,
        *,
        limits: FetchLimits,
        consent: Consent,
        output_folder: str,
        columns: list[str],
        rows_per_shard: int,
        num_threads: int,
        timeout: float,
        retries: int,
        opt_out_directives: list[str] | None,
    ) -> None:
        super().__init__(
            sample_writer_class=WholeShardWriter,
            resizer=as_fetched,
            thread_count=num_threads,
            save_caption=True,
            extract_exif=False,
            output_folder=output_folder,
            column_list=columns,
            timeout=timeout,
            number_sample_per_shard=rows_per_shard,
            oom_shard_count=SHARD_DIGITS,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=retries,
            user_agent_token=consent.user_agent_token,
            disallowed_header_directives=opt_out_directives,
        )
        self.limits, self.consent = limits, consent

    def download_shard(self, row: Task) -> None:
        # img2dataset downloads through the process-wide urllib opener. These processes do nothing else.
        urllib.request.install_opener(make_opener(self.limits, *consent_handlers(self.consent, self.limits)))
        super().download_shard(row)


def as_fetched(
    image: io.BytesIO, boxes: object = None
) -> tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]:
    """Resizer for img2dataset that changes nothing.

    Reads only the header, to reject files that are not images, e.g. HTML pages. Curation checks the rest.

    Returns:
        (bytes, width, height, original width, original height, error). Sizes are None if the header declares more
        pixels than Pillow accepts.
    """
    content = image.getvalue()
    width = height = None
    try:
        pixels = io.BytesIO(without_metadata(content))  # Pillow rejects some files because of their metadata
        with warnings.catch_warnings(action="ignore"), Image.open(pixels) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        pass
    except UnidentifiedImageError:
        return None, None, None, None, None, str(FetchError("not_an_image", f"starts with {content[:8]!r}"))
    except Exception as error:  # an invalid header can make Pillow's readers raise any exception
        return None, None, None, None, None, str(FetchError("not_an_image", f"{type(error).__name__}"))
    return content, width, height, width, height, None


class WholeShardWriter(ParquetSampleWriter):
    """Writes a shard to a temporary place and moves it to its final one when it is complete."""

    def __init__(
        self,
        shard_id: int,
        output_folder: str,
        save_caption: bool,
        oom_shard_count: int,
        schema: Any,
        encode_format: str,
    ) -> None:
        filesystem, folder = storage.resolve(output_folder)
        # Renaming a local file requires the temporary file to be on the same disk.
        beside = f"{folder}/{TEMPORARY}" if isinstance(filesystem, fs.LocalFileSystem) else None
        self._work = tempfile.mkdtemp(prefix="groupvit-shard-", dir=beside)
        self._target = storage.join(output_folder, shard_name(shard_id))
        self._failure: Exception | None = None
        self._progress = ShardProgress(output_folder, shard_id)
        super().__init__(shard_id, self._work, save_caption, oom_shard_count, schema, encode_format)
        self._written = Path(self._work) / shard_name(shard_id)

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: Mapping[str, Any]) -> None:
        try:
            super().write(img_str, key, caption, meta)
        except Exception as error:
            self._failure = self._failure or error  # img2dataset would go on with the next row and lose this one
            raise
        self._progress.add(succeeded=meta["status"] == "success")

    def close(self) -> None:
        try:
            super().close()
            if self._failure is not None:
                raise self._failure
            self._publish()
        finally:
            self._progress.close()
            shutil.rmtree(self._work, ignore_errors=True)

    def _publish(self) -> None:
        filesystem, path = storage.resolve(self._target)
        if isinstance(filesystem, fs.LocalFileSystem):
            with self._written.open("rb") as file:
                os.fsync(file.fileno())  # the shard must be on disk before its statistics, which say that it exists
            os.replace(self._written, path)
            return
        storage.copy(str(self._written), self._target)


def run_on_this_machine(downloader: GuardedDownloader, tasks: Iterator[Task], num_processes: int) -> None:
    """Runs the tasks in processes of this machine. Skips shards that fail; the caller finds out which are missing.

    img2dataset's own pool would wait forever for a shard whose process was killed (out of memory), and it writes all
    tasks first.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        num_processes, context, initializer=_end_with_parent, max_tasks_per_child=_SHARDS_PER_PROCESS
    ) as pool:
        under_way: set[concurrent.futures.Future[Any]] = set()
        try:
            for task in tasks:
                under_way.add(pool.submit(downloader, task))
                if len(under_way) > num_processes:
                    done, under_way = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in under_way:
                future.result()
        except concurrent.futures.process.BrokenProcessPool:
            print("a process was killed while it downloaded: memory may have run out", flush=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(downloader: GuardedDownloader, tasks: Iterator[Task], num_processes: int) -> None:
    """Runs the tasks on the cluster that RAY_ADDRESS names, else on a local one, with one CPU per shard.

    img2dataset's distributor submits all shards at once, so the files with their rows exist until the shards are done.
    """
    from ray.exceptions import RayError

    from pipelines.cluster.session import ray_cluster  # Ray takes seconds to import

    with ray_cluster(least_cpus=num_processes):
        try:
            ray_distributor(num_processes, downloader, tasks, None, 0)
        except RayError as error:
            print(f"a task of the cluster was lost: {root_cause(error).line}", flush=True)


def _end_with_parent() -> None:
    """Exits this pool process when its parent dies. Otherwise it would wait forever for its next task."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
