"""How a command says that it did not do all it was asked to do, though nothing was wrong with what was asked."""

from typing import Any


class PartlyDone(Exception):  # noqa: N818 (it is no mistake of the program)
    """The command ends with this message and `exit_code`; its result is printed all the same."""

    def __init__(self, message: str, result: dict[str, Any], exit_code: int = 1) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


class WorkFailedError(Exception):
    """Work that failed, in one line, in a way that may pass: the same command may succeed later. Exit code 1."""
