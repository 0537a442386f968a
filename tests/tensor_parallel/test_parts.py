"""The parts of a model for any number of processes, computed one after the other in one process."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers
from live_memory import LiveMemory
from sparse_pairs import pair
from tensor_parallel_cases import HIDDEN, SIZES, built, masks, prompt

import blast
from blast.checkpoint import weights_file
from blast.checkpoint.manifest import read_manifest
from blast.checkpoint.partial import _part
from blast.errors import BlastError
from blast.tensor_parallel.attention import heads_of
from blast.tensor_parallel.balance import balanced
from blast.tensor_parallel.processes import TORCHRUN, Processes

CPU = torch.device("cpu")


def parts(folder, size):
    """The part of each process, not joined: modules give their own part of a sum."""
    manifest = read_manifest(folder)
    return [_part(folder, manifest, CPU, Processes(None, rank, size))[0].eval() for rank in range(size)]


def inner_inputs(model):
    """What the MLP and the attention of the last layer get, without biases that are added up."""
    return torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    model = built(config={"num_attention_heads": 8, "head_dim": 8, "mlp_bias": True})
    blast.save(blast.to_sparse(model, masks(model, ("mlp",), {}), drop=True), folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    model = built(family="gpt2")
    blast.save(blast.to_sparse(model, masks(model, ("mlp",), {}), drop=True), folder)
    return folder


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_parts_of_any_number_of_processes_add_up_to_the_mlp(llama, size):
    whole = blast.load(llama)
    x = inner_inputs(whole)
    for number, layer in enumerate(whole.model.layers):
        found = [part.model.layers[number].mlp(x) for part in parts(llama, size)]
        torch.testing.assert_close(sum(found), layer.mlp(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_parts_of_conv1d_layers_add_up_with_their_biases(gpt2, size):
    whole = blast.load(gpt2)
    x = inner_inputs(whole)
    made = parts(gpt2, size)
    for number, layer in enumerate(whole.transformer.h):
        found = [part.transformer.h[number] for part in made]
        torch.testing.assert_close(sum(each.mlp(x) for each in found), layer.mlp(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sum(each.attn(x)[0] for each in found), layer.attn(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_parts_of_attention_add_up_also_with_fewer_key_value_heads_than_processes(llama, size):
    whole = blast.load(llama)
    x = inner_inputs(whole)
    angles = whole.model.rotary_emb(x, torch.arange(5)[None])
    expected = whole.model.layers[1].self_attn(x, angles)[0]
    found = [part.model.layers[1].self_attn(x, angles)[0] for part in parts(llama, size)]
    torch.testing.assert_close(sum(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_live_blocks_are_dealt_out_evenly_though_the_first_hidden_blocks_are_fuller(llama, size):
    whole = blast.load(llama)
    made = parts(llama, size)
    for mlp in blast.find_mlps(whole):
        unit = 0  # live blocks of the fullest hidden block
        for each in mlp.targets:
            mask = each.module.mask()
            unit += int(mask.sum(0 if each is mlp.down else 1).max())
        live = [
            sum(part.get_submodule(each.name).values.shape[0] for each in mlp.targets) for part in made
        ]  # fmt: skip
        assert sum(live) == sum(each.module.values.shape[0] for each in mlp.targets)
        assert max(live) - min(live) <= unit
        contiguous = [
            sum(int(each.module.mask().chunk(size, 1 if each is mlp.down else 0)[rank].sum()) for each in mlp.targets)
            for rank in range(size)
        ]
        assert max(live) - min(live) < max(contiguous) - min(contiguous)


def test_no_weight_is_in_two_parts_of_a_matrix(llama):
    """Each live block of the whole model is in exactly one part, bit by bit."""
    whole, made = blast.load(llama), parts(llama, 4)
    for mlp in blast.find_mlps(whole):
        for each in mlp.targets:
            found = torch.cat([part.get_submodule(each.name).values for part in made])
            own = each.module.values
            assert sorted(map(tuple, found.flatten(1).tolist())) == sorted(map(tuple, own.flatten(1).tolist()))


def test_matrices_with_one_mask_share_their_index_in_a_part(llama):
    for part in parts(llama, 2):
        first = part.model.layers[0].mlp
        assert first.gate_proj.index is first.up_proj.index
        assert part.model.layers[1].mlp.gate_proj.index is not part.model.layers[1].mlp.up_proj.index


def test_loading_a_part_holds_no_more_than_the_part(llama):
    whole, manifest = blast.load(llama), read_manifest(llama)
    with LiveMemory() as memory:
        part, _ = _part(llama, manifest, CPU, Processes(None, 0, 8))
    # Beside the part there is one run of the file, here a whole one.
    file = (llama / "blast.safetensors").stat().st_size
    assert memory.peak <= blast.model_bytes(part).weights + weights_file.CHUNK + 0.1 * file
    assert blast.model_bytes(part).weights < 0.3 * blast.model_bytes(whole).weights


def test_parts_are_read_in_runs_of_any_length(llama, monkeypatch):
    expected = parts(llama, 2)
    monkeypatch.setattr(weights_file, "CHUNK", 48)
    for part, other in zip(parts(llama, 2), expected, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(part.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("work", [[1] * 7, [9, 1, 1, 1, 1, 1], [0, 0, 0, 0], [5, 4, 3, 3, 3, 0]])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_dealing_out_gives_each_unit_once_and_each_part_one(work, count):
    dealt = balanced(work, count)
    assert sorted(unit for units in dealt for unit in units) == list(range(len(work)))
    assert all(units == sorted(units) and units for units in dealt)
    loads = [sum(work[unit] for unit in units) for units in dealt]
    assert max(loads) - min(loads) <= max(work)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (3, "a model with 8 query heads and 2 key-value heads cannot be split over 3 processes; start 1, 2, 4 or 8."),
        (16, "cannot be split over 16 processes; start 1, 2, 4 or 8."),
    ],
)
def test_a_number_of_processes_that_does_not_divide_the_heads_is_one_sentence(llama, size, sentence):
    with pytest.raises(BlastError, match=sentence):
        parts(llama, size)


def test_heads_of_queries_stay_with_those_they_attend_to():
    config = transformers.LlamaConfig(**SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2})
    assert [heads_of(config, rank, 4) for rank in range(4)] == [
        ((0, 2), (0, 1)), ((2, 2), (0, 1)), ((4, 2), (1, 1)), ((6, 2), (1, 1)),
    ]  # fmt: skip
    assert heads_of(config, 1, 2) == ((4, 4), (1, 1))


def test_more_processes_than_hidden_blocks_is_one_sentence(tmp_path):
    model = built()
    found = masks(model, ("mlp",), {"gate_proj": (80, 16), "up_proj": (80, 16)})
    blast.save(blast.to_sparse(model, found, drop=True), tmp_path)
    with pytest.raises(BlastError, match=f"'model.layers.0.mlp' has {HIDDEN // 80} hidden blocks of 80 and cannot be"):
        parts(tmp_path, 4)


def test_blocks_that_heads_cut_through_is_one_sentence(tmp_path):
    model = built()
    found = masks(model, ("attention",), {"q_proj": (32, 32), "k_proj": (32, 32), "v_proj": (32, 32)})
    blast.save(blast.to_sparse(model, found, drop=True), tmp_path)
    with pytest.raises(
        BlastError, match="k_proj' has blocks of 32 features, which the parts of the processes would cut"
    ):
        parts(tmp_path, 2)


def test_a_model_of_another_family_is_one_sentence(tmp_path):
    _, sparse, _ = pair("vit")
    blast.save(sparse, tmp_path)
    with pytest.raises(BlastError, match="family 'VisionTransformer' cannot be split over processes, only gpt2, llama"):
        parts(tmp_path, 2)


def test_more_processes_than_gpus_is_one_sentence(llama, monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "4" if name == "WORLD_SIZE" else "0")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BlastError, match="torchrun started 4 processes on this machine, which has 2 GPUs, and each"):
        blast.load(llama, tensor_parallel=True)


def test_damage_is_named_before_anything_that_follows_from_it(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "copy")
    file = tmp_path / "copy" / "blast.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = b"\xff\xff\xff\x7f"
    file.write_bytes(content)
    with pytest.raises(BlastError, match="was altered after it was written"):
        parts(tmp_path / "copy", 2)


def test_without_torchrun_and_without_a_process_group_is_one_sentence(llama, monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        BlastError, match=r"tensor_parallel needs one process .* with `torchrun --nproc-per-node N`, or"
    ):
        blast.load(llama, tensor_parallel=True)


@pytest.mark.parametrize("given", ["two", 2, None])
def test_what_is_no_mesh_is_one_sentence(llama, given):
    with pytest.raises(BlastError, match=r"tensor_parallel is .*; give True, or a torch.distributed.device_mesh"):
        blast.load(llama, tensor_parallel=given)


def test_a_model_of_the_user_is_not_split(llama):
    with pytest.raises(
        BlastError, match=r"tensor_parallel builds the model of the checkpoint itself; leave out model."
    ):
        blast.load(llama, model=built(), tensor_parallel=True)


def test_one_process_alone_gets_the_whole_model(llama, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = blast.load(llama, tensor_parallel=True)
    finally:
        torch.distributed.destroy_process_group()
    with torch.no_grad():
        assert torch.equal(model(prompt()).logits, blast.load(llama)(prompt()).logits)
    blast.save(model, tmp_path / "again")
