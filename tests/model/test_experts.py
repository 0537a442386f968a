"""The experts of transformers are found by the structure of their module, and checked by values."""

from __future__ import annotations

import pytest
import torch
from experts_models import FAMILIES, build
from torch import nn

from blast.errors import BlastError
from blast.layers.sparse_experts import ExpertsForm
from blast.model.discovery import match_matrices, split_dense
from blast.model.experts import find_experts, unsupported_experts

CONCATENATED = ExpertsForm("gate_up_proj", "down_proj", transposed=False, routed=True)
FORMS = {
    "gpt_oss": CONCATENATED._replace(transposed=True),
    "llama4": CONCATENATED._replace(transposed=True, routed=False),
}


class OtherExperts(nn.Module):
    """Looks like the experts of Mixtral, with another activation than its attribute says."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 32, 8))
        self.down_proj = nn.Parameter(torch.randn(4, 8, 16))
        self.act_fn, self.factor = nn.SiLU(), factor

    def forward(self, x, chosen, weights):
        out = torch.zeros_like(x)
        for token in range(len(x)):
            for place, expert in enumerate(chosen[token].tolist()):
                gate, up = (self.gate_up_proj[expert] @ x[token]).chunk(2)
                out[token] += weights[token, place] * (self.down_proj[expert] @ (self.act_fn(gate) * up)) * self.factor
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_experts_of_each_family_are_found(family):
    model = build(family)
    found = find_experts(model)
    assert found
    assert not unsupported_experts(model)
    for experts in found:
        assert experts.name.endswith((".mlp.experts", ".feed_forward.experts"))
        assert experts.form == FORMS.get(family, CONCATENATED)
        assert [target.shape for target in experts.targets[::4]] == [
            (2 * experts.module.down_proj.shape[1 if experts.form.transposed else 2], 32),
            (32, experts.targets[0].shape[0] // 2),
        ]


def test_a_matrix_of_an_expert_is_a_slice_of_its_parameter():
    for family in ("mixtral", "gpt_oss"):
        model = build(family)
        target = next(t for t in match_matrices(model) if t.name == "model.layers.1.mlp.experts.down_proj.2")
        slice_ = model.model.layers[1].mlp.experts.down_proj[2]
        assert torch.equal(target.weight, slice_.t() if family == "gpt_oss" else slice_)
        assert (target.layer, target.layer_path, target.mlp) == (1, "model.layers.1", "model.layers.1.mlp.experts")
        assert target.module_name == "model.layers.1.mlp.experts"


def test_patterns_select_experts_and_layers_stay_dense():
    model = build("qwen2_moe")
    assert len(match_matrices(model, "*.experts.*")) == 16
    assert len(match_matrices(model, "*.0.mlp.experts.down_proj.*")) == 4
    pruned, dense = split_dense(match_matrices(model, "mlp"), 1, 0)
    assert {target.layer for target in pruned} == {1}
    assert {target.layer for target in dense} == {0}


def test_experts_that_compute_something_else_are_not_taken():
    model = nn.ModuleDict({"experts": OtherExperts()})
    assert unsupported_experts(model) == {
        "experts": "OtherExperts computes something else than its parameters suggest",
    }
    for target in ("mlp", "experts.down_proj.*"):
        with pytest.raises(
            BlastError, match=r"^target '.*' matches nothing: the experts of 'experts' cannot be pruned"
        ):
            match_matrices(model, target)
    assert len(find_experts(nn.ModuleDict({"experts": OtherExperts(1.0)}))) == 1


def test_experts_with_an_unknown_parameter_are_not_taken():
    experts = OtherExperts(1.0)
    experts.scale = nn.Parameter(torch.ones(4))
    assert unsupported_experts(nn.ModuleDict({"experts": experts})) == {"experts": "the parameter 'scale' is unknown"}
