"""`groupvit export`: what others read of it equals our model, and the licence goes with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file

from groupvit.checkpoint import load, load_state, save
from groupvit.config import ModelConfig
from groupvit.interop.model_card import license_of
from groupvit.model import GroupViT
from groupvit.tokenizer import Tokenizer, clean, fix_text
from groupvit.windows import group_maps
from pipelines import storage
from pipelines.cli.main import main
from tests.support.edited_checkpoint import edit_state
from tests.support.golden import golden_encoder, golden_weights
from tests.support.hugging_face import randomise, some_texts
from tests.support.small_model import OFFICIAL

NOTICE = "Only on Sundays: see https://example.org/sundays."
TEXTS = [
    "a photo of a cat.",
    "  White\tspace \n everywhere　",
    "It's the dogs' café; they've 1234 cats, we'll see!!! :-)",
    "naïve NAÏVE İstanbul ſtraſſe ǅ",
    "日本語の字幕 한국어 русский עברית ไทย",
    "👩‍👩‍👧 🏳️‍🌈 emoji ☃️",
    "e\u0301 combining, ﬁ ligature, ½, ²",
    "''s 't'd don''t",
    "a" * 300,
    "word " * 100,
    "",
    "!",
    "under_score-hyphen/slash\\back",
    "zero\u200bwidth nbsp\u00a0here soft\u00adhyphen",
    "bell\x07 and \x00 null",
]


def make_checkpoint(folder: Path, config: ModelConfig = OFFICIAL, state: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    model = GroupViT(config)
    randomise(model)
    with torch.no_grad():
        model.multi_label_logit_scale.fill_(2.0)
        model.logit_scale.fill_(3.0)
        model.image_projector.norm.num_batches_tracked.fill_(7)  # pyright: ignore[reportOptionalMemberAccess]
    save(folder, model, state={"step": 3} if state is None else state)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("export") / "mine", state={"step": 3, "license": NOTICE})


@pytest.fixture(scope="module")
def hf(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    assert main(["export", "--checkpoint", str(checkpoint), "--to", "hf", "--out", str(out)]) == 0
    return out


def run(capsys: pytest.CaptureFixture[str], command: str, *arguments: object) -> dict[str, Any]:
    """The summary of a command that must succeed."""
    capsys.readouterr()
    code = main([command, *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out.splitlines()[-1])


def assert_equal_models(ours: GroupViT, theirs: GroupViT) -> None:
    assert ours.config == theirs.config
    after = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


@torch.inference_mode()
def test_transformers_gives_the_same_embeddings_logits_and_assignments(checkpoint: Path, hf: Path) -> None:
    ours, theirs = load(checkpoint), transformers.GroupViTModel.from_pretrained(hf)
    theirs_state, exported = theirs.state_dict(), load_file(hf / "model.safetensors")
    assert theirs_state.keys() == exported.keys()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in theirs_state.items())
    torch.manual_seed(0)
    images, token_ids = torch.randn(2, 3, 32, 32), some_texts(4)
    given = theirs(input_ids=token_ids, pixel_values=images, output_attentions=True)
    encoding, texts = ours.encode_image(images), ours.encode_text(token_ids)
    image_embeds, text_embeds = (torch.nn.functional.normalize(x, dim=-1) for x in (encoding.embedding, texts))
    for actual, expected in (
        (given.image_embeds, image_embeds),
        (given.text_embeds, text_embeds),
        # A logit is a cosine times the scale, and so is its rounding error: compared as the cosine it was.
        (given.logits_per_image / ours.logit_scale.exp(), image_embeds @ text_embeds.T),
    ):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    soft = [attention for attention in given.vision_model_output.attentions if attention is not None]
    for actual, expected in zip(soft, encoding.soft_assignments, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    maps = (soft[1] @ soft[0]).unflatten(-1, (4, 4))
    torch.testing.assert_close(maps, group_maps(encoding.features)[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", TEXTS)
def test_their_tokenizer_gives_our_ids(hf: Path, text: str) -> None:
    theirs = transformers.CLIPTokenizer.from_pretrained(hf)
    given = theirs([fix_text(text)], truncation=True, padding="max_length", return_tensors="np")
    length = int(given["attention_mask"].sum())
    [ours] = Tokenizer()([text])
    assert given["input_ids"].shape == (1, 77)
    assert given["input_ids"][0, :length].tolist() == ours[:length].tolist()
    assert not ours[length:].any(), clean(text)


def test_the_processor_is_that_of_training(hf: Path) -> None:
    processor = transformers.AutoProcessor.from_pretrained(hf)
    images = processor.image_processor
    assert list(images.image_mean) == [0.485, 0.456, 0.406] and list(images.image_std) == [0.229, 0.224, 0.225]
    noise = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    given = processor(text=["a cat"], images=noise, return_tensors="pt", padding=True)
    assert given["pixel_values"].shape == (1, 3, 32, 32)
    assert given["input_ids"].tolist() == [[49406, 320, 2368, 49407]]
    assert "not CLIP's" in (hf / "README.md").read_text()


@pytest.mark.parametrize("name", ["one_stage", "two_stage"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_official_names_there_and_back_are_bit_identical(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    heads = ["--num-heads", *golden_encoder(name)["num_heads"]]
    before = golden_weights(name)
    torch.save({"model": before}, tmp_path / "released.pth")
    run(capsys, "import-weights", tmp_path / "released.pth", "--out", tmp_path / "a", *heads)
    run(capsys, "export", "--checkpoint", tmp_path / "a", "--to", "official", "--out", tmp_path / "b")
    after = torch.load(tmp_path / "b" / "group_vit.pth", weights_only=True)["model"]
    same = load_file(tmp_path / "b" / "group_vit.safetensors")
    missing = after.keys() - before.keys()
    assert missing <= {"multi_label_logit_scale"} and before.keys() <= after.keys() and same.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) and torch.equal(tensor, same[key]) for key, tensor in before.items())
    run(capsys, "import-weights", tmp_path / "b" / f"group_vit.{suffix}", "--out", tmp_path / "c", *heads)
    assert_equal_models(load(tmp_path / "a"), load(tmp_path / "c"))
    first, second = (license_of(load_state(tmp_path / name)) for name in "ac")
    assert first is not None and first == second


def test_onnx_comes_with_what_is_needed_to_use_it(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(capsys, "export", "--checkpoint", checkpoint, "--to", "onnx", "--out", tmp_path / "onnx")
    metadata = json.loads((tmp_path / "onnx" / "metadata.json").read_text())
    assert metadata["logit_scale"] == pytest.approx(torch.tensor(3.0).exp().item())
    assert metadata["multi_label_logit_scale"] == pytest.approx(torch.tensor(2.0).exp().item())
    assert metadata["license"] == summary["license"] == NOTICE
    files = {"image_encoder.onnx", "text_encoder.onnx", "metadata.json", "README.md", "LICENSE", "segment_onnx.py"}
    assert files < set(summary["bytes"])
    assert metadata["segmentation"]["short_side"] == 64  # twice the side of training
    graph = onnx.load(tmp_path / "onnx" / "image_encoder.onnx")
    assert {item.key: item.value for item in graph.metadata_props}["license"] == NOTICE


@pytest.mark.parametrize("to", ["hf", "official"])
@pytest.mark.parametrize("notice", [NOTICE, None])
def test_the_licence_goes_out_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, notice: str | None
) -> None:
    state = {"step": 3} if notice is None else {"step": 3, "license": notice}
    source = make_checkpoint(tmp_path / "mine", state=state)
    out = tmp_path / "out"
    assert run(capsys, "export", "--checkpoint", source, "--to", to, "--out", out)["license"] == notice
    assert (out / "LICENSE").exists() == (notice is not None)
    assert (notice or "None was given") in (out / "README.md").read_text()
    back = out if to == "hf" else out / "group_vit.pth"
    run(capsys, "import-weights", back, "--out", tmp_path / "back")
    assert license_of(load_state(tmp_path / "back")) == notice
    assert (notice or "None was given") in (tmp_path / "back" / "README.md").read_text()


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_to_object_storage(to: str, checkpoint: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(capsys, "export", "--checkpoint", checkpoint, "--to", to, "--out", f"{bucket}/{to}")
    assert sorted(storage.list_sizes(f"{bucket}/{to}")) == sorted(summary["bytes"])


@pytest.mark.parametrize(
    ("option", "value"), [("stem", "convolutional"), ("assignment", "soft"), ("group_residual", False)]
)
@pytest.mark.parametrize("to", ["hf", "official"])
def test_options_that_others_have_not_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: object, to: str
) -> None:
    image = dataclasses.replace(OFFICIAL.image, **{option: value})
    source = make_checkpoint(tmp_path / "mine", dataclasses.replace(OFFICIAL, image=image))
    assert main(["export", "--checkpoint", str(source), "--to", to, "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"image.{option}={value!r} has no counterpart" in line
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(source: Path, to: str, out: Path) -> str:
        assert main(["export", "--checkpoint", str(source), "--to", to, "--out", str(out)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    new = tmp_path / "new"
    assert "tflite" in refusal(checkpoint, "tflite", new) and "--to" in refusal(checkpoint, "tflite", new)
    assert "is neither a checkpoint nor a run" in refusal(tmp_path, "hf", new)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    assert "exists: give another folder" in refusal(checkpoint, "hf", tmp_path / "kept")
    assert (tmp_path / "kept" / "file").read_text() == "mine"
    newer = make_checkpoint(tmp_path / "newer")
    edit_state(newer, format_version=99)
    assert "format_version=99, newer than" in refusal(newer, "hf", new)
    edit_state(newer, format_version=1)
    weights = (newer / "model.safetensors").read_bytes()
    (newer / "model.safetensors").write_bytes(weights[:-100])
    assert "is corrupted" in refusal(newer, "hf", new)
    assert not new.exists()
