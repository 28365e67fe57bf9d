"""The ONNX graphs, run by ONNX Runtime, against the model: any batch, any image size, any length of text."""

import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from groupvit.config import ModelConfig, TextEncoderConfig
from groupvit.interop.onnx import IMAGE_GRAPH, TEXT_GRAPH, cubic_weights, export_onnx
from groupvit.model import GroupViT
from groupvit.windows import group_maps
from tests.support.hugging_face import randomise
from tests.support.small_model import SMALL, WORDS, small_model

TOLERANCE = 1e-4
CONVOLUTIONAL = replace(
    WORDS,
    image=replace(
        WORDS.image,
        stem="convolutional",
        num_group_tokens=(4, 0),
        num_output_groups=(4,),
        assignment="soft",
        group_residual=False,
    ),
    text=SMALL.text,
)


@pytest.fixture(scope="module", params=["patch", "convolutional"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GroupViT, Path]:
    model = small_model(SMALL if request.param == "patch" else CONVOLUTIONAL).eval()
    torch.manual_seed(3)
    randomise(model)
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(model, folder, {"license": "Only on Sundays."})
    return model, folder


@torch.inference_mode()
def assert_same_images(model: GroupViT, session: onnxruntime.InferenceSession, images: Tensor) -> None:
    encoding = model.encode_image(images)
    expected = (encoding.embedding, encoding.segment_embeddings, group_maps(encoding.features)[-1])
    made = session.run(["image_embedding", "segment_embeddings", "group_map"], {"image": images.numpy()})
    for actual, right in zip(made, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), right, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def assert_same_texts(model: GroupViT, session: onnxruntime.InferenceSession, token_ids: Tensor) -> None:
    [made] = session.run(["text_embedding"], {"token_ids": token_ids.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), model.encode_text(token_ids), atol=TOLERANCE, rtol=0)


def some_texts(config: TextEncoderConfig, num_texts: int, length: int) -> Tensor:
    """Random ids, the end token at another place in each, zeros after it."""
    end = config.vocab_size - 1
    token_ids = torch.randint(1, end, (num_texts, length))
    ends = torch.arange(num_texts)[:, None] % (length - 1) + 1
    return token_ids.scatter(1, ends, end) * (torch.arange(length) <= ends)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [(1, 1), (1, 0.5), (2, 3), (0.75, 2.25)])
def test_images_of_any_batch_and_size(exported: tuple[GroupViT, Path], batch: int, tokens: tuple[float, float]) -> None:
    model, folder = exported
    torch.manual_seed(0)
    height, width = (int(model.config.image.image_size * factor) for factor in tokens)
    assert_same_images(model, onnxruntime.InferenceSession(folder / IMAGE_GRAPH), torch.randn(batch, 3, height, width))


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 1), (-1, 3), (3, -31)])
def test_other_sizes_fail_in_the_graph(exported: tuple[GroupViT, Path], rows: int, columns: int) -> None:
    """A side that is not a multiple of the patch size: no row is dropped, or made up."""
    model, folder = exported
    session = onnxruntime.InferenceSession(folder / IMAGE_GRAPH)
    image = torch.zeros(1, 3, 32 + rows, 32 + columns)
    size = model.config.image.patch_size
    with pytest.raises(Exception, match=f"image_sides_must_be_multiples_of_{size}") as caught:
        session.run(None, {"image": image.numpy()})
    assert f"Input shape:{{1,3,{32 + rows},{32 + columns}}}" in str(caught.value)


def test_texts_longer_than_the_context_fail_in_the_graph(exported: tuple[GroupViT, Path]) -> None:
    model, folder = exported
    token_ids = some_texts(model.config.text, 2, model.config.text.context_length + 1)
    with pytest.raises(Exception, match="17"):
        onnxruntime.InferenceSession(folder / TEXT_GRAPH).run(None, {"token_ids": token_ids.numpy()})


@pytest.mark.parametrize(("num_texts", "length"), [(1, 16), (3, 16), (5, 7), (1, 2)])
def test_texts_of_any_number_and_length(exported: tuple[GroupViT, Path], num_texts: int, length: int) -> None:
    model, folder = exported
    token_ids = some_texts(model.config.text, num_texts, length)
    assert_same_texts(model, onnxruntime.InferenceSession(folder / TEXT_GRAPH), token_ids)


def test_each_file_is_whole_and_says_what_it_was_told(exported: tuple[GroupViT, Path]) -> None:
    _, folder = exported
    assert sorted(file.name for file in folder.iterdir()) == [IMAGE_GRAPH, TEXT_GRAPH]
    for name in (IMAGE_GRAPH, TEXT_GRAPH):
        assert str(Path(__file__).parents[3]).encode() not in (folder / name).read_bytes(), "paths of this machine"
        graph = onnx.load(folder / name)
        assert {item.key: item.value for item in graph.metadata_props}["license"] == "Only on Sundays."


@pytest.mark.parametrize(("num_out", "num_in"), [(4, 4), (9, 4), (3, 7), (1, 14), (28, 14)])
def test_cubic_weights_are_those_of_interpolate(num_out: int, num_in: int) -> None:
    line = torch.randn(1, 1, num_in, num_in)
    expected = F.interpolate(line, size=(num_out, num_in), mode="bicubic", align_corners=False)
    torch.testing.assert_close(cubic_weights(num_out, num_in) @ line[0, 0], expected[0, 0], atol=1e-5, rtol=0)


def test_a_model_without_groups_is_refused(tmp_path: Path) -> None:
    image = replace(WORDS.image, depths=(1,), num_heads=(2,), num_group_tokens=(0,), num_output_groups=())
    with pytest.raises(ValueError, match=r"num_output_groups=\(\)"):
        export_onnx(small_model(replace(WORDS, image=image)), tmp_path, {})


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were absent: importing it fails
    with pytest.raises(ValueError, match=r"pip install 'groupvit\[onnx\]'"):
        export_onnx(small_model(), tmp_path, {})


@pytest.mark.slow
def test_the_full_size_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GroupViT(ModelConfig()).eval()
    randomise(model)
    export_onnx(model, tmp_path, {})
    session = onnxruntime.InferenceSession(tmp_path / IMAGE_GRAPH)
    assert_same_images(model, session, torch.randn(1, 3, 224, 224))
    assert_same_images(model, session, torch.randn(2, 3, 448, 320))
    assert_same_texts(model, onnxruntime.InferenceSession(tmp_path / TEXT_GRAPH), some_texts(model.config.text, 3, 77))
