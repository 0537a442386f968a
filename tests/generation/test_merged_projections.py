"""Query, key and value, and gate and up, run as one product of weights that are stored once."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._inductor.config
import transformers
from test_fast_decode import FAMILIES, both, made, prompts
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import blast
from blast.generation.merged import MergedProjections, merge
from blast.generation.session import Session

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Count(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func in PRODUCTS
        return func(*args, **(kwargs or {}))


def session_of(model: nn.Module) -> Session:
    given = prompts()["input_ids"]
    session = Session(model, *given.shape[:1], 64, static=True)
    session.start(given)
    return session


def agree(model: nn.Module) -> torch.Tensor:
    expected, found = both(model, **prompts(), max_new_tokens=20, do_sample=False)
    assert torch.equal(found, expected)
    return found


@pytest.mark.parametrize(("sparse", "products"), [(False, 4), (True, 2)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_layer_has_a_product_for_each_input(family, sparse, products):
    """Query with key and value, output, gate with up, and down; the MLP of a fused model is no product of torch."""
    model = made(family, sparse)
    session = session_of(model)
    with Count() as count:
        session.step()
    assert count.products == 2 * products + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_stored_once_and_keep_their_names_and_values(family):
    model = made(family)
    before, bytes_before = copy.deepcopy(model.state_dict()), blast.model_bytes(model)
    parameters = dict(model.named_parameters())
    session = session_of(model)
    assert len(session.merged) == (0 if family == "gpt2" else 4)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert blast.model_bytes(model) == bytes_before
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    if family != "gpt2":
        layer = model.model.layers[0]
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            parts = [getattr(layer.mlp if "gate_proj" in names else layer.self_attn, name) for name in names]
            assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    assert type(model.base_model).__name__.endswith("Model")
    assert "merged" not in str(model.__dict__)


def with_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    model(**prompts(), labels=prompts()["input_ids"]).loss.backward()
    optimizer.step()


def with_a_new_parameter(model):
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight = nn.Parameter(-5 * attention.k_proj.weight.detach())


def with_new_data(model):
    mlp = model.model.layers[1].mlp
    mlp.up_proj.weight.data = -5 * mlp.up_proj.weight.data


def with_assign(model):
    state = {name: -2 * part for name, part in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def with_a_copy(model):
    model.load_state_dict({name: -2 * part for name, part in model.state_dict().items()})


def with_a_cast(model):
    model.double()


def with_a_hook(model):
    model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda module, given, output: -3 * output)


def with_another_layer(model):
    attention = model.model.layers[0].self_attn
    scale = nn.Linear(attention.v_proj.out_features, attention.v_proj.out_features)
    scale.weight.data = -9 * torch.eye(scale.in_features)
    attention.v_proj = nn.Sequential(attention.v_proj, scale)


@pytest.mark.parametrize(
    "change",
    [with_optimizer, with_a_new_parameter, with_new_data, with_assign, with_a_copy, with_a_hook, with_another_layer],
)
def test_changes_after_merging_take_effect(change):
    model = made("qwen2")
    first = agree(model)
    change(model)
    assert not torch.equal(agree(model), first)


def test_a_cast_after_merging_is_merged_again():
    model = made("llama")
    agree(model)
    model.double()
    agree(model)
    assert len(session_of(model).merged) == 4


def test_a_copy_of_a_merged_model_is_independent():
    model = made("llama")
    first = agree(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.mul_(-4)
    assert torch.equal(agree(model), first)
    assert not torch.equal(agree(other), first)


def test_a_merged_model_is_saved_pruned_and_loaded_as_before(tmp_path):
    model = made("llama")
    first = agree(model)
    model.save_pretrained(tmp_path / "dense")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    assert torch.equal(agree(again), first)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    size = sum(part.nbytes for part in model.state_dict().values())
    assert (tmp_path / "state.pt").stat().st_size < 1.5 * size
    masks = {
        target.name: torch.rand(target.shape[0] // 16, target.shape[1] // 16) < 0.5
        for mlp in blast.find_mlps(model)
        for target in mlp.targets
    }
    blast.fuse(blast.to_sparse(model, masks, drop=True))
    pruned = agree(model)
    blast.save(model, tmp_path / "sparse")
    assert torch.equal(agree(blast.load(tmp_path / "sparse").eval()), pruned)


def test_what_cannot_be_merged_stays_as_it_is():
    def layers(**options):
        return [nn.Linear(16, 16, **options) for _ in range(2)]

    assert merge(layers()) is not None
    assert merge(layers(bias=False)) is not None
    mixed = [nn.Linear(16, 16), nn.Linear(16, 16, bias=False)]
    unequal = [nn.Linear(16, 16), nn.Linear(16, 16).double()]
    shared = layers()
    shared[1].weight = shared[0].weight
    part = layers()
    whole = torch.zeros(32, 17)
    part[0].weight.data = whole[:16, :16]
    inside = layers()
    inside[0].weight.data = torch.zeros(17, 16)[:16]
    trained = layers()
    sum(linear(torch.ones(16)).sum() for linear in trained).backward()
    tied = layers()
    users = {tied[0].weight.untyped_storage().data_ptr(): 2}
    for given, used in (
        (mixed, None),
        (unequal, None),
        (shared, None),
        (part, None),
        (inside, None),
        (tied, users),
        (trained, None),
    ):
        places = [linear.weight.data_ptr() for linear in given]
        assert merge(given, used) is None
        assert [linear.weight.data_ptr() for linear in given] == places
    with torch.inference_mode():
        assert merge(layers()) is None


def test_weights_that_share_their_memory_stay_tied():
    model = made("llama")
    first, second = (layer.mlp.gate_proj.weight for layer in model.model.layers)
    second.data = first.data
    agree(model)
    with torch.no_grad():
        first.mul_(-3)
    assert torch.equal(first, second)
    assert len(MergedProjections(model)) == 2


def test_inference_mode_of_one_call_does_not_bind_the_next():
    model = made("llama")
    with torch.inference_mode():
        first = agree(model)
    assert torch.equal(agree(model), first)
    model.train()
    model(**prompts(), labels=prompts()["input_ids"]).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_compiled_layers_have_merged_products_and_are_compiled_once(family):
    torch.compiler.reset()
    graphs = []

    def count(graph):
        graphs.append(sum(node.target in PRODUCTS for node in graph.nodes))

    model = made(family, layers=4)
    expected = both(model, **prompts(), max_new_tokens=12, do_sample=False)[0]
    session = Session(model, 3, 64, static=True, compiled="layers")
    with torch._inductor.config.patch(post_grad_custom_post_pass=count):
        session.start(prompts()["input_ids"])
        for _ in range(11):
            session.step()
    assert torch.equal(session.tokens[:, :21], expected)
    assert graphs == [4]
