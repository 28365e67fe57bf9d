"""The pages, and the lines of their blocks of commands: those in ``` without a language."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "infra").rglob("*.md")),
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def lines_of(page: Path) -> list[str]:
    """The commands, without comments; one that goes on after a backslash is one line."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(code for language, code in blocks if not language).replace("\\\n", " ").splitlines()
    commands = [re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines]
    return [command for command in commands if command]
