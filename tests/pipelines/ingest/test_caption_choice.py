"""Which caption a sample shows, and when."""

import dataclasses
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from groupvit.tokenizer import Tokenizer
from pipelines.dataset.format import DatasetInfo, open_dataset
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, IngestConfig
from pipelines.ingest.caption_choice import caption_index, mixed_caption_index
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.slices import load_slices
from tests.support.dataset_folder import make_dataset, make_recaptioned

ORIGINS = ["original", "original", "llava", "llava", "llava", "blip"]


def test_origins_come_by_weight_and_their_captions_in_equal_shares() -> None:
    mix = {"original": 3.0, "llava": 6.0, "blip": 1.0}
    drawn = Counter(
        mixed_caption_index(ORIGINS, mix, 0, epoch, f"{sample}") for sample in range(400) for epoch in range(25)
    )
    by_origin: Counter[str] = Counter()
    for index, count in drawn.items():
        by_origin[ORIGINS[index]] += count
    assert abs(by_origin["original"] - 3000) < 250 and abs(by_origin["llava"] - 6000) < 250
    for name in ("original", "llava"):
        counts = [drawn[index] for index, origin in enumerate(ORIGINS) if origin == name]
        assert max(counts) - min(counts) < 0.15 * np.mean(counts)


def test_what_a_sample_lacks_is_shared_by_the_others() -> None:
    mix = {"original": 0.5, "llava": 0.25, "blip": 0.25}
    own = ["original", "blip"]
    drawn = Counter(
        mixed_caption_index(own, mix, 1, epoch, f"{sample}") for sample in range(300) for epoch in range(10)
    )
    assert abs(drawn[0] - 2000) < 150 and drawn[0] + drawn[1] == 3000
    only = [mixed_caption_index(["original"] * 3, {"llava": 1.0}, 0, epoch, "a") for epoch in range(9)]
    assert only == [caption_index(3, 0, epoch, "a") for epoch in range(9)]  # none of the mix: all take turns


def test_one_origin_is_drawn_as_if_there_were_no_other() -> None:
    for epoch in range(30):
        assert mixed_caption_index(ORIGINS, {"original": 2.0}, 4, epoch, "x") == caption_index(2, 4, epoch, "x")
        assert mixed_caption_index(ORIGINS, {"llava": 0.1}, 4, epoch, "x") == 2 + caption_index(3, 4, epoch, "x")


def test_a_draw_depends_on_seed_epoch_and_sample_alone() -> None:
    mix = {"original": 0.5, "llava": 0.5}

    def draws(seed: int = 0, name: str = "a", **other: float) -> list[int]:
        return [mixed_caption_index(ORIGINS, mix | other, seed, epoch, name) for epoch in range(64)]

    assert draws() == draws() != draws(seed=1) and draws() != draws(name="b")
    assert draws() == draws(original=1.0, llava=1.0)  # weights have any scale
    # Of blake2b: the same on every machine, and it must never change.
    assert draws()[:16] == [0, 1, 4, 0, 0, 1, 0, 4, 0, 2, 1, 0, 2, 4, 0, 3]


def slices_of(info: DatasetInfo, num_slices: int, mix: tuple[str, ...] | None = None) -> list[Any]:
    base = debug()
    config = dataclasses.replace(
        base,
        data=DataConfig(sources=(info.uri,), seed=3, caption_mix=mix),
        ingest=IngestConfig(slice_size=4, window_size=12, augmentation="crop_flip"),
        training=dataclasses.replace(base.training, global_batch_size=4),
    )
    plan = plan_ingest(config)
    return [load_slices(plan, index, index + 1)[0] for index in range(num_slices)]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(np.array_equal(one[name], other[name]) for one, other in zip(first, second, strict=True) for name in one)


@pytest.fixture(scope="module")
def recaptioned(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    """The samples of `plain`; every fourth one has no recaption."""
    return make_recaptioned(tmp_path_factory.mktemp("data") / "new", 12, num_captions=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return make_dataset(tmp_path_factory.mktemp("data") / "old", 12, num_captions=2, rows_per_group=8)


def test_a_mix_of_original_captions_has_the_bits_of_the_data_set_without_recaptions(
    plain: DatasetInfo, recaptioned: DatasetInfo
) -> None:
    expected = slices_of(plain, 9)
    assert same(slices_of(recaptioned, 9, ("original:1",)), expected)
    assert same(slices_of(plain, 9, ("original:0.5", "llava:0.5")), expected)  # of a mixture, one may have no others
    assert not same(slices_of(recaptioned, 9), expected)
    assert not same(slices_of(recaptioned, 9, ("llava:1",)), expected)


def test_a_caption_comes_with_its_own_nouns_and_without_a_mix_all_take_turns(recaptioned: DatasetInfo) -> None:
    tokenizer = Tokenizer()
    shown: dict[str, list[str]] = defaultdict(list)
    for piece in slices_of(recaptioned, 3 * 12):  # 12 epochs of 3 slices
        for name, ids in zip(piece["sample_id"], piece["token_ids"], strict=True):
            shown[name].append(tokenizer.decode(ids[0].tolist()))
    assert len(shown) == 12
    for texts in shown.values():
        counts = Counter(texts)
        assert len(counts) in (2, 4) and set(counts.values()) == {12 // len(counts)}

    nouns: dict[str, set[int]] = defaultdict(set)
    for piece in slices_of(recaptioned, 36, ("original:1", "llava:2")):
        for keys, ids in zip(piece["prompt_keys"], piece["token_ids"], strict=True):
            text = tokenizer.decode(ids[0].tolist())
            if "wooden" in text:
                nouns["llava"].add(int(keys[0]))
    assert len(nouns["llava"]) == 1  # `table` alone


def test_the_same_windows_in_any_order_hold_the_same(recaptioned: DatasetInfo) -> None:
    mix = ("original:0.4", "llava:0.6")
    config = dataclasses.replace(
        debug(),
        data=DataConfig(sources=(recaptioned.uri,), caption_mix=mix),
        ingest=IngestConfig(slice_size=4, window_size=12, augmentation="crop_flip"),
    )
    plan = plan_ingest(config)
    forward = [load_slices(plan, index, index + 3) for index in (0, 3, 6)]
    backward = [load_slices(plan_ingest(config), index, index + 3) for index in (6, 3, 0)]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert same(one, other)
    assert open_dataset(recaptioned.uri).caption_origins == ("original", "llava")
