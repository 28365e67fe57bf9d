"""A checkpoint as an MLflow model: its inputs, its outputs and its files.

Input, one row per image: `image`, the bytes of a JPEG, PNG, WebP, GIF or BMP file, and `classes`, words separated by
commas. Output, one row per image: `labels_png`, a PNG of indexes into `names`; `names`, the words, after "background"
if there is one; `shares`, the fraction of the pixels with each name. Parameters as in `groupvit segment`.

The model's folder holds the weights, the state of the checkpoint, the `groupvit` package, and `served_model.py`, which
runs them. Nothing is pickled. Loading the model needs neither this repository nor the training data.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from PIL import Image, ImageDraw

import groupvit
from groupvit.checkpoint import load, load_state
from groupvit.checkpoint_files import MODEL_FILE, write_state
from groupvit.config import to_dict
from groupvit.protocols import protocol_of
from pipelines.provenance import redact_values

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "classes")]),
    outputs=Schema(
        [
            ColSpec(DataType.binary, "labels_png"),
            ColSpec(Array(DataType.string), "names"),
            ColSpec(Array(DataType.double), "shares"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("background", DataType.boolean, True),
            ParamSpec("background_threshold", DataType.double, None),  # None: as in the model's protocol
        ]
    ),
)

DESCRIPTION = """\
Segments images by words ([GroupViT](https://arxiv.org/abs/2202.11094)).

```python
model = mlflow.pyfunc.load_model("models:/{name}/{version}")
photo = Path("photo.jpg").read_bytes()
rows = pd.DataFrame([{{"image": photo, "classes": "dog, frisbee, grass"}}])
found = model.predict(rows).iloc[0]
labels = np.array(Image.open(io.BytesIO(found.labels_png)))  # [H, W]
```

`labels`: indexes into `found.names`. `found.shares`: fraction of the pixels with each name. Parameters: with
`background` false every pixel gets one of the words; pixels whose best word scores less than `background_threshold`
(0 to 1; by default as the model's protocol says) are background.

Licence of the weights: {license}.
"""
"""Markdown description of a registered version."""

_THIRD_PARTY = (
    "mlflow",
    "pandas",
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "ftfy",
    "simplejpeg",
    "scipy",
)
"""Packages that `served_model.py` and the parts of `groupvit` it uses import."""


def requirements() -> list[str]:
    """Returns pip requirements of the model: the installed versions, without the kind of machine (`+cpu`)."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _THIRD_PARTY]


def input_example() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns a drawn image with its words, and a parameter."""
    image = Image.new("RGB", (96, 64), (120, 170, 220))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 44, 96, 64), fill=(70, 140, 60))
    pen.ellipse((34, 18, 62, 46), fill=(210, 50, 40))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    rows = pd.DataFrame({"image": [file.getvalue()], "classes": ["ball, grass, sky"]})
    return rows, {"background": True}  # MLflow refuses an example with None


@contextmanager
def saved_model(checkpoint: Path, model: Model, metadata: Mapping[str, str]) -> Iterator[Path]:
    """Yields the folder of an MLflow model made from a checkpoint's folder. It is deleted after the context.

    `model` receives MLflow's records of it, including `metadata`. Raises ValueError if the checkpoint is missing or
    corrupted.
    """
    state = load_state(checkpoint)
    segmentation = protocol_of("model", load(checkpoint), state)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        folder.mkdir()
        shutil.copyfile(checkpoint / MODEL_FILE, folder / MODEL_FILE)  # without the optimiser's state
        write_state(folder, redact_values(state))
        script = shutil.copy(Path(__file__).with_name("served_model.py"), temporary)  # MLflow records its path
        mlflow.pyfunc.save_model(
            f"{temporary}/model",
            python_model=script,
            artifacts={"checkpoint": str(folder)},
            code_paths=[str(Path(groupvit.__file__).parent)],
            signature=SIGNATURE,
            input_example=input_example(),
            pip_requirements=requirements(),
            model_config={"segmentation": to_dict(segmentation)},
            metadata=dict(metadata),
            mlflow_model=model,
        )
        yield Path(temporary) / "model"
