import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from groupvit.captions import draw_prompts
from groupvit.config import LossConfig
from groupvit.tokenizer import Tokenizer
from pipelines.experiments.catalogue import debug, gcc_yfcc_30e
from pipelines.experiments.config import DataConfig, IngestConfig, TrainingConfig
from pipelines.ingest.loader import iter_slices, num_prefetched, training_slices
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.sampling import slices_of_step
from pipelines.ingest.slices import caption_index, load_slices
from tests.support.dataset_folder import damage_files, make_dataset, make_samples

NUM_CPUS = 2
NUM_STEPS = 6
SLICES_PER_STEP = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two sources, one with a corrupt image, one with three captions an image, in slices of 4; windows (12) and steps
    (16) do not line up."""
    folder = tmp_path_factory.mktemp("sources")
    make_dataset(folder / "a", 30, corrupt={7})
    make_dataset(folder / "b", 50, seed=1, num_captions=3)
    base = debug()
    return dataclasses.replace(
        base,
        data=DataConfig(sources=(str(folder / "a"), str(folder / "b")), seed=3),
        ingest=IngestConfig(slice_size=4, window_size=12),
        training=TrainingConfig(num_steps=NUM_STEPS, global_batch_size=4 * SLICES_PER_STEP),
        loss=LossConfig(num_prompts=2),
    )


def read_with_ray(config, world_size, first_step=0):
    """[world_size] lists of slices, read by that many workers at once."""
    shards = training_slices(config, first_step=first_step).streaming_split(world_size, equal=False)
    with ThreadPoolExecutor(world_size) as workers:
        return list(workers.map(lambda shard: list(iter_slices(shard)), shards))


def read_without_ray(config, first_step=0):
    plan = plan_ingest(config)
    first, end = first_step * SLICES_PER_STEP, NUM_STEPS * SLICES_PER_STEP
    return [load_slices(plan, index, index + 1)[0] for index in range(first, end)]


def assert_same(slices, expected):
    assert len(slices) == len(expected)
    for piece, other in zip(slices, expected, strict=True):
        assert set(piece) == set(other)
        for name, column in other.items():
            assert piece[name].dtype == column.dtype and piece[name].shape == column.shape, name
            assert np.array_equal(piece[name], column), name


@pytest.mark.parametrize(
    ("world_size", "first_step"), [(1, 0), (4, 0), (2, 5), pytest.param(2, 0, marks=pytest.mark.slow)]
)
def test_every_rank_gets_its_slices_bit_by_bit(cluster, config, world_size, first_step):
    # At any number of workers, and from the middle: step 5 begins within a window.
    expected = read_without_ray(config)
    for rank, slices in enumerate(read_with_ray(config, world_size, first_step)):
        places = itertools.chain.from_iterable(
            slices_of_step(step, SLICES_PER_STEP, rank=rank, world_size=world_size)
            for step in range(first_step, NUM_STEPS)
        )
        assert_same(slices, [expected[place] for place in places])


def test_slices_have_the_shapes_and_types_of_the_contract(config):
    size = config.model.image.image_size
    context_length = config.model.text.context_length
    (piece,) = load_slices(plan_ingest(config), 5, 6)
    shapes = {name: (column.dtype.str[1:], column.shape) for name, column in piece.items()}
    assert shapes == {
        "image": ("u1", (4, 3, size, size)),
        "token_ids": ("i4", (4, 3, context_length)),
        "prompt_keys": ("i8", (4, 2)),
        "erase_box": ("i2", (4, 4)),
        "noise_seed": ("i8", (4,)),
        "sample_id": ("O", (4,)),
        "position": ("i8", (4,)),
        "epoch": ("i4", (4,)),
        "source": ("i1", (4,)),
        "substituted": ("b1", (4,)),
    }
    assert piece["position"].tolist() == [20, 21, 22, 23]


def test_samples_are_what_the_order_names(config):
    rows = [list(make_samples(30, corrupt={7})), list(make_samples(50, seed=1, num_captions=3))]
    plan = plan_ingest(config)
    located = plan.order.locate(np.arange(16 * NUM_STEPS))
    tokenizer = Tokenizer()
    for piece in read_without_ray(config):
        for index, position in enumerate(piece["position"]):
            source = located.source[position]
            row = rows[source][located.row_group[position] * 8 + located.row[position]]
            assert piece["sample_id"][index] == row["sample_id"]
            assert piece["source"][index] == source and piece["epoch"][index] == located.epoch[position]
            if not piece["substituted"][index]:
                captions = tokenizer(row["captions"], config.model.text.context_length)
                number = caption_index(len(captions), 3, int(piece["epoch"][index]), row["sample_id"])
                assert np.array_equal(piece["token_ids"][index, 0], captions[number])


def test_each_epoch_sees_every_sample_once(config):
    slices = read_without_ray(config)
    for source, num_samples in enumerate([30, 50]):
        ids = [
            name for piece in slices for name in piece["sample_id"][(piece["source"] == source) & (piece["epoch"] == 0)]
        ]
        assert len(ids) == len(set(ids)) == num_samples


def test_a_corrupt_image_is_substituted_by_the_next_of_its_window(config):
    corrupt = list(make_samples(30, corrupt={7}))[7]["sample_id"]
    slices = read_without_ray(config)
    found = [(piece, int(index)) for piece in slices for index in np.flatnonzero(piece["substituted"])]
    assert found and all(piece["sample_id"][index] == corrupt for piece, index in found)
    assert sum((piece["sample_id"] == corrupt).sum() for piece in slices) == len(found)
    for piece, index in found:
        position = int(piece["position"][index])
        window = position // 12 * 12
        following = window + (position - window + 1) % 12
        other = slices[following // 4]
        assert np.array_equal(piece["token_ids"][index, 0], other["token_ids"][following % 4, 0])
        assert piece["noise_seed"][index] != other["noise_seed"][following % 4]  # augmented anew


def test_augmentation_and_prompts_are_drawn_afresh_every_epoch(config):
    config = dataclasses.replace(config, training=TrainingConfig(num_steps=20, global_batch_size=16))
    plan = plan_ingest(config)
    seen: dict[str, list] = {}
    for index in range(20 * SLICES_PER_STEP):
        (piece,) = load_slices(plan, index, index + 1)
        for name, image, texts in zip(piece["sample_id"], piece["image"], piece["token_ids"], strict=True):
            seen.setdefault(name, []).append((image.tobytes(), texts[1:].tobytes(), texts[0].tobytes()))
    visits = [visit for visit in seen.values() if len(visit) > 2]
    assert len(visits) > 60
    assert all(len({image for image, _, _ in visit}) == len(visit) for visit in visits)
    assert sum(len({prompts for _, prompts, _ in visit}) > 1 for visit in visits) > len(visits) / 2


def test_seed_changes_order_and_draws(config):
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=4))
    ids = [np.concatenate([piece["sample_id"] for piece in read_without_ray(each)]) for each in (config, other)]
    assert not np.array_equal(ids[0], ids[1])


def test_prompt_keys_are_equal_where_prompts_name_the_same(config):
    samples = [*make_samples(30, corrupt={7}), *make_samples(50, seed=1, num_captions=3)]
    nouns = {row["sample_id"]: row["nouns"][0] for row in samples}
    by_noun: dict[str, set[int]] = {"dog": set(), "ball": set()}
    captions = set()
    for piece in read_without_ray(config):
        for name, keys, bad in zip(piece["sample_id"], piece["prompt_keys"], piece["substituted"], strict=True):
            if bad:
                continue
            if len(nouns[name]) == 0:
                assert keys[0] == keys[1]  # both are the caption
                captions.add(keys[0])
            elif len(nouns[name]) == 1:
                by_noun["dog"].add(keys[0])
    assert len(by_noun["dog"]) == 1 and by_noun["dog"].isdisjoint(captions) and len(captions) > 10
    assert draw_prompts(["dog"], "x", 2, np.random.default_rng(0))[1] == ["dog", "x"]


def test_a_data_set_that_stays_open_gives_empty_rows_after_its_last_slice(cluster, config):
    (shard,) = training_slices(config, first_step=5, stay_open=True).streaming_split(1, equal=False)
    slices = iter_slices(shard)
    assert_same(list(itertools.islice(slices, SLICES_PER_STEP)), read_without_ray(config, 5))
    assert next(slices)["position"].tolist() == [-1]


def test_without_prompts(cluster, config):
    config = dataclasses.replace(config, loss=LossConfig(num_prompts=0))
    (slices,) = read_with_ray(config, 1, first_step=5)
    assert_same(slices, read_without_ray(config, 5))
    assert slices[0]["prompt_keys"].shape == (4, 0) and slices[0]["token_ids"].shape[1] == 1


def test_a_window_without_a_good_image_is_an_error(tmp_path, config):
    make_dataset(tmp_path, 24, corrupt=range(24))
    config = dataclasses.replace(config, data=DataConfig(sources=(str(tmp_path),)))
    with pytest.raises(ValueError, match="none of the 12 images"):
        load_slices(plan_ingest(config), 0, 1)


def test_a_file_damaged_since_it_was_written_is_named(tmp_path, config):
    info = make_dataset(tmp_path, 24, groups_per_file=8)
    config = dataclasses.replace(config, data=DataConfig(sources=(str(tmp_path),)))
    plan = plan_ingest(config)
    damage_files(info)
    with pytest.raises(ValueError, match=r"part-000000\.parquet: is corrupted or incomplete .* --verify") as caught:
        [load_slices(plan, index, index + 1) for index in range(6)]  # every sample
    assert "\n" not in str(caught.value)


def test_the_length_of_the_run_does_not_delay_its_first_slice(cluster, config):
    # A run of 10¹² samples, from the start and from its middle: setting up a task per window would never end.
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, num_steps=10**11))
    for first_step in (0, 10**10):
        (shard,) = training_slices(config, first_step=first_step).streaming_split(1, equal=False)
        first = next(iter(iter_slices(shard)))
        assert first["position"][0] == first_step * 16


def test_as_many_slices_are_held_ready_as_a_step_takes_while_they_fit():
    paper = gcc_yfcc_30e()  # 224 pixels

    def prefetched(num_workers=1, global_batch_size=16384, store=8e9, **ingest):
        training = dataclasses.replace(paper.training, num_workers=num_workers, global_batch_size=global_batch_size)
        changed = dataclasses.replace(paper.ingest, **ingest)
        return num_prefetched(dataclasses.replace(paper, training=training, ingest=changed), store)

    assert prefetched(global_batch_size=4096) == 16  # of 38.5 MB
    assert prefetched(slice_size=1024) == 6  # of 154 MB, in a gigabyte
    assert prefetched(store=2e9) == 6
    assert prefetched(num_workers=8) == 3
    assert prefetched(num_workers=16, store=64e9) == 4
    assert prefetched(num_workers=64) == prefetched(slice_size=16384) == 1
    assert prefetched(prefetch_slices=2) == 2


@pytest.mark.parametrize(("slice_size", "window_size"), [(48, 48), pytest.param(48, 96, marks=pytest.mark.slow)])
def test_a_slice_may_be_as_large_as_its_window(cluster, config, slice_size, window_size):
    ingest = IngestConfig(slice_size=slice_size, window_size=window_size)
    training = TrainingConfig(num_steps=3, global_batch_size=2 * slice_size)
    config = dataclasses.replace(config, ingest=ingest, training=training)
    plan = plan_ingest(config)
    (slices,) = read_with_ray(config, 1)
    assert_same(slices, [load_slices(plan, index, index + 1)[0] for index in range(6)])
