"""Whatever is done to a sparse model, in any order: it stays equal to its dense reference, fused and compiled too."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from operation_models import KINDS, Setting
from operation_sequences import run_sequence
from operations import OPERATIONS

KIND = st.sampled_from(list(KINDS))
SEQUENCE = st.lists(st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 5)), min_size=1, max_size=7)
CPU = Setting()
# bfloat16 rounds by at most 2^-8, and an output by about 12 such errors that are independent: 2^-8 · √12 / √3 = 2^-7.
# A gradient has twice as many. The reference is float32.
GPU = Setting("cuda", torch.bfloat16, hidden=64, block=32, backend="inductor", same=2**-7, gradients=2**-6)
ALWAYS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=60, derandomize=True, **ALWAYS)
@given(kind=KIND, operations=SEQUENCE)
def test_a_sparse_model_stays_equal_to_its_dense_reference(kind, operations):
    run_sequence(kind, operations, CPU)


@pytest.mark.slow
@settings(max_examples=200, print_blob=True, **ALWAYS)
@given(kind=KIND, operations=SEQUENCE)
def test_other_sequences_at_each_run(kind, operations):
    run_sequence(kind, operations, CPU)


@pytest.mark.gpu
@settings(max_examples=40, derandomize=True, **ALWAYS)
@given(kind=KIND, operations=SEQUENCE)
def test_a_sparse_model_on_a_gpu_stays_equal_to_its_dense_reference(kind, operations):
    with torch._inductor.config.patch(fallback_random=True):
        run_sequence(kind, operations, GPU)
