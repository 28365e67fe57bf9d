"""The container's recipe: linted, of the same steps as everywhere else, and these steps installed once in a while."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra/docker/Dockerfile"
INSTALL = "GROUPVIT_TEST_DOCKER_INSTALL"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(name, arguments) of each instruction, lines that continue joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def pip_arguments(command: str) -> list[str]:
    """What `pip install` is told to install: the same for a virtual environment and an image."""
    words = shlex.split(command.partition("pip install")[2].partition("&&")[0])
    return [word for word in words if word not in ("-q", "--no-cache-dir", "-e")]


def install_steps() -> list[str]:
    return [arguments for name, arguments in instructions(DOCKERFILE) if name == "RUN"]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_a_mistake(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM rayproject/ray\nRUN pip install torch\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3006" in done.stdout and "DL3013" in done.stdout


def test_installs_what_make_and_the_cluster_install():
    steps = [pip_arguments(step) for step in install_steps()]
    makefile = [pip_arguments(line) for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    makefile[-1] = [
        word.replace("[dev]", "[pipelines,nouns]") for word in makefile[-1]
    ]  # an image has no need of the tests' packages
    cluster = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    assert steps == makefile
    assert steps == [pip_arguments(command) for command in cluster["setup_commands"]]


def test_runs_as_a_user_without_rights_on_a_base_with_a_version():
    found = instructions(DOCKERFILE)
    assert [arguments for name, arguments in found if name == "USER"] == ["1000:100"]
    assert [arguments for name, arguments in found if name == "FROM"] == ["rayproject/ray:2.60.0-py311-${ACCELERATOR}"]
    assert not any("KEY" in arguments or "TOKEN" in arguments for _, arguments in found)


def test_only_what_is_copied_is_sent_to_the_builder():
    ignored = (ROOT / "infra/docker/Dockerfile.dockerignore").read_text().split()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [arguments.split()[1:-1] for name, arguments in instructions(DOCKERFILE) if name == "COPY"]
    assert ignored[0] == "*"
    assert sent == {name for names in copied for name in names}
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.environ.get(INSTALL) != "1", reason=f"minutes and 6.5 GB: {INSTALL}=1 runs it")
def test_the_steps_install_a_product_that_runs(tmp_path):
    """The RUN lines, in their order, on the files that are copied, in an environment with nothing else."""
    root, environment = tmp_path / "groupvit", tmp_path / "venv"
    root.mkdir()
    for name, arguments in instructions(DOCKERFILE):
        if name == "COPY":
            for source in arguments.split()[1:-1]:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, root / source)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    variables = {**os.environ, "PATH": f"{environment / 'bin'}:/usr/bin:/bin", "PYTHONPATH": ""}
    commands = (
        "python -m pip check",
        "groupvit demo-data shapes --out data/shapes --num-training-scenes 64 --num-validation-scenes 4 "
        "--num-calibration-scenes 4",
        "groupvit pretrain debug --training.num-steps 4 --tracking.uri None",
    )
    try:
        for step in install_steps():
            subprocess.run(["sh", "-c", step], cwd=root, env=variables, check=True)
        for command in commands:
            subprocess.run(["sh", "-c", command], cwd=tmp_path, env=variables, check=True)
    finally:
        shutil.rmtree(environment)
