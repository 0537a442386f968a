"""A fused model computes and is saved like the block-sparse model, and can be unfused."""

from __future__ import annotations

import copy

import pytest
import torch
from sparse_pairs import inputs_of, output_of, pair
from sparsity_models import MODELS
from torch import nn

import blast
from blast.errors import BlastError
from blast.layers import sparse_mlp
from blast.layers.sparse_mlp import SparseMlp
from blast.model.convert import to_sparse
from blast.model.discovery import find_mlps


def fused_of(model: nn.Module) -> list[SparseMlp]:
    return [module for module in model.modules() if isinstance(module, SparseMlp)]


def close(left: nn.Module, right: nn.Module, kind: str) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            output_of(left, inputs_of(kind)), output_of(right, inputs_of(kind)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("skip_dead", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_fused_model_computes_what_the_sparse_one_does(kind, skip_dead) -> None:
    _, sparse, _ = pair(kind)
    fused = blast.fuse(copy.deepcopy(sparse), skip_dead=skip_dead)
    assert len(fused_of(fused)) == 2
    assert {mlp.gate_kind for mlp in fused_of(fused)} == ({"untied"} if kind == "llama" else {"none"})
    close(fused, sparse, kind)


def test_the_fused_operator_runs_only_without_gradients(monkeypatch) -> None:
    _, sparse, _ = pair("llama")
    model, calls = blast.fuse(sparse), []
    plain = SparseMlp._run
    monkeypatch.setattr(SparseMlp, "_run", lambda *a: calls.append(1) or plain(*a))
    with torch.no_grad():
        output_of(model, inputs_of("llama"))
    assert len(calls) == 2
    output_of(model, inputs_of("llama")).sum().backward()
    assert len(calls) == 2
    assert all(layer.values.grad is not None for mlp in fused_of(model) for layer in mlp.layers)


def test_weights_that_are_not_finite_are_named_and_not_taken_for_another_computation() -> None:
    _, sparse, _ = pair("llama")
    first, second = (sparse.get_submodule(mlp.name) for mlp in find_mlps(sparse))
    with torch.no_grad():
        first.down_proj.values.fill_(float("nan"))
    # The other MLP, of the same kind, is fused.
    assert len(fused_of(blast.fuse(copy.deepcopy(sparse)))) == 1
    with torch.no_grad():
        second.down_proj.values.fill_(float("inf"))
    with pytest.raises(BlastError, match="its output is not finite; look for NaN or infinity in its weights"):
        blast.fuse(sparse)


def test_gate_and_up_can_share_a_mask() -> None:
    dense, sparse, masks = pair("llama")
    tied = {name: masks[name.replace("up_proj", "gate_proj")] for name in masks}
    sparse = to_sparse(dense, tied, drop=True)
    fused = blast.fuse(copy.deepcopy(sparse))
    assert {mlp.gate_kind for mlp in fused_of(fused)} == {"tied"}
    close(fused, sparse, "llama")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_skipping_dead_hidden_blocks_does_not_change_the_result(kind) -> None:
    dense, _, masks = pair(kind)
    for name in masks:
        masks[name] = masks[name].clone()
        if "gate_proj" in name:
            masks[name][0] = False  # the hidden block is exactly zero
        if "down_proj" in name or "c_proj" in name:
            masks[name][:, 1] = False  # no block reads this hidden block
    sparse = to_sparse(dense, masks, drop=True)
    whole, skipped = blast.fuse(copy.deepcopy(sparse), skip_dead=False), blast.fuse(copy.deepcopy(sparse))
    assert len(fused_of(skipped)[0].row_lists.gate_up) < len(fused_of(whole)[0].row_lists.gate_up)
    close(whole, sparse, kind)
    close(skipped, sparse, kind)


def test_unfusing_restores_the_same_modules_and_parameters() -> None:
    _, sparse, _ = pair("gpt2")
    before = {name: (id(module), type(module)) for name, module in sparse.named_modules()}
    parameters = {name: id(parameter) for name, parameter in sparse.named_parameters()}
    state = list(sparse.state_dict())
    blast.fuse(sparse)
    assert {name: id(parameter) for name, parameter in sparse.named_parameters()} == parameters
    assert list(sparse.state_dict()) == state
    blast.unfuse(sparse)
    assert {name: (id(module), type(module)) for name, module in sparse.named_modules()} == before


@pytest.mark.parametrize("kind", MODELS)
def test_a_fused_model_is_saved_and_loaded_as_the_sparse_one(kind, tmp_path) -> None:
    _, sparse, _ = pair(kind)
    digest = blast.save(sparse, tmp_path / "sparse")
    blast.fuse(sparse)
    assert blast.save(sparse, tmp_path / "fused") == digest
    loaded = blast.load(tmp_path / "fused")
    assert not fused_of(loaded)
    close(blast.fuse(loaded), sparse, kind)


def test_making_a_fused_model_dense_gives_the_dense_model() -> None:
    dense, sparse, _ = pair("llama")
    back = blast.to_dense(blast.fuse(sparse))
    assert {name: type(module) for name, module in back.named_modules()} == {
        name: type(module) for name, module in dense.named_modules()
    }
    close(back, dense, "llama")


def test_weights_changed_after_fusing_take_effect() -> None:
    _, sparse, _ = pair("llama")
    model = blast.fuse(copy.deepcopy(sparse))
    state = {name: value * 0.5 if name.endswith("values") else value for name, value in sparse.state_dict().items()}
    model.load_state_dict(state)
    sparse.load_state_dict(state)
    close(model, sparse, "llama")
    with torch.no_grad():
        for left, right in zip(model.parameters(), sparse.parameters(), strict=True):
            left.mul_(1.1)
            right.mul_(1.1)
    close(model, sparse, "llama")
    for left, right in zip(model.parameters(), sparse.parameters(), strict=True):
        left.data.mul_(0.9)
        right.data.mul_(0.9)
    close(model, sparse, "llama")


def test_a_fused_model_can_be_cast_and_copied() -> None:
    _, sparse, _ = pair("gpt2")
    model = copy.deepcopy(blast.fuse(copy.deepcopy(sparse))).double()
    assert all(mlp.kernel_weights.first.dtype == torch.float64 for mlp in fused_of(model))
    assert all(mlp.original._modules is mlp._modules for mlp in fused_of(model))
    close(model.float(), sparse, "gpt2")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_fused_model_generates_the_same_tokens(kind) -> None:
    _, sparse, _ = pair(kind)
    prompt = inputs_of(kind)[:1, :4]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = sparse.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    tokens = blast.fuse(sparse).generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(tokens, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_a_fused_model_is_one_graph_for_the_compiler(kind) -> None:
    _, sparse, _ = pair(kind)
    model = blast.fuse(copy.deepcopy(sparse))
    with torch.no_grad():
        compiled = torch.compile(lambda x: output_of(model, x), fullgraph=True, backend="aot_eager")
        out, expected = compiled(inputs_of(kind)), output_of(sparse, inputs_of(kind))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_dense_runs_where_the_table_says_that_it_is_faster(monkeypatch) -> None:
    dense, sparse, _ = pair("llama")
    asked = []
    monkeypatch.setattr(sparse_mlp, "dense_ranges", lambda *given: asked.append(given[3]) or ((8, False), (None, True)))
    model = blast.fuse(copy.deepcopy(sparse), dense_fallback=True)
    assert set(asked) == {tuple(mlp.up.shape) for mlp in find_mlps(dense)}
    ran = []
    monkeypatch.setattr(
        SparseMlp, "_run_dense", lambda self, *given, run=SparseMlp._run_dense: ran.append(1) or run(self, *given)
    )
    close(model, sparse, "llama")  # 24 tokens
    assert len(ran) == 2
    with torch.no_grad():
        model(inputs_of("llama")[:1, :8])
    assert len(ran) == 2


def test_a_fused_model_holds_its_weights_once() -> None:
    _, sparse, _ = pair("llama")
    before = blast.model_bytes(sparse)
    after = blast.model_bytes(blast.fuse(sparse))
    row_lists = sum(4 * tensor.numel() for mlp in fused_of(sparse) for tensor in mlp.row_lists[:2])
    assert after.weights - before.weights == row_lists
    assert after.mlp - before.mlp == after.weights - before.weights
    for mlp in fused_of(sparse):
        held = {
            mlp.kernel_weights.first.data_ptr(),
            mlp.kernel_weights.up.data_ptr(),
            mlp.kernel_weights.down.data_ptr(),
        }
        assert held == {layer.values.data_ptr() for layer in mlp.layers}


def test_a_model_without_block_sparse_mlps_is_refused_in_one_sentence() -> None:
    dense, _, _ = pair("llama")
    with pytest.raises(BlastError, match=r"no MLP of this model can be fused; .*blast.to_sparse"):
        blast.fuse(dense)


def test_an_mlp_that_computes_something_else_is_not_fused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)

        def forward(self, x):
            return 2 * self.fc2(self.act(self.fc1(x)))

    model = nn.Sequential(Doubled())
    masks = {"0.fc1": torch.ones(4, 2, dtype=torch.bool), "0.fc2": torch.ones(2, 4, dtype=torch.bool)}
    with pytest.raises(BlastError, match="Doubled computes something else than its children suggest"):
        blast.fuse(to_sparse(model, masks))


def test_an_mlp_with_an_unknown_activation_is_not_fused() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)

        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    model = nn.Sequential(Squared())
    masks = {"0.fc1": torch.ones(4, 2, dtype=torch.bool), "0.fc2": torch.ones(2, 4, dtype=torch.bool)}
    with pytest.raises(BlastError, match="one activation that is silu or gelu"):
        blast.fuse(to_sparse(model, masks))


def test_an_mlp_that_is_the_model_itself_is_refused() -> None:
    _, sparse, _ = pair("gpt2")
    with pytest.raises(BlastError, match="the model is itself one MLP; wrap it"):
        blast.fuse(sparse.transformer.h[0].mlp)


def test_hooks_on_an_mlp_are_called_once_fused_or_not() -> None:
    _, sparse, _ = pair("gpt2")
    called = []
    handle = sparse.transformer.h[0].mlp.register_forward_hook(lambda *_: called.append(1))
    model = blast.fuse(sparse)
    with torch.no_grad():
        output_of(model, inputs_of("gpt2"))
    output_of(model, inputs_of("gpt2"))
    assert len(called) == 2
    handle.remove()
    output_of(blast.unfuse(model), inputs_of("gpt2"))
    assert len(called) == 2


def test_active_dropout_runs_layer_by_layer(monkeypatch) -> None:
    _, sparse, _ = pair("gpt2")
    for block in sparse.transformer.h:
        block.mlp.dropout.p = 0.5
    model = blast.fuse(sparse).train()
    monkeypatch.setattr(SparseMlp, "_run", lambda *_: pytest.fail("dropout was left out"))
    with torch.no_grad():
        output_of(model, inputs_of("gpt2"))
    assert all(mlp.original.training for mlp in fused_of(model))


def test_qwen3_is_fused() -> None:
    import transformers

    from blast.model.discovery import match_matrices

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, **heads)).eval()
    masks = {t.name: torch.rand(t.shape[0] // 32, t.shape[1] // 32) < 0.5 for t in match_matrices(model)}
    sparse = to_sparse(model, masks, drop=True)
    tokens = torch.randint(64, (1, 9))
    with torch.no_grad():
        expected = sparse(tokens).logits
        fused = blast.fuse(sparse)
        assert len(fused_of(fused)) == 2
        torch.testing.assert_close(fused(tokens).logits, expected, rtol=1e-4, atol=1e-5)


class Stacked(nn.Module):
    """An MLP with all that its children do not tell, one at a time."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)
        self.what, self.scale = what, 1
        if what == "parameter":
            self.gain = nn.Parameter(torch.ones(1))
        elif what == "buffer":
            self.register_buffer("gain", torch.ones(1))
        elif what == "clipped":
            self.act = Clipped()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x))) * self.scale * getattr(self, "gain", 1)


class Clipped(nn.Module):
    def forward(self, x):
        return nn.functional.gelu(x).clamp(-10, 10)


class WithResidual(Stacked):
    def forward(self, x, residual):
        return super().forward(x) + residual


class OnlyBatches(Stacked):
    def forward(self, x):
        batch, tokens, width = x.shape
        return super().forward(x.view(batch * tokens, width)).view(x.shape)


def stacked(*mlps: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    masks = {"fc1": torch.rand(4, 2) < 0.7, "fc2": torch.rand(2, 4) < 0.7}
    named = {f"{place}.{name}": mask for place in range(len(mlps)) for name, mask in masks.items()}
    return to_sparse(nn.Sequential(*mlps), named, drop=True)


def instance_forward(model: nn.Module) -> None:
    plain = model.forward
    model.forward = lambda x: plain(x) + 1


def mixed_dtypes(model: nn.Module) -> None:
    model.fc1.values.data = model.fc1.values.data.bfloat16()


@pytest.mark.parametrize(
    ("build", "change", "reason"),
    [
        (lambda: WithResidual(""), None, r"its forward takes 2 arguments \(x, residual\)"),
        (lambda: OnlyBatches(""), None, "OnlyBatches computes something else than its children suggest"),
        (lambda: Stacked("parameter"), None, "it has a parameter or buffer 'gain' of its own"),
        (lambda: Stacked("buffer"), None, "it has a parameter or buffer 'gain' of its own"),
        (lambda: Stacked("clipped"), None, "one activation that is silu or gelu"),
        (lambda: Stacked(""), mixed_dtypes, "its weights and biases have several dtypes"),
        (lambda: Stacked(""), instance_forward, "its forward was replaced"),
        (lambda: Stacked(""), lambda m: instance_forward(m.fc2), "the forward of one of its layers was replaced"),
        (lambda: Stacked(""), lambda m: m.act.register_forward_hook(lambda *_: None), "a hook on one of its layers"),
        (lambda: Stacked(""), lambda m: m.register_state_dict_post_hook(lambda *_: None), "a hook changes its state"),
    ],
    ids=[
        "residual",
        "3-D",
        "parameter",
        "buffer",
        "clipped",
        "dtypes",
        "forward",
        "layer-forward",
        "hook",
        "state-hook",
    ],
)
def test_an_mlp_that_is_more_than_its_children_is_left_as_it_is_with_the_reason(build, change, reason) -> None:
    model = stacked(build(), Stacked(""))
    if change is not None:
        change(model[0])
    kept = model[0]
    blast.fuse(model)
    assert model[0] is kept
    assert isinstance(model[1], SparseMlp)
    blast.unfuse(model)
    with pytest.raises(BlastError, match=reason):
        blast.fuse(nn.Sequential(model[0]))


def test_mlps_of_one_class_with_other_options_or_another_order_are_checked_each() -> None:
    plain, scaled = Stacked(""), Stacked("")
    scaled.scale = 2
    first = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    second = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32), nn.GELU())
    torch.manual_seed(0)
    masks = {"2.0": torch.rand(4, 2) < 0.7, "2.2": torch.rand(2, 4) < 0.7}
    masks |= {"3.0": masks["2.0"], "3.1": masks["2.2"]}
    model = stacked(plain, scaled)
    model.extend([first, second])
    to_sparse(model, masks, drop=True)
    x = torch.randn(5, 32)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(blast.fuse(model)(x), expected, rtol=1e-4, atol=1e-5)
    assert [isinstance(mlp, SparseMlp) for mlp in model] == [True, False, True, False]


@pytest.mark.parametrize("empty", [("gate",), ("up",), ("down",), ("gate", "up"), ("gate", "up", "down")])
@pytest.mark.parametrize("skip_dead", [False, True])
def test_an_mlp_without_live_blocks_is_fused(empty, skip_dead) -> None:
    dense, _, masks = pair("llama")
    first = {f"model.layers.0.mlp.{name}_proj" for name in empty}
    masks = {name: mask & (name not in first) for name, mask in masks.items()}
    sparse = to_sparse(dense, masks, drop=True)
    fused = blast.fuse(copy.deepcopy(sparse), skip_dead=skip_dead)
    assert len(fused_of(fused)) == 2
    close(fused, sparse, "llama")


def test_hooks_for_all_modules_are_called_for_the_layers_of_a_fused_mlp() -> None:
    model, seen = blast.fuse(stacked(Stacked(""))), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            model(torch.randn(3, 32))
    finally:
        handle.remove()
    assert {model[0].fc1, model[0].act, model[0].fc2} <= set(seen)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_dense_runs_with_the_weights_of_now(monkeypatch, compiled) -> None:
    _, sparse, _ = pair("llama")
    monkeypatch.setattr(sparse_mlp, "dense_ranges", lambda *_: ((None, True),))
    before = blast.model_bytes(blast.fuse(copy.deepcopy(sparse))).weights
    model = blast.fuse(copy.deepcopy(sparse), dense_fallback=True)
    assert blast.model_bytes(model).weights == before
    run = torch.compile(lambda x: output_of(model, x), backend="aot_eager") if compiled else None
    with torch.no_grad():
        old = run(inputs_of("llama")) if run else output_of(model, inputs_of("llama"))
        for left, right in zip(model.parameters(), sparse.parameters(), strict=True):
            left.data.mul_(1.2)
            right.data.mul_(1.2)
        now = run(inputs_of("llama")) if run else output_of(model, inputs_of("llama"))
        torch.testing.assert_close(now, output_of(sparse, inputs_of("llama")), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(now, old)
