"""Copies modules of `groupvit` into an exported folder, so that its code runs where `groupvit` is not installed.

A module is copied with all modules of `groupvit` that it imports, as they are, except for these imports: they are
rewritten for the folder, where all modules lie side by side.
"""

import ast
import importlib.util
from pathlib import Path

HEADER = "# Copied from {module} by `groupvit export`. SPDX-License-Identifier: Apache-2.0\n"


def bundled(entry: Path, package: str) -> dict[str, str]:
    """Return the source of a file, under "", and of all modules of `groupvit` that it needs, by their file's name.

    Args:
        entry: A file of Python.
        package: What stands before a module's name in rewritten imports: "." for modules beside each other in a
            package, or "name." for modules in the package `name`.

    Raises:
        AssertionError: A module has an import of another form than `from groupvit.x import y`.
    """
    sources: dict[str, str] = {}
    waiting = {"": entry}
    while waiting:
        name, path = waiting.popitem()
        source, needed = _rewritten(path, package)
        module = f"groupvit.{name}" if name else f"pipelines.models.{path.stem}"
        sources[f"{name}.py" if name else ""] = HEADER.format(module=module) + source
        waiting |= {other: _path_of(other) for other in needed if f"{other}.py" not in sources}
    return sources


def _rewritten(path: Path, package: str) -> tuple[str, set[str]]:
    """Return the source with rewritten imports, and the names of the imported modules of `groupvit`."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    needed = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert not any(alias.name.partition(".")[0] == "groupvit" for alias in node.names), f"{path}: {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "groupvit":
            assert node.module is not None and node.module.count(".") == 1, f"{path}: {node.lineno}"
            name = node.module.partition(".")[2]
            needed.add(name)
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from groupvit.{name} ", f"from {package}{name} ", 1)
    return "".join(lines), needed


def _path_of(name: str) -> Path:
    spec = importlib.util.find_spec(f"groupvit.{name}")
    assert spec is not None and spec.origin is not None, name
    return Path(spec.origin)
