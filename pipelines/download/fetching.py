"""img2dataset at work: one shard of a list in, one raw shard out, in processes of this machine or of a Ray cluster.

Of img2dataset come the downloader, its statistics, its parquet writer and its Ray distributor. Ours are what it is
given: an opener that keeps to FetchLimits, a resizer that leaves images as they came, a writer whose shards appear
whole.
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

from pipelines.dataset.raw_shards import TEMPORARY, shard_name
from pipelines.download.progress import ShardProgress
from pipelines.download.safe_http import FetchError, FetchLimits, make_opener

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # which img2dataset imports, and which looks for updates when imported

from img2dataset.distributor import ray_distributor
from img2dataset.downloader import Downloader
from img2dataset.downloader import is_disallowed as is_disallowed
from img2dataset.writer import ParquetSampleWriter
from PIL import Image, UnidentifiedImageError
from pyarrow import fs

from groupvit.image_metadata import without_metadata
from pipelines import storage

SHARD_DIGITS = 5
_SHARDS_PER_PROCESS = 100  # decoders' and resolvers' libraries leak a little; starting a process takes seconds
Task = tuple[int, str]
"""Number of a shard, and the URI of its rows: an Arrow file, which the downloader removes."""


class GuardedDownloader(Downloader):
    """img2dataset's downloader, within `limits`."""

    def __init__(
        self,
        *,
        limits: FetchLimits,
        output_folder: str,
        columns: list[str],
        rows_per_shard: int,
        num_threads: int,
        timeout: float,
        retries: int,
        user_agent_token: str | None,
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
            user_agent_token=user_agent_token,
            disallowed_header_directives=opt_out_directives,
        )
        self.limits = limits

    def download_shard(self, row: Task) -> None:
        # Its downloads go through urllib's opener of the process: those that run this do nothing else.
        urllib.request.install_opener(make_opener(self.limits))
        super().download_shard(row)


def as_fetched(
    image: io.BytesIO, boxes: object = None
) -> tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]:
    """img2dataset's resizer that changes nothing: (bytes, width, height, original width, original height, error).

    Only the header is read: whether it is an image is found out here, so that no pages of HTML are kept; the rest is
    curation's work. Sizes are None where the header promises more pixels than Pillow will hear of.
    """
    content = image.getvalue()
    width = height = None
    try:
        pixels = io.BytesIO(without_metadata(content))  # Pillow refuses files for what else is in them
        with warnings.catch_warnings(action="ignore"), Image.open(pixels) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        pass
    except UnidentifiedImageError:
        return None, None, None, None, None, str(FetchError("not_an_image", f"starts with {content[:8]!r}"))
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them
        return None, None, None, None, None, str(FetchError("not_an_image", f"{type(error).__name__}"))
    return content, width, height, width, height, None


class WholeShardWriter(ParquetSampleWriter):
    """Writes a shard beside its place and moves it there when it is complete."""

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
        # Where files are renamed, the temporary one has to be on the same disk.
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
            self._failure = self._failure or error  # img2dataset goes on with the next row, and this one would be lost
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
                os.fsync(file.fileno())  # its statistics, which say that it is there, must not outlive it
            os.replace(self._written, path)
            return
        storage.copy(str(self._written), self._target)


def run_on_this_machine(downloader: GuardedDownloader, tasks: Iterator[Task], num_processes: int) -> None:
    """Shards that fail are left out; the caller sees which are not there.

    img2dataset's own pool would wait for ever for a shard whose process was killed (memory), and writes all tasks
    first.
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
            print("a process was killed while it downloaded, for want of memory perhaps", flush=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(downloader: GuardedDownloader, tasks: Iterator[Task], num_processes: int) -> None:
    """The same over the cluster that RAY_ADDRESS names, else one of this machine; one CPU per shard.

    img2dataset's distributor hands over all shards at once, so their lists lie beside them until they are done.
    """
    from ray.exceptions import RayError

    from pipelines.cluster.causes import root_cause
    from pipelines.cluster.session import ray_cluster  # Ray takes seconds to import

    with ray_cluster(least_cpus=num_processes):
        try:
            ray_distributor(num_processes, downloader, tasks, None, 0)
        except RayError as error:
            print(f"a task of the cluster was lost: {root_cause(error).line}", flush=True)


def _end_with_parent() -> None:
    """A process of the pool whose parent was killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
