"""The project's code on a CUDA device that does not exist (tests/support/pretend_cuda.py), in one process.

A GPU would refuse tensors or generators of the wrong device; the numbers are the CPU's, and so are the weights after
training.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.checks import CHECKS

ROOT = Path(__file__).parents[2]


class Results:
    """Results of the checks, in the order in which the process runs them."""

    def __init__(self, process: "subprocess.Popen[str]", said: Path) -> None:
        self._process, self._said = process, said
        self._errors: dict[str, str | None] = {}

    def error(self, name: str) -> str | None:
        """Waits for a check. Returns what went wrong; None if nothing did."""
        assert self._process.stdout is not None
        while name not in self._errors:
            line = self._process.stdout.readline()
            assert line, f"the process ended with {self._process.wait()}:\n{self._said.read_text()[-4000:]}"
            result = json.loads(line)
            self._errors[result["name"]] = result["error"]
        return self._errors[name]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    if torch.version.cuda is None:
        pytest.skip("this build of torch has no CUDA, not even one to pretend to")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for tests/support/pretend_cuda.c")
    folder = tmp_path_factory.mktemp("pretended")
    device = folder / "libcuda.so.1"  # under the driver's name, so that torch finds no other driver
    source = ROOT / "tests" / "support" / "pretend_cuda.c"
    subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{device.name}", "-o", device, source], check=True)
    names = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]  # pyright: ignore[reportAttributeAccessIssue]
    command = [sys.executable, "-m", "tests.gpu.pretended", str(device), *names]
    with (
        (folder / "stderr").open("w") as said,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        yield Results(process, folder / "stderr")
        process.kill()


@pytest.mark.parametrize("name", CHECKS)
def test_runs_on_a_gpu(results: Results, name: str) -> None:
    error = results.error(name)
    assert error is None, error
