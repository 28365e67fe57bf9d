"""The number of workers of a run: fixed, or a range."""

import re


def worker_range(num_workers: int | str) -> tuple[int, int]:
    """Returns the smallest and the largest number of workers. Raises ValueError unless it is a number, or MIN:MAX."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", str(num_workers))
    if found is None:
        raise ValueError(f"training.num_workers={num_workers} is neither a number nor a range: give e.g. 4, or 2:8")
    least, most = int(found[1]), int(found[2] or found[1])
    if least < 1:
        raise ValueError(f"training.num_workers={num_workers} is too small: give at least 1")
    if least > most:
        raise ValueError(f"training.num_workers={num_workers} is not a range: give {most}:{least}")
    return least, most
