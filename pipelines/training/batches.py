"""Makes micro-batches of slices ahead of the training step, in a thread: the GPU does not wait for the host's copies.

A slice is copied into pinned memory, and from there to the GPU on a stream of its own, beside the kernels of the step.
"""

import dataclasses
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groupvit.config import TextEncoderConfig
from groupvit.device_augment import Augmentation, AugmentedImages, augment
from groupvit.finishing import with_erasing
from groupvit.text_encoder import arrange_texts
from groupvit.training import Batch
from pipelines.ingest.plan import Slice

NUM_AHEAD = 2
"""Number of micro-batches that wait on the device. As bytes, 256 images of 224 pixels take 39 MB."""
THREAD_NAME = "batches-ahead"
_SECONDS_TO_STOP = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedBatch:
    """A micro-batch on its device, and what is recorded of its samples."""

    batch: Batch
    samples: Slice
    """The slice without its images and texts."""
    arrived: torch.cuda.Event | None
    """Recorded when the copy to the GPU is done. None: on a CPU."""


class BatchesAhead:
    """The micro-batches of a worker, in order. Iterate over it in one thread, and close it.

    Args:
        slices: The worker's slices, in order.
        device: Device of the training.
        text: Config of the text tower, for which the texts are arranged.
    """

    def __init__(self, slices: Iterator[Slice], device: torch.device, text: TextEncoderConfig) -> None:
        self._slices, self._device, self._text = slices, device, text
        self._ready: queue.Queue[PreparedBatch | Exception | None] = queue.Queue(NUM_AHEAD)
        self._stopped = threading.Event()
        self._peeked: PreparedBatch | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[PreparedBatch]:
        return self

    def __next__(self) -> PreparedBatch:
        item = self._take()
        self._peeked = None
        return item

    def peek(self) -> PreparedBatch:
        """Returns the next one, which `next` will return again. Raises as `next` does."""
        self._peeked = self._take()
        return self._peeked

    def close(self) -> None:
        """Stops the thread, and waits for it unless it waits for data itself."""
        self._stopped.set()
        while self._thread.is_alive() and not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=_SECONDS_TO_STOP)

    def _take(self) -> PreparedBatch:
        if self._peeked is not None:
            return self._peeked
        item = self._ready.get()
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        if item.arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(item.arrived)
            item.batch.map(lambda tensor: _used_on(tensor, stream))
        return item

    def _run(self) -> None:
        try:
            stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            for item in self._slices:
                if self._stopped.is_set():
                    return
                self._ready.put(self._prepared(item, stream))
        except Exception as error:
            self._ready.put(error)
        else:
            self._ready.put(None)

    def _prepared(self, item: Slice, stream: torch.cuda.Stream | None) -> PreparedBatch:
        samples = {name: np.array(column) for name, column in item.items() if name not in ("image", "token_ids")}
        if stream is None:
            return PreparedBatch(batch=to_batch(item, self._device, self._text), samples=samples, arrived=None)
        with torch.cuda.stream(stream):
            batch = to_batch(item, self._device, self._text)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        return PreparedBatch(batch=batch, samples=samples, arrived=arrived)


def _used_on(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Keeps the memory of a tensor from being used again before this stream is done with it."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def to_batch(item: Slice, device: torch.device, text: TextEncoderConfig) -> Batch:
    """Converts a slice to a micro-batch on `device`. The host does not wait for a GPU.

    The images stay bytes, and are augmented here if the slice has the draws for it. The arrangement of the texts and
    the noise of random erasing are made on the CPU: a GPU would have to tell the host their shapes.
    """
    pins = device.type == "cuda"

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return _pinned(tensor).to(device, non_blocking=True) if pins else tensor

    pixels = _held(item["image"], torch.uint8, pins)
    if "flip" in item:  # ingest.augment_on is device
        augmentation = Augmentation.of(item).map(moved)
        images = AugmentedImages(pixels=augment(moved(pixels), augmentation), augmentation=augmentation)
    else:
        images = with_erasing(pixels, torch.tensor(item["erase_box"]), torch.tensor(item["noise_seed"])).map(moved)
    token_ids = torch.tensor(item["token_ids"], dtype=torch.int64)
    return Batch(
        images=images,
        token_ids=token_ids,
        texts=arrange_texts(token_ids.flatten(0, 1), text).map(moved),
        prompt_keys=moved(_held(item["prompt_keys"], torch.int64, pins)),
    )


def _held(array: npt.NDArray[Any], dtype: torch.dtype, pins: bool) -> torch.Tensor:
    """Copies an array, whose memory may belong to Ray, into memory of our own."""
    held = torch.empty(array.shape, dtype=dtype, pin_memory=pins)
    held.numpy()[...] = array
    return held


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()
