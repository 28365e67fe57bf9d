"""Why work on Ray failed: the error that began it, out of what Ray has wrapped around it, and whether it may pass.

Ray Data keeps only the text of an error that an actor raised, so the text is read. Nothing here imports Ray.
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
"""Errors of data, access or code: the same work done again gives the same error."""
_SAYS_ALL = (ValueError, OSError)
"""Errors whose message needs no name of a class before it."""
_COLORS = re.compile(r"\x1b\[\d*m")
_ERROR_LINE = re.compile(r"([A-Za-z_][\w.]*)(?:\(\w+\))?(?:: (.*))?")
_CHAIN = re.compile(
    r"^(?:The above exception was the direct cause of|During handling of the above exception, another) .*", re.MULTILINE
)
_ADVICE_OF_RAY = re.compile(r"(?:\n|\\n|^)Failed to apply UDF transform after .*?(?=['\"]?$)", re.DOTALL)
"""What Ray Data adds to the message of an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cause:
    """What began a failure."""

    kind: str
    """Name of the error's class, with its module unless it is built in."""
    message: str
    """One line; may be empty."""

    @property
    def line(self) -> str:
        """What to tell the user."""
        found = _class_named(self.kind)
        if self.message and (self.kind.startswith("ray.") or (found is not None and issubclass(found, _SAYS_ALL))):
            return self.message
        name = self.kind.rpartition(".")[2]
        return f"{name}: {self.message}" if self.message else name

    @property
    def is_lasting(self) -> bool:
        """Whether to do the same again would end in the same way."""
        found = _class_named(self.kind)
        return found is not None and issubclass(found, _LASTING)

    def to_error(self) -> Exception:
        """What a command raises: errors of storage as they are, ValueError for others that last, or WorkFailedError."""
        found = _class_named(self.kind)
        if found is not None and issubclass(found, StorageError):
            return found(self.line)
        return ValueError(self.line) if self.is_lasting else WorkFailedError(self.line)


def root_cause(error: BaseException) -> Cause:
    """The error that our own code, or a library it uses, raised; the last of a chain, which says most.

    Of several workers that failed, the one whose error lasts: the others lost their connection to it.
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
    found = list(_errors_in(text))
    own = [cause for cause in found if not cause.kind.startswith("ray.")]
    if own:
        return own[-1]
    return Cause(kind=_name(type(error)), message=_one_line(found[-1].message if found else text.partition("\n")[0]))


def is_of_ray(error: BaseException) -> bool:
    """Whether Ray raised it, of its own or around another."""
    return any(cls.__module__.partition(".")[0] == "ray" for cls in type(error).__mro__)


def _errors_in(text: str) -> Iterator[Cause]:
    """The errors of a text of tracebacks, one for each link of the chain, in the order in which they were raised."""
    for traceback in _CHAIN.split(text):
        lines = traceback.strip("\n").splitlines()
        starts = [
            (number, found)
            for number in range(1, len(lines))
            if lines[number - 1].startswith(("  ", "ray::", "Traceback ", "The actor died because"))
            and (found := _ERROR_LINE.fullmatch(lines[number]))
        ]
        if starts:
            # An error that came through several processes is quoted by Ray's own, which stands before it.
            number, found = next((start for start in starts if not start[1][1].startswith("ray.")), starts[0])
            yield Cause(kind=found[1], message=_one_line("\n".join([found[2] or "", *lines[number + 1 :]])))


def _one_line(message: str) -> str:
    return " ".join(_ADVICE_OF_RAY.sub("", message).split())


def _name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _class_named(name: str) -> type[BaseException] | None:
    """The class of an error that this process knows too."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), attribute, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
