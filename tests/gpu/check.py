"""Checks and measures the project on a real card: `python3 tests/gpu/check.py --part 1 --out DIR`.

    part 1   where am I, same numbers, compiled start, Hugging Face, speed
    part 2   compiled start (from part 1's cache in DIR), evaluation, it learns, Ray

A part takes at most 330 seconds on an H100. It prints as it goes, and writes DIR/partN.json after each row. The last
line counts what was ok, failed and skipped; a row that is skipped says why. Exit code 1: a row failed.

It runs from the repository's root on a machine where the project is not installed. It needs torch 2.11 or newer,
torchvision, numpy, pillow, timm, tokenizers, safetensors, pyarrow, fsspec, pydantic and opencv-python-headless. Some
rows need more, and are skipped without it:

    Hugging Face          transformers
    Ray                   ray[data,train], psutil; simplejpeg, to train from JPEG files
    evaluation beside it  mlflow

`--device cpu` rehearses: every part at tiny sizes, whose speed means nothing. tests/gpu/fill_performance.py writes
the results into docs/performance.md.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def find_the_project() -> None:
    """Makes `groupvit`, `pipelines` and `tests` of this checkout importable, whatever else has these names."""
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent)]
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests


def main() -> int:
    arguments = _arguments()
    cache = arguments.out.resolve() / "compiled"
    if arguments.part == 1:  # it measures a first start, and part 2 a second one
        shutil.rmtree(cache, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic training; torch asks for it
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )  # of Ray's workers
    import torch

    from tests.gpu.card.context import Context
    from tests.gpu.card.device import Device
    from tests.gpu.card.report import Report
    from tests.gpu.card.sections import PART_SECONDS, PARTS
    from tests.gpu.card.sizes import sizes_for

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU on this machine (torch.cuda.is_available()); --device cpu rehearses", file=sys.stderr)
        return 2
    device = Device(arguments.device)
    if not device.is_gpu:
        torch.set_num_threads(1)  # at tiny sizes, threads mostly wait for each other
    context = Context(
        device=device,
        sizes=sizes_for(is_gpu=device.is_gpu, quick=arguments.quick),
        report=Report(arguments.out, arguments.part, _about(device, arguments.quick), limit_seconds=PART_SECONDS),
        out=arguments.out,
    )
    for section in PARTS[arguments.part]:
        if arguments.section in (None, section.name):
            context.report.section(
                section.name, lambda run=section.run: run(context), limit_seconds=section.limit_seconds
            )
    return context.report.finish()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), required=True)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR", help="default: build/gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny sizes")
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes and steps")
    parser.add_argument("--section", help="only this section of the part, for example `same numbers`")
    return parser.parse_args()


def _about(device: Any, quick: bool) -> dict[str, Any]:
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "card": device.card,
        "driver": device.driver,
        "capability": device.capability,
        "memory_gib": device.memory_gib,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit.stdout.strip() or None,
        "date": datetime.now(UTC).date().isoformat(),
        "quick": quick,
    }


if __name__ == "__main__":
    find_the_project()
    sys.exit(main())
