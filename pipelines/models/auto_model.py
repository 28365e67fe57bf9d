"""The model and the image processor that `transformers` loads with `trust_remote_code=True`.

    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    photo = Image.open("photo.jpg")
    outputs = model(**processor(photo, ["dog", "grass"]))
    [labels] = processor.post_process_semantic_segmentation(outputs)  # uint8 [H, W]: 0 is the background, 1 a dog

Labels are those of `groupvit segment`, pixel by pixel. Only the prompts and windows of the model's own protocol are
used; `config.json` and `preprocessor_config.json` hold it. Words that are not plain ASCII need the package ftfy.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.hub import cached_file

from groupvit.config import ModelConfig, SegmentationConfig, from_dict
from groupvit.model import GroupViT
from groupvit.segmentation import Words, label
from groupvit.segmentation_request import check_image, with_background
from groupvit.tokenizer import VOCABULARY_FILE, Tokenizer
from groupvit.windows import View, encode_resized, resized_views
from groupvit.words import check_lengths, check_words
from groupvit.zero_shot import mean_embeddings

Picture = Image.Image | NDArray[np.uint8]


class GroupViTSegmenterConfig(PreTrainedConfig):
    """Sizes of the model, and its segmentation protocol."""

    model_type = "groupvit_segmenter"
    groupvit: dict[str, Any] | None = None
    """Fields of `ModelConfig`; None: its defaults."""
    segmentation: dict[str, Any] | None = None
    """Fields of `SegmentationConfig`; None: its defaults."""


@dataclass(frozen=True, kw_only=True)
class SegmenterOutput:
    """Encoded images and words, of which `GroupViTImageProcessor.post_process_semantic_segmentation` makes labels."""

    views: list[tuple[View, ...]]
    """For each image, its windows with their segments, embeddings and group maps."""
    words: Words
    """Embeddings of the words and of the background prompts."""
    sizes: list[tuple[int, int]]
    """(H, W) of each image before it was resized."""


class GroupViTSegmenter(PreTrainedModel):
    """GroupViT for zero-shot segmentation."""

    config_class = GroupViTSegmenterConfig
    base_model_prefix = "groupvit"
    main_input_name = "pixel_values"

    def __init__(self, config: GroupViTSegmenterConfig) -> None:
        super().__init__(config)
        self.groupvit = GroupViT(from_dict(ModelConfig, config.groupvit or {}))
        self.segmentation = from_dict(SegmentationConfig, config.segmentation or {})
        self.post_init()

    def forward(
        self,
        pixel_values: Sequence[Sequence[Tensor]],
        input_ids: Tensor,
        background_input_ids: Tensor | None,
        sizes: list[tuple[int, int]],
    ) -> SegmenterOutput:
        """Encode images and words. The arguments are what `GroupViTImageProcessor` returns.

        Args:
            pixel_values: For each image and scale, float32 [3, H', W'], normalised.
            input_ids: int64 [C, number of templates, T]: token ids of the prompts of C words.
            background_input_ids: The same of the background prompts; None without them.
            sizes: (H, W) of each image before it was resized.
        """
        classes = self._embedded(input_ids)
        background = None if background_input_ids is None else self._embedded(background_input_ids)
        words = Words.of(self.groupvit, classes, background, self.segmentation)
        return SegmenterOutput(
            views=encode_resized(self.groupvit, pixel_values, self.segmentation), words=words, sizes=sizes
        )

    def _embedded(self, token_ids: Tensor) -> Tensor:
        num_words, num_templates = token_ids.shape[:2]
        return mean_embeddings(self.groupvit, token_ids.flatten(0, 1), [num_templates] * num_words, range(num_words))


class GroupViTImageProcessor(ImageProcessingMixin):
    """Prepares images and words for `GroupViTSegmenter`, and makes labels of what it returns."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "input_ids"]

    def __init__(
        self,
        segmentation: dict[str, Any] | None = None,
        patch_size: int = 16,
        context_length: int = 77,
        vocabulary_file: str = str(VOCABULARY_FILE),
        **kwargs: Any,
    ) -> None:
        """`kwargs`: what `transformers` itself stores in preprocessor_config.json."""
        super().__init__(**kwargs)
        self.segmentation, self.patch_size, self.context_length = segmentation, patch_size, context_length
        self.vocabulary_file = vocabulary_file

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> "GroupViTImageProcessor":
        """Load the processor and the vocabulary of a folder, or of a repository on the hub."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = processor[0] if isinstance(processor, tuple) else processor
        found = cached_file(pretrained_model_name_or_path, VOCABULARY_FILE.name, revision=kwargs.get("revision"))
        processor.vocabulary_file = str(found)
        return processor

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds: all but the place of the vocabulary."""
        return {key: value for key, value in super().to_dict().items() if key != "vocabulary_file"}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> list[str]:
        """Write preprocessor_config.json and the vocabulary."""
        files = super().save_pretrained(save_directory, **kwargs)
        copy = shutil.copy(self.vocabulary_file, Path(save_directory) / VOCABULARY_FILE.name)
        return [*(files or ()), str(copy)]

    def __call__(self, images: Picture | Sequence[Picture], words: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of `GroupViTSegmenter`.

        Args:
            images: One or more images: PIL's, which are turned upright, or RGB uint8 [H, W, 3].
            words: Words to find in each of them.

        Raises:
            ValueError: A word or an image is invalid.
        """
        config = self._config()
        tokenize = Tokenizer(Path(self.vocabulary_file))
        check_words(words, background=config.background_threshold is not None)
        check_lengths(words, config.templates, tokenize, self.context_length)
        pixels = [_pixels(image) for image in _listed(images)]

        def token_ids(some: Sequence[str]) -> Tensor:
            texts = [template.format(word) for word in some for template in config.templates]
            ids = torch.from_numpy(tokenize(texts, self.context_length).astype(np.int64))
            return ids.unflatten(0, (len(some), len(config.templates)))

        return {
            "pixel_values": [resized_views(image, config, self.patch_size) for image in pixels],
            "input_ids": token_ids(words),
            "background_input_ids": token_ids(config.background_prompts) if config.background_prompts else None,
            "sizes": [(image.shape[0], image.shape[1]) for image in pixels],
        }

    def post_process_semantic_segmentation(
        self,
        outputs: SegmenterOutput,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        background: bool = True,
        background_threshold: float | None = None,
    ) -> list[Tensor]:
        """Label every pixel of each image.

        Args:
            outputs: What the model returned.
            target_sizes: (H, W) of each label map. None: the sizes of the images.
            background: Whether pixels can be background. False: every pixel gets a word.
            background_threshold: Pixels whose best word has a lower score are background. None: the protocol's.

        Returns:
            uint8 [H, W] per image, on the CPU. With a background, 0 is the background and word i has label i + 1;
            else word i has label i.
        """
        config = with_background(self._config(), background=background, background_threshold=background_threshold)
        words = outputs.words if config.background_prompts else replace(outputs.words, background=None)
        sizes = outputs.sizes if target_sizes is None else target_sizes
        maps = []
        for views, size in zip(outputs.views, sizes, strict=True):
            [labels] = label(views, words, (size[0], size[1]), config, (config.background_threshold,))
            maps.append(torch.from_numpy(labels))
        return maps

    def _config(self) -> SegmentationConfig:
        return from_dict(SegmentationConfig, self.segmentation or {})


def _listed(images: Picture | Sequence[Picture]) -> Sequence[Picture]:
    if isinstance(images, Image.Image):
        return [images]
    return [images] if isinstance(images, np.ndarray) and images.ndim == 3 else list(images)


def _pixels(image: Picture) -> NDArray[np.uint8]:
    """Upright RGB pixels uint8 [H, W, 3]. ValueError if they are too few or the image too long."""
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB") if isinstance(image, Image.Image) else image)
    check_image(pixels)
    return pixels
