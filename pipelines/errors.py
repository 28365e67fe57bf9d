"""How a command says that its work failed, was done in part or stopped, or that a field of its config is too small."""

from typing import Any


class PartlyDone(Exception):  # noqa: N818 (not an error in the program)
    """Ends the command with this message and `exit_code`. The command still prints `result`."""

    def __init__(self, message: str, result: dict[str, Any], exit_code: int = 1) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


class Stopped(Exception):  # noqa: N818 (not an error in the program)
    """Ends the command because its user, or its machine, said so. The message, one line, says what is kept."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""


class WorkFailedError(Exception):
    """Work failed for a reason that may be temporary: the same command may succeed later. One line. Exit code 1."""


class DrainedError(Exception):
    """The workers have left their group after a step, with a checkpoint. This is not a failure."""


def require_at_least(config: object, group: str = "", /, **least: float) -> None:
    """Raises ValueError for the first field of `config` that is below its least value, or NaN. None passes.

    `group` precedes the name of the field in the message, like "training.".
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{group}{name}={value} is too small: give at least {bound}")
