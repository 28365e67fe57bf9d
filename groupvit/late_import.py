"""Packages that are imported at their first use, so that a machine without them runs all the rest."""

import importlib
from typing import Any


class MissingPackageError(ImportError):
    """A package that the caller needs is not installed. The message is one line with its name."""


class LateImport:
    """Stands for a package. The first use of a name in it imports it; MissingPackageError if it is not installed."""

    def __init__(self, package: str, purpose: str) -> None:
        """`purpose`: what needs the package, for the message."""
        self._package, self._purpose = package, purpose

    def __getattr__(self, name: str) -> Any:
        try:
            module = importlib.import_module(self._package)
        except ModuleNotFoundError as error:
            if error.name != self._package:
                raise
            raise MissingPackageError(
                f"{self._purpose} needs the package {self._package}, which is not installed: pip install "
                f"{self._package}",
                name=self._package,
            ) from None
        return getattr(module, name)
