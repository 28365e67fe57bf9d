"""The model that MLflow loads: it takes images and words, and returns a label per pixel.

MLflow copies this file into every model and runs the copy where the model is loaded, with the `groupvit` package in the
model's own folder. This file therefore imports only that package and MLflow, and nothing else of this repository. No
object is pickled. `pipelines.models.mlflow_model` writes such models and documents their inputs and outputs.
"""

import threading
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from groupvit.checkpoint import load
from groupvit.config import SegmentationConfig, from_dict
from groupvit.decode import decode_upright
from groupvit.segmenter import Segmented, Segmenter
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import encode_labels, label_palette
from groupvit.words import parse_words


class ServedSegmenter(PythonModel):
    """Segments each row's image by the row's words."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the checkpoint in the model's files. The model's config says how to segment images."""
        segmentation = from_dict(SegmentationConfig, context.model_config["segmentation"])
        self._segmenter = Segmenter(load(context.artifacts["checkpoint"]), segmentation, Tokenizer())
        self._one_at_a_time = threading.Lock()  # MLflow's server calls it from several threads

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Returns a row with `labels_png`, `names` and `shares` for each row with `image` and `classes`.

        Raises ValueError for a row that cannot be segmented: one line that starts with the row's number.
        """
        params = {"background": True, "background_threshold": None, **(params or {})}
        background, threshold = params["background"], params["background_threshold"]
        if not background and threshold is not None:
            raise ValueError(f"background_threshold={threshold} with background=False: give one of them")
        found: list[Segmented] = []
        for image, classes in zip(model_input["image"], model_input["classes"], strict=True):
            try:
                found.append(self._segment(image, classes, background, threshold))
            except ValueError as error:
                raise ValueError(f"row {len(found)}: {' '.join(str(error).split())}") from None
        return pd.DataFrame(
            {
                "labels_png": [_png(one) for one in found],
                "names": [list(one.names) for one in found],
                "shares": [list(one.shares) for one in found],
            }
        )

    def _segment(self, image: bytes, classes: str, background: bool, threshold: float | None) -> Segmented:
        if not isinstance(image, bytes):  # MLflow does not check the type in a column of objects
            raise ValueError(f"image is {type(image).__name__}: give the bytes of an image file")
        pixels, words = decode_upright(image), parse_words(classes)
        with self._one_at_a_time:
            return self._segmenter.segment(pixels, words, background=background, background_threshold=threshold)


def _png(found: Segmented) -> bytes:
    return encode_labels(found.labels, label_palette(len(found.names), found.has_background))


mlflow.models.set_model(ServedSegmenter())
