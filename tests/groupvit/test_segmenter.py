"""A model put to use: what `Segmenter` finds, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from groupvit.config import ImageEncoderConfig, SegmentationConfig
from groupvit.finishing import to_tensor
from groupvit.model import GroupViT
from groupvit.segmentation import affinity, predict, predict_groups
from groupvit.segmentation_request import check_image
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from groupvit.windows import group_maps
from groupvit.words import check_lengths, check_words, parse_words
from groupvit.zero_shot import class_embeddings
from tests.support.small_model import WORDS, distinct_model

IMAGE = WORDS.image
UNGROUPED = replace(IMAGE, depths=(2,), num_heads=(2,), num_group_tokens=(0,), num_output_groups=())
WHOLE = SegmentationConfig(short_side=64, window=None, background_threshold=0.12)
NAMES = ("dog", "grass", "frisbee")


def segmenter_of(image: ImageEncoderConfig = IMAGE, segmentation: SegmentationConfig = WHOLE) -> Segmenter:
    model = distinct_model(replace(WORDS, image=image), seed=1)
    return Segmenter(model, segmentation, Tokenizer(), precision="float32")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return segmenter_of()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    blocks = np.random.default_rng(3).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def embeddings(model: GroupViT) -> torch.Tensor:
    return class_embeddings(model, Tokenizer(), NAMES)


def test_labels_are_those_of_predict(segmenter: Segmenter, picture: np.ndarray) -> None:
    classes = embeddings(segmenter.model)
    for background, threshold in ((True, None), (True, 0.4), (False, None)):
        found = segmenter.segment(picture, NAMES, background=background, background_threshold=threshold)
        limit = (threshold or 0.12) if background else None
        [expected] = predict(segmenter.model, picture, classes, replace(WHOLE, background_threshold=limit))
        np.testing.assert_array_equal(found.labels, expected)
        assert found.labels.shape == (80, 112) and found.labels.dtype == np.uint8
        assert found.names == (("background", *NAMES) if background else NAMES)
        assert found.has_background == background
        assert found.shares == pytest.approx([(expected == label).mean() for label in range(len(found.names))])
    assert len(np.unique(expected)) > 1


def test_groups_and_affinities_are_those_of_the_whole_image(segmenter: Segmenter, picture: np.ndarray) -> None:
    found = segmenter.segment(picture, NAMES)
    for stage, expected in zip(found.group_maps, predict_groups(segmenter.model, picture, WHOLE), strict=True):
        np.testing.assert_allclose(stage, expected, atol=1e-6)
    assert [len(stage) for stage in found.group_maps] == [8, 4]

    square = np.ascontiguousarray(picture[:64, :64])  # no resize, so that the encoding can be had by hand
    found = segmenter.segment(square, NAMES)
    with torch.inference_mode():
        encoding = segmenter.model.encode_image(to_tensor(square)[None])
        scale, classes = segmenter.model.logit_scale, embeddings(segmenter.model)
        expected = affinity(encoding.segment_embeddings[0], encoding.embedding[0], classes, scale, 5)
    assert found.affinities.shape == (4, 3) and found.affinities.dtype == np.float32
    np.testing.assert_allclose(found.affinities, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.group_maps[-1], group_maps(encoding.features)[-1][0].numpy(), atol=1e-6)


def test_background_prompts_take_from_the_words(picture: np.ndarray) -> None:
    with_prompts = replace(WHOLE, background_prompts=("sky", "wall"), top_classes=None)
    found = segmenter_of(segmentation=with_prompts).segment(picture, NAMES)
    assert found.affinities.shape == (4, 3)
    assert (found.affinities.sum(axis=1) < 0.999).all(), "the rest is what the groups are of the background's words"
    alone = segmenter_of(segmentation=with_prompts).segment(picture, NAMES, background=False)
    np.testing.assert_allclose(alone.affinities.sum(axis=1), 1, atol=1e-5)


def test_a_model_without_groups(picture: np.ndarray) -> None:
    found = segmenter_of(UNGROUPED).segment(picture, NAMES)
    assert found.group_maps == () and found.affinities.shape == (0, 3)
    assert found.labels.shape == (80, 112) and found.names[0] == "background" and found.has_background


def test_words_are_parsed() -> None:
    assert parse_words(" dog, grass ,,\n  hot   dog \n") == ["dog", "grass", "hot dog"]
    assert parse_words(" , ") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "classes is empty"),
        ([" "], "empty word"),
        (["dog", "dog"], "'dog' twice"),
        (["Hot Dog", "cat", "hot  dog"], "'Hot Dog' and 'hot  dog', which are the same"),
        ([f"word {index}" for index in range(255)], "255 words: give at most 254"),
        (["dog", "Background"], "'Background', which is what suits no other word"),
    ],
)
def test_words_that_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_words(words, background=True)
    assert "\n" not in str(caught.value)


def test_words_that_are_taken() -> None:
    check_words(["dog", "background"], background=False)
    check_words([f"word {index}" for index in range(254)], background=True)


def test_a_name_that_does_not_fit_the_context_is_refused_by_its_tokens() -> None:
    template = ("a photo of a {}.",)  # 5 tokens: with start and end, 20 - 7 = 13 are left
    check_lengths(["dog " * 13], template, Tokenizer(), 20)
    with pytest.raises(ValueError, match="has 14 tokens, and 13 fit into the model's context of 20"):
        check_lengths(["cat", "dog " * 14], template, Tokenizer(), 20)
    with pytest.raises(ValueError, match="has 500 tokens, and 13 fit") as caught:
        check_lengths(["dog " * 500], template, Tokenizer(), 20)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="characters: give a name"):
        check_lengths(["dog " * 3000], template, Tokenizer(), 20)
    with pytest.raises(ValueError, match="holds nothing that can be read"):
        check_lengths(["\x07"], template, Tokenizer(), 20)
    with pytest.raises(ValueError, match="leave no token"):
        check_lengths(["dog"], ("a photo of a {}.",), Tokenizer(), 7)
    check_lengths(["!!", "dog!"], template, Tokenizer(), 20)  # the token of "!" is 0, as is the padding


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 300, 3), r"300 × 1 pixels: each side must have at least 16"),
        ((300, 1, 3), r"1 × 300 pixels"),
        ((16, 400, 3), r"too long for its width: crop it to at most 20:1"),
        ((64, 64), r"uint8 \[64, 64\]: uint8 \[H, W, 3\] is needed"),
    ],
)
def test_images_that_are_refused(shape: tuple[int, ...], message: str, segmenter: Segmenter) -> None:
    image = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=message):
        check_image(image)
    with pytest.raises(ValueError, match=message):
        segmenter.segment(image, NAMES)


def test_the_longest_image_that_is_taken(segmenter: Segmenter) -> None:
    assert segmenter.segment(np.zeros((16, 320, 3), np.uint8), NAMES).labels.shape == (16, 320)


def test_a_threshold_out_of_range_is_refused(segmenter: Segmenter, picture: np.ndarray) -> None:
    for threshold in (1.5, float("nan")):
        with pytest.raises(ValueError, match="give a number from 0 to 1"):
            segmenter.segment(picture, NAMES, background_threshold=threshold)


@pytest.mark.parametrize(
    ("image", "tensor", "message"),
    [
        (IMAGE, "image_projector.out.bias", "scores are not finite"),
        (UNGROUPED, "image_projector.out.bias", "scores are not finite"),
        (IMAGE, "logit_scale", "scores are not finite"),
        (IMAGE, "text_projector.out.bias", "the embedding of class 'dog' is not finite"),
        # Hard assignment makes finite segments of it, but no masks.
        (IMAGE, "image_encoder.stages.1.grouping.assignment.key.bias", "masks of the groups are not finite"),
    ],
)
def test_a_result_that_is_not_finite_is_an_error(
    picture: np.ndarray, image: ImageEncoderConfig, tensor: str, message: str
) -> None:
    segmenter = segmenter_of(image)
    with torch.no_grad():
        segmenter.model.get_parameter(tensor).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=message):
        segmenter.segment(picture, NAMES)
