"""Several GPUs over NCCL load a checkpoint together and give the tokens of one GPU, also from CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from tensor_parallel_cases import MODELS, generated, prompt, write_models
from tensor_parallel_gpu_cases import on_gpus

import blast

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensor-parallel-gpu")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """By dtype, what each process found."""
    for dtype in ("float32", "bfloat16"):
        torch.multiprocessing.spawn(on_gpus, (str(folder), RANKS, dtype), nprocs=RANKS)
    return {
        dtype: [torch.load(folder / f"{dtype}-{rank}.pt", weights_only=True) for rank in range(RANKS)]
        for dtype in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("name", MODELS)
def test_two_gpus_give_the_tokens_of_one(folder, found, name):
    expected = generated(blast.load(folder / name, device="cuda"), prompt().cuda(), do_sample=False).cpu()
    for rank in found["float32"]:
        assert torch.equal(rank[name]["tokens"], expected)
        assert torch.equal(rank[name]["fast tokens"], expected)


@pytest.mark.parametrize("name", MODELS)
def test_both_gpus_have_the_same_logits_bit_by_bit_and_those_of_one_but_for_rounding(folder, found, name):
    for dtype, ranks in found.items():
        first, second = (rank[name]["logits"] for rank in ranks)
        assert torch.equal(first, second)
        model = blast.load(folder / name, device="cuda").to(getattr(torch, dtype))
        with torch.no_grad():
            expected = model(prompt().cuda()).logits.float().cpu()
        bound = 1e-4 if dtype == "float32" else 5e-2
        assert (first - expected).norm() < bound * expected.norm(), dtype
