"""The page's server as a user starts it, for tests: a process of its own, on a free port, stopped by its id."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from groupvit.checkpoint import save
from tests.support.small_model import distinct_model

STARTING_SECONDS = 150
NOTICE = "CC BY 4.0 <of the tests>"
"""Of the weights."""
COMMAND = (sys.executable, "-m", "pipelines.cli", "app")


def save_checkpoint(folder: Path) -> Path:
    """A small two-stage model whose groups and classes differ."""
    segmentation = {"short_side": 64, "window": None, "background_threshold": 0.12}
    save(folder, distinct_model(), state={"config": {"segmentation": segmentation}, "license": NOTICE})
    return folder


def blocks(height: int = 96, width: int = 128, seed: int = 3) -> Image.Image:
    """Squares of many colours: the small model sees several things in them."""
    small = np.random.default_rng(seed).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(small.repeat(16, axis=0).repeat(16, axis=1))


def portrait() -> Image.Image:
    """512 x 1024, in which the small model sees "dog" and "boat", each on a fair part."""
    return blocks(128, 64, seed=5).resize((512, 1024), Image.Resampling.NEAREST)


@contextlib.contextmanager
def running(
    *flags: str, command: Sequence[str] = COMMAND, cwd: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of the page and its process, which is stopped at the end."""
    hidden = ("RAY_ADDRESS",) if command == COMMAND else ("RAY_ADDRESS", "PYTHONPATH")  # no other cluster
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    started = [*command, "--port", "0", *flags]
    process = subprocess.Popen(
        started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd
    )
    watchdog = threading.Timer(STARTING_SECONDS, process.kill)
    watchdog.start()
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        watchdog.cancel()
        assert line.startswith("GroupViT is at http://"), f"{line!r} {process.stderr.read()}"
        yield line.split()[3], process
    finally:
        watchdog.cancel()
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Ctrl-C; then what is left of it is killed."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=60)
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after so long."""
    deadline = time.monotonic() + seconds
    while (alive := [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
    return alive
