"""Image transforms of training, and of evaluation by classification.

The training transform has two parts, so that samples are sent as bytes. On the CPUs that read the data,
`TrainTransform` crops and augments the image (uint8) and draws a rectangle to erase. On the training worker,
`groupvit.finishing` normalises the batch and erases. The worker's device can augment, too (`groupvit.device_augment`):
the first part then only crops, and draws.

The recipe "deit" is the paper's: timm's `create_transform` for `rand-m9-mstd0.5-inc1` with random erasing. It is
reimplemented here because timm draws from the global generators of Python, numpy and torch, but a sample must be the
same in any process, thread and order. Given the same draws, each step equals timm's; the tests check this.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from groupvit.augment import Operation, apply_with_pillow, draw_color_jitter, draw_rand_augment
from groupvit.crop import Box, draw_box, resize_by_pillow, resize_by_torch
from groupvit.decode import MAX_PIXELS, decode_image

Recipe = Literal["deit", "crop_flip"]
Resize = Literal["pillow", "torch"]
AugmentOn = Literal["cpu", "device"]


class TrainSample(NamedTuple):
    """One augmented image for training."""

    image: npt.NDArray[np.uint8]
    """Pixels, uint8 [3,H,W] RGB."""
    erase_box: npt.NDArray[np.int16]
    """Rectangle to erase after normalisation, int16 [4]: top, left, height, width. All zeros: none."""
    noise_seed: int
    """Seed of the noise in the rectangle, 63 bits."""
    flip: bool
    """Whether the image is still to be mirrored, by the device."""
    operations: tuple[Operation | None, ...]
    """Operations still to be applied after that, by the device. None: nothing in this round."""


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """First part of the training transform, with random draws: (file or pixels, seed) → `TrainSample`."""

    image_size: int
    recipe: Recipe = "deit"
    """"deit": crop, flip, RandAugment, random erasing. "crop_flip": crop and flip, for small data."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the crop, as a fraction of the image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of the crop (width / height)."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation. Used by "crop_flip" only; "deit" has its own."""
    augment_on: AugmentOn = "cpu"
    """"device": only draws the flip and the operations, and leaves them to `groupvit.device_augment`."""
    max_pixels: int = MAX_PIXELS
    resize: Resize = "torch"
    """"torch": by SIMD code, from a JPEG decoded at 1/2, 1/4 or 1/8 of its size if the crop is still large enough.
    "pillow": timm's pixels, in three times the time. See `groupvit.crop`."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size: {self.image_size} must be at least 1 pixel")
        if self.recipe not in get_args(Recipe):
            raise ValueError(f"recipe: {self.recipe!r} is unknown; use one of {', '.join(get_args(Recipe))}")
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize: {self.resize!r} is unknown; use one of {', '.join(get_args(Resize))}")
        if self.augment_on not in get_args(AugmentOn):
            raise ValueError(f"augment_on: {self.augment_on!r} is unknown; use one of {', '.join(get_args(AugmentOn))}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: {self.crop_scale} is not a range of area; use 0 < smallest <= largest <= 1")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"color_jitter: {self.color_jitter} is not a share; use 0 to below 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(
                f"crop_ratio: {self.crop_ratio} is not a range of width over height; use 0 < smallest <= largest"
            )

    def __call__(
        self, image: bytes | npt.NDArray[np.uint8], seed: int, *, out: npt.NDArray[np.uint8] | None = None
    ) -> TrainSample:
        """Augment one image. The same seed always gives the same sample.

        Args:
            image: A file, or uint8 [H,W,3].
            seed: Seed of all draws.
            out: Memory for the sample's image, uint8 [3,image_size,image_size]. None: new memory.

        Raises:
            ValueError: The file cannot be decoded (see `decode_image`).
        """
        rng = random.Random(int(seed) % 2**64)  # Random takes the absolute value of a negative seed
        pixels, box = self._decode(image, rng)
        flip = rng.random() < 0.5
        operations = self._draw_operations(rng)
        erased = (0, 0, 0, 0)
        if self.recipe == "deit":
            erased = _erase_box(self.image_size, self.image_size, rng)
        erase_box, noise_seed = np.array(erased, dtype=np.int16), rng.getrandbits(63)
        planes = np.empty((3, self.image_size, self.image_size), dtype=np.uint8) if out is None else out
        if self.augment_on == "device":
            self._augment(box.cut(pixels), False, (), planes)
            return TrainSample(planes, erase_box, noise_seed, flip, operations)
        self._augment(box.cut(pixels), flip, operations, planes)
        return TrainSample(planes, erase_box, noise_seed, False, ())

    def _decode(self, image: bytes | npt.NDArray[np.uint8], rng: random.Random) -> tuple[npt.NDArray[np.uint8], Box]:
        """Draw the crop and decode the image, a large JPEG only at the size that the crop needs."""

        def draw(height: int, width: int) -> Box:
            return draw_box(height, width, self.crop_scale, self.crop_ratio, rng)

        if not isinstance(image, bytes):
            return image, draw(image.shape[0], image.shape[1])
        if self.resize == "pillow":
            pixels = decode_image(image, max_pixels=self.max_pixels)
            return pixels, draw(pixels.shape[0], pixels.shape[1])
        box: Box | None = None

        def choose_divisor(height: int, width: int) -> Literal[1, 2, 4, 8]:
            nonlocal box
            box = draw(height, width)
            larger = min(box.height, box.width) // self.image_size
            divisor = 8 if larger >= 8 else 4 if larger >= 4 else 2 if larger >= 2 else 1
            box = box.reduced(divisor)
            return divisor

        pixels = decode_image(image, max_pixels=self.max_pixels, choose_divisor=choose_divisor)
        return pixels, box or draw(pixels.shape[0], pixels.shape[1])

    def _augment(
        self,
        crop: npt.NDArray[np.uint8],
        flip: bool,
        operations: Sequence[Operation | None],
        planes: npt.NDArray[np.uint8],
    ) -> None:
        """Resize a crop [H,W,3], apply the operations and write it to `planes` [3,image_size,image_size]."""
        side = self.image_size
        if self.resize == "pillow":
            picture = resize_by_pillow(crop, side)
        else:
            square = resize_by_torch(crop, side)
            if not any(operations):
                planes[...] = (square[:, ::-1] if flip else square).transpose(2, 0, 1)
                return
            picture = Image.fromarray(square)
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = apply_with_pillow(picture, operations)
        for plane, band in zip(planes, "RGB", strict=True):  # a third of the time of transposing an array
            plane[...] = np.frombuffer(picture.tobytes("raw", band), dtype=np.uint8).reshape(side, side)

    def _draw_operations(self, rng: random.Random) -> tuple[Operation | None, ...]:
        if self.recipe == "deit":
            return draw_rand_augment(rng)
        return draw_color_jitter(self.color_jitter, rng) if self.color_jitter else ()


def center_crop(pixels: npt.NDArray[np.uint8], image_size: int) -> npt.NDArray[np.uint8]:
    """For classification: resize uint8 [H,W,3] to a short side of 8/7 of `image_size` (bicubic), crop the centre."""
    height, width = pixels.shape[:2]
    scale = (image_size * 8 // 7) / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = ((side - image_size) // 2 for side in resized.shape[:2])
    return resized[top : top + image_size, left : left + image_size]


def _erase_box(image_height: int, image_width: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Draw the rectangle (top, left, height, width) of random erasing (arXiv 1708.04896). Mostly none: all zeros."""
    if rng.random() <= 0.25:
        for _ in range(10):
            area = rng.uniform(0.02, 1 / 3) * image_height * image_width
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if width < image_width and height < image_height:
                return rng.randint(0, image_height - height), rng.randint(0, image_width - width), height, width
    return 0, 0, 0, 0
