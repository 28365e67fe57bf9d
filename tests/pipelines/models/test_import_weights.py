"""`groupvit import-weights` on files as others wrote them, through the command line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import GroupViTConfig, GroupViTModel

from groupvit.checkpoint import load, load_state
from groupvit.interop.model_card import RELEASED_NOTICE, license_of
from groupvit.protocols import protocol_of
from pipelines.cli.main import main
from pipelines.runs.checkpoints import local_checkpoint
from tests.support.golden import GOLDEN, assert_golden, golden_encoder, golden_weights
from tests.support.hugging_face import (
    SMALL_HUGGING_FACE,
    assert_same_outputs,
    randomise,
    small_hugging_face,
    some_texts,
)

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 223000000\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The summary of an import that must succeed."""
    code = main(["import-weights", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out.splitlines()[-1])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of an import that must fail."""
    capsys.readouterr()  # what made the source may have drawn progress
    assert main(["import-weights", *map(str, arguments)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def heads(name: str) -> list[str]:
    return ["--num-heads", *map(str, golden_encoder(name)["num_heads"])]


@pytest.mark.parametrize("kind", ["pth", "safetensors", "golden"])
@pytest.mark.parametrize("name", ["one_stage", "two_stage"])
def test_golden_weights_give_the_golden_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    source = tmp_path / f"{name}.{kind}"
    if kind == "pth":
        torch.save({"model": golden_weights(name), "epoch": 29}, source)
    elif kind == "safetensors":
        save_file(golden_weights(name), source)
    else:
        source = GOLDEN / f"{name}.safetensors"  # with inputs and outputs beside the weights
    summary = run(capsys, source, "--out", tmp_path / "out", *heads(name), "--license", "Random numbers: CC0.")
    assert summary["license"] == "Random numbers: CC0." and summary["kind"] == "official"
    assert_golden(load(tmp_path / "out"), name)


def test_the_checkpoint_is_one_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "released.pth", tmp_path / "deep" / "out"
    torch.save({"model": golden_weights("two_stage")}, source)
    run(capsys, source, "--out", out, *heads("two_stage"))
    with local_checkpoint(str(out)) as folder:
        model, state = load(folder), load_state(folder)
    assert state["step"] == 0
    assert state["imported_from"]["name"] == "released.pth" and len(state["imported_from"]["sha256"]) == 64
    segmentation = protocol_of("model", model, state)
    assert (segmentation.short_side, segmentation.window, segmentation.stride) == (128, 128, 64)
    card = (out / "README.md").read_text()
    assert "released.pth" in card and state["imported_from"]["sha256"] in card and "4, 4, 4" in card
    assert sorted(os.listdir(tmp_path / "deep")) == ["out"], "no temporary folder is left"


def test_an_imported_model_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_hugging_face(tmp_path / "source")
    run(capsys, tmp_path / "source", "--out", tmp_path / "out")
    Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "photo.png")
    words = ["--classes", "cat, dog", "--out", str(tmp_path / "segmented")]
    assert main(["segment", str(tmp_path / "photo.png"), "--checkpoint", str(tmp_path / "out"), *words]) == 0
    with Image.open(tmp_path / "segmented" / "labels.png") as labels:
        assert labels.size == (90, 60)


def test_released_names_carry_the_released_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "released.pth"
    torch.save({"model": golden_weights("one_stage")}, source)
    assert run(capsys, source, "--out", tmp_path / "a", *heads("one_stage"))["license"] == RELEASED_NOTICE
    assert license_of(load_state(tmp_path / "a")) == RELEASED_NOTICE
    assert "non-commercially only" in (tmp_path / "a" / "README.md").read_text()
    own = run(capsys, source, "--out", tmp_path / "b", *heads("one_stage"), "--licence", "Mine.")
    assert own["license"] == license_of(load_state(tmp_path / "b")) == "Mine."


@pytest.mark.parametrize(
    ("card", "license_file", "expected"),
    [
        (None, None, RELEASED_NOTICE),
        ("---\nlicense: other\ntags:\n- vision\n---\n# GroupViT", None, RELEASED_NOTICE),
        ("---\nlicense: apache-2.0\n---\n# GroupViT", None, "apache-2.0"),
        ("---\nlicense: unknown\n---\n", None, None),
        ("---\nlicense: other\nlicense_name: 'house rules'\nlicense_link: https://x.y\n---\n", None, "house rules"),
        ("---\nlicense: other\n---\n", "Only on\nSundays.\n", "Only on Sundays."),
        (None, "The Long Licence\n" + "words " * 1000, "The Long Licence (see the source's LICENSE)"),
    ],
)
def test_a_folder_says_its_licence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], card: str | None, license_file: str | None, expected: str | None
) -> None:
    small_hugging_face(tmp_path / "source")
    for name, text in (("README.md", card), ("LICENSE", license_file)):
        if text is not None:
            (tmp_path / "source" / name).write_text(text)
    summary = run(capsys, tmp_path / "source", "--out", tmp_path / "out")
    notice = license_of(load_state(tmp_path / "out"))
    assert summary["license"] == notice
    assert notice == expected or (expected == "house rules" and notice == "house rules https://x.y")


@pytest.mark.slow
def test_a_full_size_folder_equals_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    theirs = GroupViTModel(GroupViTConfig()).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "source")
    summary = run(capsys, tmp_path / "source", "--out", tmp_path / "out")
    assert summary["parameters"] == 55_726_610
    assert_same_outputs(load(tmp_path / "out"), theirs, some_texts(3))


def test_an_old_folder_holds_a_pickle_of_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = small_hugging_face(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "source" / "pytorch_model.bin")
    assert run(capsys, tmp_path / "source", "--out", tmp_path / "out")["file"] == "pytorch_model.bin"
    assert_same_outputs(load(tmp_path / "out"), theirs, some_texts(3))


def test_to_and_from_object_storage(tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import storage

    small_hugging_face(tmp_path / "source")
    for file in (tmp_path / "source").iterdir():
        storage.copy(str(file), f"{bucket}/source/{file.name}")
    summary = run(capsys, f"{bucket}/source", "--out", f"{bucket}/out")
    with local_checkpoint(f"{bucket}/out") as folder:
        assert load_state(folder)["imported_from"]["sha256"] == summary["sha256"]
    assert "README.md" in storage.list_files(f"{bucket}/out")
    storage.copy(str(GOLDEN / "one_stage.safetensors"), f"{bucket}/golden.safetensors")
    run(capsys, f"{bucket}/golden.safetensors", "--out", tmp_path / "out", *heads("one_stage"))
    assert_golden(load(tmp_path / "out"), "one_stage")
    assert "has files in it" in refusal(capsys, f"{bucket}/source", "--out", f"{bucket}/out")
    assert "does not exist" in refusal(capsys, f"{bucket}/nothing.pth", "--out", f"{bucket}/other")


def without(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda w: without(w, "img_encoder.norm.weight"), "", "lacks image_encoder.norm.weight"),
        (lambda w: without(w, "img_encoder.pos_embed"), "", "it lacks img_encoder.pos_embed"),
        (lambda w: {**w, "img_encoder.norm.bias": torch.ones(32, dtype=torch.int8)}, "", "of torch.int8, which is not"),
        (lambda w: {**w, "logit_scale": torch.tensor(torch.nan)}, "", "logit_scale, in which 1 of 1 numbers are nan"),
        (
            lambda w: {**w, "img_encoder.norm.bias": torch.full((32,), -1e300, dtype=torch.float64)},
            "",
            "released.pth: state dict has img_encoder.norm.bias, in which 32 of 32 numbers are -inf",
        ),
        (lambda w: {**w, "extra": torch.ones(1)}, "", "has an unknown tensor extra"),
        (lambda w: {**w, "img_encoder.norm.bias": torch.ones(3)}, "", "with shape (3,) where (32,) is expected"),
        (lambda w: {**w, "img_encoder.pos_embed": torch.ones(3)}, "", "too few or too many axes"),
        (lambda w: {"vision_model.x": torch.ones(1)}, "", "give its folder"),
        (lambda w: w, "--num-heads 2", "num_heads=(2,) has 1 entries for 2 stages"),
        (lambda w: w, "--num-heads 5 5", "5 does not divide image.width=32"),
        (lambda w: w, None, "not a multiple of 64 channels per head: give num_heads"),
        (lambda w: w, "--num-head 2 2", "did you mean --num-heads?"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, arguments: str | None, message: str
) -> None:
    torch.save({"model": change(golden_weights("one_stage"))}, tmp_path / "released.pth")
    given = [] if arguments is None else arguments.split() or heads("one_stage")
    assert message in refusal(capsys, tmp_path / "released.pth", "--out", tmp_path / "out", *given)
    assert os.listdir(tmp_path) == ["released.pth"], "nothing is left behind"


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path) -> None:
    no_weights(folder)
    GroupViTModel(GroupViTConfig(**SMALL_HUGGING_FACE)).save_pretrained(folder, max_shard_size="30KB")


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_model.final_layer_norm.bias"][0] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(**entries: Any) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for part in ("vision_config", "text_config"):
            config[part] |= entries.get(part, {})
        (folder / "config.json").write_text(json.dumps(config | {"model_type": entries.get("model_type", "groupvit")}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_weights, "has neither model.safetensors nor pytorch_model.bin"),
        (
            not_finite,
            "source: Hugging Face state dict has text_model.final_layer_norm.bias, in which 1 of 32 numbers are",
        ),
        (in_shards, "has its weights in several files (model.safetensors.index.json): save the model in one"),
        (lambda folder: (folder / "model.safetensors").write_text(LFS_POINTER), "is a Git LFS pointer, not the file"),
        (lambda folder: (folder / "config.json").unlink(), "source has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is corrupted"),
        (lambda folder: (folder / "config.json").write_text("{}"), "it lacks vision_config"),
        (configure(model_type="clip"), "is not of a GroupViTModel"),
        (configure(vision_config={"hidden_size": 64}), "with shape (1, 16, 32) where (1, 16, 64) is expected"),
        (configure(vision_config={"hidden_size": "64"}), "not the config of a Hugging Face GroupViTModel"),
        (configure(vision_config={"hidden_act": "relu"}), "vision_config.hidden_act='relu' has no counterpart"),
        (configure(vision_config={"assign_eps": 1e-6}), "vision_config.assign_eps=1e-06 has no counterpart"),
        # Neither may take the memory or the time that it asks for.
        (configure(text_config={"vocab_size": 10**12}), "are not all whole numbers of a sensible size"),
        (configure(text_config={"vocab_size": 10**7, "hidden_size": 10**6}), "is expected"),
        (configure(text_config={"num_hidden_layers": 10**9}), "blocks, but there are"),
    ],
)
def test_folders_that_do_not_fit_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    small_hugging_face(tmp_path / "source")
    change(tmp_path / "source")
    assert message in refusal(capsys, tmp_path / "source", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / "one_stage.safetensors"
    (tmp_path / "out").mkdir()
    run(capsys, source, "--out", tmp_path / "out", *heads("one_stage"))  # an empty folder is none
    before = (tmp_path / "out" / "state.json").read_bytes()
    assert "exists: give another folder" in refusal(capsys, source, "--out", tmp_path / "out", *heads("one_stage"))
    assert (tmp_path / "out" / "state.json").read_bytes() == before
    assert "does not exist" in refusal(capsys, tmp_path / "nothing.pth", "--out", tmp_path / "new")
