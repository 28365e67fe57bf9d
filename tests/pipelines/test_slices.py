import numpy as np
import pyarrow as pa

from pipelines.slices import ReusedMemory


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
