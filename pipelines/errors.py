"""Exceptions by which a command reports that its work failed although its arguments were valid."""

from typing import Any


class PartlyDone(Exception):  # noqa: N818 (not an error in the program)
    """Ends the command with this message and `exit_code`. The command still prints `result`."""

    def __init__(self, message: str, result: dict[str, Any], exit_code: int = 1) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


class WorkFailedError(Exception):
    """Work failed for a reason that may be temporary: the same command may succeed later. One line. Exit code 1."""
