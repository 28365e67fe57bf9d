"""Finds out why work on Ray failed: the root error, inside what Ray wraps around it, and whether it may be temporary.

Ray Data keeps only the text of an error that an actor raised, so the text is parsed. Nothing here imports Ray.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping

from pipelines.errors import WorkFailedError
from pipelines.storage import StorageError, StorageRefusedError

_LASTING = (
    *(ValueError, LookupError, TypeError, AttributeError, NotImplementedError, AssertionError, ImportError),
    *(ArithmeticError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, StorageRefusedError),
)
"""Permanent errors, of data, access or code. Repeating the work gives the same error."""
_SAYS_ALL = (ValueError, OSError, WorkFailedError)
"""Errors whose message is clear without the name of the class."""
_COLORS = re.compile(r"\x1b\[\d*m")
_ERROR_LINE = re.compile(r"([A-Za-z_][\w.]*)(?:\(\w+\))?(?:: (.*))?")
_CHAIN = re.compile(
    r"^(?:The above exception was the direct cause of|During handling of the above exception, another) .*", re.MULTILINE
)
_OUT_OF_DISK = "OutOfDiskError"
_ADVICE_OF_RAY = re.compile(r"(?:\n|\\n|^)Failed to apply UDF transform after .*?(?=['\"]?$)", re.DOTALL)
"""Text that Ray Data appends to the message of an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """Root cause of a failure."""

    kind: str
    """Name of the error's class, with its module unless it is built in."""
    message: str
    """One line; may be empty."""

    @property
    def line(self) -> str:
        """Message for the user, in one line."""
        found = _class_named(self.kind)
        if self.message and (self.kind.startswith("ray.") or (found is not None and issubclass(found, _SAYS_ALL))):
            return self.message
        name = self.kind.rpartition(".")[2]
        return f"{name}: {self.message}" if self.message else name

    @property
    def is_lasting(self) -> bool:
        """Whether repeating the work would fail in the same way."""
        found = _class_named(self.kind)
        return found is not None and issubclass(found, _LASTING)

    def to_error(self) -> Exception:
        """Return the error a command raises: a storage error as it is, ValueError if it is permanent, else
        WorkFailedError."""
        found = _class_named(self.kind)
        if found is not None and issubclass(found, StorageError):
            return found(self.line)
        return ValueError(self.line) if self.is_lasting else WorkFailedError(self.line)


def root_cause(error: BaseException) -> Cause:
    """Return the error that our own code, or a library it uses, raised. Of a chain, this is the last, which says most.

    If several workers failed, prefer a permanent error: the other workers only lost their connection to that one.
    """
    failures = getattr(error, "worker_failures", None) if is_of_ray(error) else None
    if isinstance(failures, Mapping) and failures:
        causes = [root_cause(failure) for failure in failures.values()]
        return next((cause for cause in causes if cause.is_lasting), causes[0])
    inner = getattr(error, "controller_failure", None) if is_of_ray(error) else None
    if isinstance(inner, BaseException):
        return root_cause(inner)
    if not is_of_ray(error):
        return Cause(kind=_name(type(error)), message=_one_line(str(error)))
    text = _COLORS.sub("", str(error))
    if "running low on memory" in text:
        return Cause(kind=_name(type(error)), message="a process was killed because its machine ran out of memory")
    if _OUT_OF_DISK in text or type(error).__name__ == _OUT_OF_DISK:
        return Cause(kind=f"ray.exceptions.{_OUT_OF_DISK}", message=_disk_full(text))
    found = list(_errors_in(text))
    own = [cause for cause in found if not cause.kind.startswith("ray.")]
    if own:
        return own[-1]
    return Cause(kind=_name(type(error)), message=_one_line(found[-1].message if found else text.partition("\n")[0]))


def _disk_full(text: str) -> str:
    """Say which disk is full. Ray names the machine where an actor failed, not the folder."""
    found = re.search(r"\bip=([\w.:]+)", text)
    place = f" on {found[1]}" if found else ""
    return (
        f"the disk to which Ray spills objects is full{place}, and so is Ray's object store: free space there (below "
        "RAY_TMPDIR or TMPDIR, else /tmp, unless Ray was given another folder), or start Ray with more "
        "--object-store-memory; `groupvit doctor` shows the disks"
    )


def is_of_ray(error: BaseException) -> bool:
    """Whether Ray raised the error, as its own or wrapped around another."""
    return any(cls.__module__.partition(".")[0] == "ray" for cls in type(error).__mro__)


def _errors_in(text: str) -> Iterator[Cause]:
    """Yield the errors in a text of tracebacks, one for each link of the chain, in the order they were raised."""
    for traceback in _CHAIN.split(text):
        lines = traceback.strip("\n").splitlines()
        starts = [
            (number, found)
            for number in range(1, len(lines))
            if lines[number - 1].startswith(("  ", "ray::", "Traceback ", "The actor died because"))
            and (found := _ERROR_LINE.fullmatch(lines[number]))
        ]
        if starts:
            # Ray's own error comes first, and quotes the error that passed through several processes.
            number, found = next((start for start in starts if not start[1][1].startswith("ray.")), starts[0])
            yield Cause(kind=found[1], message=_one_line("\n".join([found[2] or "", *lines[number + 1 :]])))


def _one_line(message: str) -> str:
    return " ".join(_ADVICE_OF_RAY.sub("", message).split())


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _class_named(name: str) -> type[BaseException] | None:
    """Return the class of an error by its name; None if this process does not know it."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), attribute, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
