"""Segments an image by words with a trained model: returns a label per pixel, the groups, and each group's affinities.

The commands `segment` and `app` and a served model use this. The models that `export` writes for Hugging Face and for
ONNX Runtime give the same labels. Shapes: C words, G groups of the last stage, h x w image
tokens, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from groupvit.config import Precision, PrecisionChoice, SegmentationConfig
from groupvit.model import GroupViT
from groupvit.precision import resolve_precision
from groupvit.segmentation import Words, label, segment_scores
from groupvit.segmentation_request import check_image, with_background
from groupvit.tokenizer import Tokenize
from groupvit.windows import encode_views
from groupvit.words import BACKGROUND, check_lengths, check_words
from groupvit.zero_shot import class_embeddings


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """Result of the segmentation of one image."""

    labels: NDArray[np.uint8]
    """[H, W]: index into `names` for every pixel."""
    names: tuple[str, ...]
    """Name of each label: the words, preceded by "background" if there is a background."""
    shares: tuple[float, ...]
    """Fraction of the pixels with each label. They sum to 1."""
    group_maps: tuple[NDArray[np.float32], ...]
    """[G_l, h, w] per grouping stage: share of each image token in each group. Sums to 1 over the first axis. Empty for
    a model without groups."""
    affinities: NDArray[np.float32]
    """[G, C] in [0, 1]: affinity of each group of the last stage to each word, for the image as a single window. The
    protocol may compute labels from several windows, so labels and affinities can differ. [0, C] without groups."""

    @property
    def has_background(self) -> bool:
        return len(self.names) > self.affinities.shape[1]


class Segmenter:
    """Segments images with a model, its protocol and its tokeniser. Not thread-safe."""

    def __init__(
        self,
        model: GroupViT,
        segmentation: SegmentationConfig,
        tokenize: Tokenize,
        *,
        precision: PrecisionChoice = "float32",
    ) -> None:
        """`precision`: precision of the image tower. float32 gives the same labels on every runtime. `auto`: bfloat16
        if the model's device supports it natively, which is faster and moves edges of masks."""
        self.model = model.eval()
        self.precision: Precision = resolve_precision(precision, model.logit_scale.device)
        self.segmentation = segmentation
        self._tokenize = tokenize

    def segment(
        self,
        image: NDArray[np.uint8],
        words: Sequence[str],
        *,
        background: bool = True,
        background_threshold: float | None = None,
    ) -> Segmented:
        """Label every pixel of an image with one of the words or as background.

        Args:
            image: RGB image uint8 [H, W, 3].
            words: Words to find.
            background: Whether pixels can be background. False: every pixel gets a word.
            background_threshold: Pixels whose best word has a lower score are background. None: the protocol's.

        Raises:
            ValueError: The words, the image or the threshold are invalid; see `check` and `check_image`.
        """
        [segmented] = self.segment_all([image], words, background=background, background_threshold=background_threshold)
        return segmented

    def segment_all(
        self,
        images: Sequence[NDArray[np.uint8]],
        words: Sequence[str],
        *,
        background: bool = True,
        background_threshold: float | None = None,
    ) -> list[Segmented]:
        """Segment several images as `segment` does one. On a GPU, their windows share passes of the image tower."""
        config = self.protocol(background=background, background_threshold=background_threshold)
        self.check(words, background=config.background_threshold is not None)
        for image in images:
            check_image(image)
        classes = class_embeddings(self.model, self._tokenize, words, config.templates)
        prompts = config.background_prompts
        others = class_embeddings(self.model, self._tokenize, prompts, config.templates) if prompts else None
        embedded = Words.of(self.model, classes, others, config)
        names = (*words,) if config.background_threshold is None else (BACKGROUND, *words)
        segmented = []
        encoded = encode_views(self.model, images, config, precision=self.precision)
        for image, views in zip(images, encoded, strict=True):
            size = (image.shape[0], image.shape[1])
            [labels] = label(views, embedded, size, config, (config.background_threshold,))
            maps, affinities = self._groups(image, embedded, config)
            counts = np.bincount(labels.ravel(), minlength=len(names))
            shares = tuple((counts / labels.size).tolist())
            segmented.append(
                Segmented(labels=labels, names=names, shares=shares, group_maps=maps, affinities=affinities)
            )
        return segmented

    def protocol(self, *, background: bool, background_threshold: float | None) -> SegmentationConfig:
        """Apply these options to the protocol. ValueError if the threshold is out of range."""
        return with_background(self.segmentation, background=background, background_threshold=background_threshold)

    def check(self, words: Sequence[str], *, background: bool) -> None:
        """Raise ValueError if a word is invalid; see `groupvit.words`."""
        check_words(words, background=background)
        check_lengths(words, self.segmentation.templates, self._tokenize, self.model.config.text.context_length)

    @torch.inference_mode()
    def _groups(
        self, image: NDArray[np.uint8], words: Words, config: SegmentationConfig
    ) -> tuple[tuple[NDArray[np.float32], ...], NDArray[np.float32]]:
        """Compute the group maps of the whole image, and the affinities of the last stage's groups."""
        [[view]] = encode_views(
            self.model,
            [image],
            replace(config, window=None, scales=(1.0,), flip=False),
            precision=self.precision,
        )
        [window] = view.windows
        if not window.group_maps:
            return (), np.zeros((0, len(words.classes)), np.float32)
        scores = segment_scores(window, words, config).classes.T
        return tuple(stage.cpu().numpy() for stage in window.group_maps), scores.cpu().numpy()
