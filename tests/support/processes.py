"""Processes of a Ray cluster on this machine, found by the names that Ray gives them."""

import psutil


def ray_processes(name: str = "RayTrainWorker", below: int | None = None) -> list[psutil.Process]:
    """Returns the live processes with `name` in their title that process `below` (None: this one) has started."""
    found = []
    for process in psutil.Process(below).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()[:1]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
