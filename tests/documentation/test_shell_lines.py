"""What pages show beside `groupvit` commands: as much of it is tried as this machine can."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from pipelines.cli.commands import COMMANDS
from tests.support.pages import PAGES, ROOT, lines_of, name_of

ELSEWHERE = {
    "curl": "tests/pipelines/serving/app/test_http.py runs its lines against a server",
    "docker": "no daemon here; tests/infra/test_docker.py lints the recipe and can run its steps",
    "helm": "needs a cluster of Kubernetes",
    "kubectl": "needs a cluster of Kubernetes; tests/infra/test_kuberay.py checks what is applied",
    "prometheus": "not installed here; tests/infra/test_observability.py checks what it reads",
}
"""Programs of others that are not run: the files they are given have to be there, and the rest is not checked."""
BIN = Path(sys.executable).parent
ASSIGNMENT = re.compile(r"\w+=\S*")


def programs() -> list[tuple[str, list[str]]]:
    """(page, words) of every line but those of `groupvit`, without the variables set before it."""
    found = {}
    for page in PAGES:
        for line in lines_of(page):
            words = shlex.split(line)
            while words and ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            if words and words[0] not in ("groupvit", "export"):
                found.setdefault(tuple(words), name_of(page))
    return [(page, list(words)) for words, page in found.items()]


PROGRAMS = programs()


@cache
def help_of(*command: str) -> str:
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def flags_of(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--\w", word)]


def check_flags(command: list[str], words: list[str]) -> None:
    """Fails unless each flag among the words is in the help of the command."""
    known = re.findall(r"--[\w-]+", help_of(*command))
    assert not [flag for flag in flags_of(words) if flag not in known]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_shell(page: Path) -> None:
    code = "\n".join(lines_of(page))
    done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_every_program_is_known() -> None:
    known = {*ELSEWHERE, "make", "ray", "python", ".venv/bin/pre-commit"}
    unknown = [(page, words) for page, words in PROGRAMS if words[0] not in known and not (ROOT / words[0]).is_file()]
    assert not unknown, "nothing checks these lines: add a test of the program, or why there is none to ELSEWHERE"


def test_targets_of_make_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = [words[1] for _, words in PROGRAMS if words[0] == "make"]
    asked += [name for page in PAGES for name in re.findall(r"`make ([\w-]+)`", page.read_text())]
    assert {"demo", "test"} <= set(asked) and not set(asked) - set(targets)


@pytest.mark.documentation
def test_flags_of_ray_exist() -> None:
    lines = [words for _, words in PROGRAMS if words[0] == "ray"]
    assert lines
    for words in lines:
        own = words[1 : words.index("--")] if "--" in words else words[1:]  # after it comes what the job runs
        command = own[:2] if own[0] == "job" else own[:1]
        check_flags([str(BIN / "ray"), *command], own)


def test_flags_of_benchmarks_exist() -> None:
    """They are told in the text: `python tests/performance/benchmark_ingest.py --processes 2`. To ask each for its help
    would take seconds of imports."""
    told = []
    for page in PAGES:
        told += re.findall(r"`[^`\n]*?(benchmark_\w+\.py)([^`]*)`", page.read_text())
    assert len(told) >= 4
    for script, rest in told:
        known = re.findall(r"add_argument\(\"(--[\w-]+)\"", (ROOT / "tests/performance" / script).read_text())
        assert not set(re.findall(r"--[\w-]+", rest)) - set(known), script


def test_other_python_programs_exist() -> None:
    for page, words in PROGRAMS:
        if words[:3] == ["python", "-m", "pytest"]:
            assert (ROOT / words[3]).exists(), page
        elif words[0] == "python" and words[1].endswith("/segment_onnx.py"):
            runner = (ROOT / "pipelines/models/onnx_runner.py").read_text()  # tests/pipelines/models runs it
            assert set(flags_of(words)) <= set(re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", runner)), page
        elif words[0] == "python":
            pytest.fail(f"{page}: nothing checks {' '.join(words)!r}")
    if any(words[0].endswith("pre-commit") for _, words in PROGRAMS):
        assert "install" in help_of(str(BIN / "pre-commit"))


def test_files_given_to_programs_of_others_exist() -> None:
    places = [
        (page, place)
        for page, words in PROGRAMS
        if words[0] in ELSEWHERE
        for place in re.findall(r"(?:(?<=[\s=])|^)(?:infra|docs|tests)/[\w./-]+", " ".join(words))
    ]
    assert len(places) >= 6
    assert not [(page, place) for page, place in places if not (ROOT / place).exists()]
    applied = [ROOT / words[words.index("-k") + 1] for _, words in PROGRAMS if "-k" in words]
    assert applied and all((folder / "kustomization.yaml").is_file() for folder in applied)


def test_scripts_may_be_run() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(infra/[\w/]+)(?: \w+)*(?: &&|`)", page.read_text())}
    scripts = [ROOT / name for name in named if (ROOT / name).is_file()]
    assert scripts and all(os.access(script, os.X_OK) for script in scripts)


def test_commands_and_extras_named_in_the_text_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        text = page.read_text()
        assert not set(re.findall(r"groupvit\[(\w+)\]", text)) - set(extras), page
        assert not set(re.findall(r"`groupvit ([a-z][\w-]+)", text)) - set(COMMANDS), page
