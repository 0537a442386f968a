"""The fewest GPUs that hold a model, by the rule that the module states."""

from __future__ import annotations

import pytest

from blast import architectures
from blast.architectures.gpus_needed import MOST_GPUS, USABLE, Serving, degrees, gpus_needed
from blast.architectures.inference_memory import Sparse, inference_memory

LARGEST = architectures.get("llama-3.1-405b")


def test_a_model_is_split_where_heads_and_blocks_divide() -> None:
    assert degrees(LARGEST) == [1, 2, 4, 8, 16, 32]  # 128 heads, 416 block columns of 128, 8 heads of the cache
    assert degrees(LARGEST, Sparse(sparsity=0.9, block=32)) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert degrees(architectures.get("smollm2-135m"), Sparse(sparsity=0.9, block=32)) == [1, 3]
    assert max(degrees(LARGEST, Sparse(sparsity=0.9, block=8))) <= MOST_GPUS


@pytest.mark.parametrize("sparse", [None, Sparse(sparsity=0.8), Sparse(sparsity=0.95)], ids=str)
@pytest.mark.parametrize("memory", [80, 141, 192])
@pytest.mark.parametrize("serving", [Serving(), Serving(batch=32, context=8192)], ids=str)
def test_the_number_found_fits_and_no_smaller_one_does(serving, memory, sparse) -> None:
    found = gpus_needed(LARGEST, serving, memory, sparse)
    assert found.each.total <= USABLE * memory * 1e9
    settings = {"batch": serving.batch, "context": serving.context, "tokens_at_once": 2048}
    for fewer in (number for number in degrees(LARGEST, sparse) if number < found.gpus):
        assert inference_memory(LARGEST, sparse, gpus=fewer, **settings).total > USABLE * memory * 1e9


def test_the_largest_llama_in_numbers_counted_by_hand() -> None:
    # 811.7 GB of weights over n GPUs, of which each gives 72 GB: 8 hold 576 GB, 16 hold 1152 GB.
    assert gpus_needed(LARGEST, Serving(), 80).gpus == 16
    # 185.2 GB with indices and 4.2 GB of cache: 2 hold 144 GB, 4 hold 288 GB.
    assert gpus_needed(LARGEST, Serving(), 80, Sparse(sparsity=0.95)).gpus == 4


def test_a_cache_that_no_number_of_gpus_holds_gives_none() -> None:
    assert gpus_needed(LARGEST, Serving(batch=4096, context=131072), 80) is None


def test_a_batch_of_few_tokens_needs_no_room_for_more() -> None:
    few = gpus_needed(LARGEST, Serving(batch=1, context=16), 80)
    many = gpus_needed(LARGEST, Serving(batch=1, context=2048), 80)
    assert few.each.activations < many.each.activations / 100
