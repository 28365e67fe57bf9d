"""The ways to segment photos by a model, as programs that run where neither this repository nor anything of it is."""

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
WORDS = ("person", "bus", "chair", "bottle", "grass")

_START = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path_hooks = [hook for hook in sys.path_hooks if "editable" not in getattr(hook, "__module__", "")]
from pathlib import Path
from PIL import Image
model, photos, out = map(Path, sys.argv[1:4])
words = sys.argv[4:]
out.mkdir()
def write(labels):
    for photo in sorted(photos.iterdir()):
        Image.fromarray(labels(photo)).save(out / f"{photo.stem}.png")
"""
_WITHOUT_GROUPVIT = """
for package in ("groupvit", "pipelines"):
    try:
        __import__(package)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{package} can be imported")
"""
PROGRAMS = {
    "hf-auto": f"""{_START}{_WITHOUT_GROUPVIT}
from transformers import AutoImageProcessor, AutoModel
segmenter = AutoModel.from_pretrained(model, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=True)
def labels(photo):
    outputs = segmenter(**processor(Image.open(photo), words))
    return processor.post_process_semantic_segmentation(outputs)[0].numpy()
write(labels)
""",
    "onnx": f"""{_START}{_WITHOUT_GROUPVIT}
sys.path.insert(0, str(model))
from segment_onnx import OnnxSegmenter
from groupvit_runner.decode import decode_upright
segmenter = OnnxSegmenter(model)
write(lambda photo: segmenter.segment(decode_upright(photo.read_bytes()), words).labels)
assert "torch" not in sys.modules
""",
    "mlflow": f"""{_START}{_WITHOUT_GROUPVIT}
import io, mlflow.pyfunc, numpy, pandas
loaded = mlflow.pyfunc.load_model(str(model))
def labels(photo):
    rows = pandas.DataFrame([{{"image": photo.read_bytes(), "classes": ",".join(words)}}])
    return numpy.array(Image.open(io.BytesIO(loaded.predict(rows).iloc[0].labels_png)))
write(labels)
""",
    "python": """import sys
from pathlib import Path
from PIL import Image
from groupvit.checkpoint import load, load_state
from groupvit.decode import decode_upright
from groupvit.protocols import protocol_of
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
folder, photos, out = map(Path, sys.argv[1:4])
model = load(folder)
segmenter = Segmenter(model, protocol_of("model", model, load_state(folder)), Tokenizer())
out.mkdir()
for photo in sorted(photos.iterdir()):
    labels = segmenter.segment(decode_upright(photo.read_bytes()), sys.argv[4:]).labels
    Image.fromarray(labels).save(out / f"{photo.stem}.png")
""",
}


def run_program(name: str, model: Path, photos: Path, out: Path, python: str = sys.executable) -> None:
    """Write `out/NAME.png`, labels, for each photo, by a program in a process of its own."""
    command = [python, "-c", PROGRAMS[name], str(model), str(photos), str(out), *WORDS]
    variables = {"HF_HOME": str(out.with_name(f"{out.name}-hf")), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run_outside(*command, cwd=out.parent, variables=variables)


def run_outside(*command: str, cwd: Path, variables: Mapping[str, str] | None = None, code: int = 0) -> str:
    """Run a command that is not told where this checkout is. Return what it writes; AssertionError for another exit
    code."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | dict(variables or {})
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == code, f"{command[:3]}: {done.stderr[-3000:]}"
    return done.stdout + done.stderr


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    """The labels of each photo, by its name."""
    return {file.stem: np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))}


def differing_pixels(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, int]:
    """Number of pixels with other labels, by photo, of those with any. Each must lie at an edge between both labels."""
    assert ours.keys() == theirs.keys() and ours
    found = {}
    for name, expected in ours.items():
        assert expected.shape == theirs[name].shape, name
        rows, columns = np.nonzero(expected != theirs[name])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            around = expected[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            assert theirs[name][row, column] in around, f"{name}: another label inside a segment"
        if len(rows):
            found[name] = len(rows)
    return found


class CleanEnvironment:
    """A new virtual environment, which can borrow the packages of another one, like torch, without copying them."""

    def __init__(self, folder: Path, *requirements: str, borrowed: "CleanEnvironment | None" = None) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.python, self.groupvit = str(folder / "bin/python"), str(folder / "bin/groupvit")
        [self.packages] = folder.glob("lib/python*/site-packages")
        if borrowed is not None:
            (self.packages / "borrowed.pth").write_text(f"{borrowed.packages}\n")
        if requirements:
            run_outside(self.python, "-m", "pip", "install", "-q", *requirements, cwd=folder)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout."""
    run_outside(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT), cwd=folder)
    return next(folder.glob("groupvit-*.whl"))
