"""How modules import each other, those inside functions too: no circle, and no test module behind another."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(folder: str) -> dict[str, set[str]]:
    """The modules that each module of `folder` imports from it, wherever in the file."""
    modules = {module_name(file): file for file in sorted((ROOT / folder).rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (names & modules.keys()) or ({node.module} & modules.keys())
    return found


@pytest.mark.parametrize("package", ["pipelines", "groupvit"])
def test_no_two_modules_import_each_other(package: str) -> None:
    graph = imports(package)
    assert sum(map(len, graph.values())) > 50
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_no_test_module_is_imported_by_another() -> None:
    for module, imported in imports("tests").items():
        behind = [name for name in imported if name.rpartition(".")[2].startswith("test_")]
        assert not behind, f"{module} imports {behind}: put what both need into tests/support"


def test_only_what_everything_stands_on_lies_beside_the_packages() -> None:
    files = {file.name for file in (ROOT / "pipelines").glob("*.py")}
    assert files == {"__init__.py", "storage.py", "documents.py", "provenance.py", "errors.py"}
    for init in (ROOT / "pipelines").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{init} does not say what is in there"


@pytest.mark.parametrize(("folder", "most"), [("pipelines", 300), ("groupvit", 300), ("tests", 350)])
def test_files_can_be_read_in_one_sitting(folder: str, most: int) -> None:
    lines = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in (ROOT / folder).rglob("*.py")
    }
    assert not {file: count for file, count in lines.items() if count > most}
