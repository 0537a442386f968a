"""Two processes over gloo load a checkpoint together and give the tokens of one process."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from tensor_parallel_cases import MODELS, NEW, RANKS, generated, prompt, work, write_models

import blast

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensor-parallel")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    run_ranks(work, str(folder), ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_give_the_tokens_of_one(folder, ranks, name):
    whole = blast.load(folder / name)
    expected = generated(whole, do_sample=False)
    assert expected.shape[1] == prompt().shape[1] + NEW
    assert expected.unique().numel() > NEW
    for way in ("tokens", "fused tokens", "fast tokens"):
        for rank in ranks:
            assert torch.equal(rank[name][way], expected), way


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_one_process_but_for_rounding_and_equal_in_both(folder, ranks, name):
    with torch.no_grad():
        expected = blast.load(folder / name)(prompt()).logits
    for way in ("logits", "fused logits") if MODELS[name].get("fused", True) else ("logits",):
        torch.testing.assert_close(ranks[0][name][way], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(ranks[0][name][way], ranks[1][name][way])


@pytest.mark.parametrize("name", MODELS)
def test_sampled_tokens_are_equal_in_both_processes_whatever_their_seeds(ranks, name):
    assert torch.equal(ranks[0][name]["drawn"], ranks[1][name]["drawn"])


@pytest.mark.parametrize("name", MODELS)
def test_each_process_holds_about_half_of_the_weights(folder, ranks, name):
    whole = blast.model_bytes(blast.load(folder / name)).weights
    for rank in ranks:
        # Norms, biases and indices are held twice, and hidden blocks are not cut.
        assert 0.4 * whole < rank[name]["weights"] < 0.65 * whole


def test_in_bfloat16_the_processes_agree_bit_by_bit_and_with_one_process_but_for_rounding(folder, ranks):
    with torch.no_grad():
        expected = blast.load(folder / "llama").bfloat16()(prompt()).logits.float()
    first, second = (rank["half"] for rank in ranks)
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)
    assert (first.float() - expected).norm() < 0.05 * expected.norm()


def test_compiled_layers_of_a_part_give_the_tokens_and_share_their_code_as_those_of_the_whole(folder, ranks):
    expected = generated(blast.load(folder / "llama"), do_sample=False)
    for rank in ranks:
        found = rank["compiled"]
        assert torch.equal(found["tokens"], expected)
        assert found["frames"][True] == found["frames"][False] > 0


def test_a_mesh_names_the_processes(folder, ranks):
    expected = generated(blast.load(folder / "llama"), do_sample=False)
    assert all(torch.equal(rank["mesh"], expected) for rank in ranks)


REFUSED = {
    "different": "different checkpoints were read by process 0 and process 1 of 2; copy one checkpoint to all machines",
    "heads": "a model with 3 query heads and 3 key-value heads cannot be split over 2 processes; start 1 or 3.",
    "prompts": "different arguments were given to generate by process 0 and process 1 of 2; give the same prompt",
    "settings": "different arguments were given to generate by process 0 and process 1 of 2; give the same prompt",
    "training": "a model that is split over processes computes no gradients; call model.eval()",
    "gradient": "a model that is split over processes computes no gradients; call model.eval()",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_two_processes_cannot_do_is_one_sentence_in_both(ranks, case):
    for rank in ranks:
        assert REFUSED[case] in rank["refused"][case]


def test_an_error_of_one_process_is_raised_by_all(ranks):
    first, second = (rank["refused"] for rank in ranks)
    assert "is not a blast checkpoint" in second["missing in one"]
    assert first["missing in one"] == f"process 1 of 2 failed: {second['missing in one']}"
    assert "was altered after it was written" in second["altered in one"]
    assert first["altered in one"] == f"process 1 of 2 failed: {second['altered in one']}"


def test_a_part_is_not_saved_as_if_it_were_whole(folder, ranks):
    for number, rank in enumerate(ranks):
        for way in ("save", "save_pretrained"):
            assert f"the model is the part of process {number} of 2" in rank["refused"][way]
        assert not (folder / f"part {number}").exists()


def test_a_process_that_does_not_answer_is_one_sentence(ranks):
    assert "process 0 of 2 waited for another one that ended or did not answer in time" in ranks[0]["late"]


def test_a_process_that_dies_while_both_generate_stops_the_other_with_one_sentence(ranks):
    assert "process 0 of 2 waited for another one that ended or did not answer in time" in ranks[0]["alone"]
    assert "start all of them again" in ranks[0]["alone"]
    assert ".cc:" not in ranks[0]["alone"]
    assert "alone" not in ranks[1]
