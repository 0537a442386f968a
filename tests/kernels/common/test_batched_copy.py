"""A batched copy keeps the arrays as they are and aligns them for the kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blast_kernels.common.batched_copy import ALIGNMENT, batched_copy, batched_copy_by_device
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple)
DTYPES = st.sampled_from([np.int32, np.int64, np.bool_, np.float32])


def array_of(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2 if dtype is np.bool_ else 1000, shape).astype(dtype)


def check(arrays: list[np.ndarray], tensors: list[torch.Tensor]) -> None:
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.dtype == torch.from_numpy(array).dtype
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)
        assert tensor.storage_offset() * tensor.element_size() % ALIGNMENT == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SHAPES, DTYPES), max_size=6))
def test_arrays_of_any_shape_and_dtype_are_copied_unchanged_to_aligned_places_of_one_buffer(kinds):
    arrays = [array_of(shape, dtype, seed) for seed, (shape, dtype) in enumerate(kinds)]
    tensors = batched_copy(arrays, "cpu")
    check(arrays, tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}) <= 1


def test_strided_arrays_are_accepted_and_tensors_are_copies():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    (transposed,) = batched_copy([array.T], "cpu")
    assert transposed.tolist() == array.T.tolist()
    (copy,) = batched_copy([array], "cpu")
    copy.zero_()
    assert array.sum() == 66


def test_groups_keep_their_order_across_devices():
    groups = [(torch.device(d), [np.full(n, n, np.int32) for n in sizes]) for d, sizes in DEVICES]
    tensors = batched_copy_by_device(groups)
    for (device, arrays), group in zip(groups, tensors, strict=True):
        assert [tensor.device for tensor in group] == [device] * len(arrays)
        assert [tensor.numel() for tensor in group] == [array.size for array in arrays]
    assert batched_copy_by_device([]) == []


DEVICES = [("cpu", [3, 1]), ("meta", [2]), ("cpu", []), ("meta", [5, 4])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_stay_correct_if_the_staging_memory_is_reused_early():
    arrays = [[array_of((64, 33), np.int32, seed)] for seed in range(50)]
    tensors = [batched_copy(array, "cuda") for array in arrays]
    for array, tensor in zip(arrays, tensors, strict=True):
        check(array, tensor)
        assert tensor[0].data_ptr() % ALIGNMENT == 0
