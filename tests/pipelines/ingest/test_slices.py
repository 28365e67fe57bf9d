import collections
import dataclasses
import hashlib
import io

import numpy as np
import pyarrow as pa
from PIL import Image

from groupvit.config import LossConfig
from groupvit.tokenizer import Tokenizer
from pipelines.dataset.format import write_dataset
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, IngestConfig, TrainingConfig
from pipelines.ingest.caption_choice import caption_index
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.slices import ReusedMemory, load_slices
from tests.support.dataset_folder import write_schema_1


def twelve_samples():
    """Of schema 1, with ids that no decoder or encoder has a part in."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 40), (10, 200, 30)).save(buffer, "PNG")
    for index in range(12):
        yield {
            "sample_id": f"{index:032x}",
            "image": buffer.getvalue(),
            "caption": f"a dog and a ball, number {index}",
            "nouns": ["dog", "ball", "number"][: index % 4],
            "width": 48,
            "height": 40,
        }


def with_lists(sample):
    caption, nouns = sample.pop("caption"), sample.pop("nouns")
    return sample | {"captions": [caption], "nouns": [nouns]}


def slices_of(folder, num_slices):
    base = debug()
    config = dataclasses.replace(
        base,
        data=DataConfig(sources=(str(folder),), seed=3),
        ingest=IngestConfig(slice_size=4, window_size=12),
        training=TrainingConfig(num_steps=num_slices, global_batch_size=4),
        loss=LossConfig(num_prompts=2),
    )
    plan = plan_ingest(config)
    return [load_slices(plan, index, index + 1)[0] for index in range(num_slices)]


def test_one_caption_an_image_is_drawn_with_the_bits_it_always_had(tmp_path):
    write_schema_1(tmp_path / "old", twelve_samples(), rows_per_group=4)
    write_dataset(str(tmp_path / "new"), map(with_lists, twelve_samples()), rows_per_group=4)
    for folder in ("old", "new"):
        hasher = hashlib.sha256()
        for piece in slices_of(tmp_path / folder, 6):  # two epochs
            for name in ("token_ids", "prompt_keys", "erase_box", "noise_seed", "position", "epoch"):
                hasher.update(piece[name].tobytes())
        # What the code gave before there could be several captions.
        assert hasher.hexdigest()[:32] == "f2ac99723d5a069b11c989966825f451", folder


def test_every_caption_is_drawn_once_in_as_many_epochs_with_nouns_of_its_own(tmp_path):
    words = ("zebra", "canoe", "piano", "tulip", "bridge")
    several = {"captions": [f"there is a {word}" for word in words], "nouns": [[word] for word in words]}
    rows = [with_lists(sample) | several for sample in twelve_samples()]
    write_dataset(str(tmp_path), rows, rows_per_group=4)
    said = {ids.tobytes(): place for place, ids in enumerate(Tokenizer()(several["captions"], 77)[:, :77])}
    drawn, keys = collections.defaultdict(list), collections.defaultdict(set)
    for piece in slices_of(tmp_path, 15):
        for name, texts, prompt_keys in zip(piece["sample_id"], piece["token_ids"], piece["prompt_keys"], strict=True):
            caption = said[np.pad(texts[0], (0, 77 - len(texts[0]))).tobytes()]
            drawn[name].append(caption)
            keys[caption].add(prompt_keys[0])  # the noun; what fills up is the caption
    assert len(drawn) == 12 and all(sorted(places) == list(range(5)) for places in drawn.values())
    assert len({tuple(places) for places in drawn.values()}) > 6  # not the same order for all
    assert all(len(found) == 1 for found in keys.values()) and len(set().union(*keys.values())) == 5


def test_captions_come_in_another_order_after_all_were_drawn():
    def order(cycle, seed=0, name="a"):
        return tuple(caption_index(5, seed, 5 * cycle + place, name) for place in range(5))

    orders = [order(cycle) for cycle in range(200)]
    assert all(sorted(each) == list(range(5)) for each in orders) and len(set(orders)) > 80  # of 120
    first = np.bincount([each[0] for each in orders], minlength=5)
    assert first.min() > 20  # 40 expected
    assert order(0) != order(0, seed=1) and order(0) != order(0, name="b")
    assert [caption_index(1, 0, epoch, "a") for epoch in range(5)] == [0] * 5


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_its_array_is_gone():
    memory = ReusedMemory()
    first = memory.empty((2, 3))
    place = address(first)
    del first
    assert address(memory.empty((3, 2))) == place  # as many bytes, in another shape


def test_memory_that_anything_still_looks_at_is_left_alone():
    memory = ReusedMemory()
    array = memory.empty((4, 3, 8, 8))
    array[:] = 7
    held = {
        "view of a view": array[None][0, 1:].transpose(0, 2, 3, 1),
        "buffer": pa.py_buffer(array[1]),
        "tensor": pa.Tensor.from_numpy(array),
    }
    place = address(array)
    del array
    while held:
        other = memory.empty((4, 3, 8, 8))
        assert address(other) != place, held
        other[:] = 0
        assert all(np.all(np.frombuffer(np.ascontiguousarray(item), np.uint8) == 7) for item in held.values())
        del other
        held.popitem()
    assert address(memory.empty((4, 3, 8, 8))) == place


def test_other_sizes_get_memory_of_their_own():
    memory = ReusedMemory()
    small, large = memory.empty((5,)), memory.empty((6,))
    small[:], large[:] = 1, 2
    assert small.tolist() == [1] * 5 and large.tolist() == [2] * 6
