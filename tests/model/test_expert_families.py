"""Every module of experts in transformers is recognised, or its refusal is known: a table of what to expect."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from blast.layers.sparse_experts import ExpertsForm
from blast.model.experts import find_experts, form_of, unsupported_experts

MODELS = Path(transformers.__path__[0]) / "models"
EXPERTS = re.compile(r"^class (\w*Experts)\(nn\.Module\)", re.MULTILINE)
# Their parameters are not the two of `gate_up_proj` (or `up_proj`) and `down_proj`, so they stay dense and are told.
OTHERS = {"DbrxExperts", "JetMoeParallelExperts"}
REFUSED = {"InklingSharedExperts": "the parameter 'gate_proj' is unknown"}
UNGATED = {"NemotronHExperts"}
TRANSPOSED = {"AriaExperts", "GptOssExperts", "Llama4TextExperts", "OpenAIPrivacyFilterExperts"}


class Config:
    """Answers every question of a constructor with a small number that fits its name."""

    def __getattr__(self, name: str) -> Any:
        if name == "_experts_implementation":
            return "eager"
        if name.endswith(("hidden_act", "activation")):
            return "silu"
        if "limit" in name or "alpha" in name:
            return 1.5
        if "eps" in name:
            return 1e-6
        if name == "zero_expert_num":
            return 0
        if name.startswith(("num_", "n_routed", "moe_num")):
            return 4
        return 16 if "hidden_size" in name or name == "moe_latent_size" else 8


def classes() -> list[tuple[str, str]]:
    """Module and name of each class of experts in transformers."""
    found = []
    for file in sorted(MODELS.glob("*/modeling_*.py")):
        module = f"transformers.models.{file.parent.name}.{file.stem}"
        found += [(module, name) for name in EXPERTS.findall(file.read_text(encoding="utf-8"))]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), classes(), ids=lambda part: part.rpartition(".")[2])
def test_the_experts_of_a_family_are_recognised_or_known_to_differ(module, name):
    kind = getattr(importlib.import_module(module), name)
    if name in OTHERS:
        pytest.skip("known to store its experts in another way")
    torch.manual_seed(0)
    experts = kind(Config())
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    if name in REFUSED:
        assert unsupported_experts(experts) == {"": REFUSED[name]}
        return
    expected = ExpertsForm(
        "up_proj" if name in UNGATED else "gate_up_proj", "down_proj", name in TRANSPOSED, name != "Llama4TextExperts"
    )
    assert form_of(experts) == expected
    for dtype in (torch.float32, torch.bfloat16):
        assert len(find_experts(experts.to(dtype))) == 1


def test_experts_that_differ_have_none_of_the_two_parameters():
    names = {name for _, name in classes()}
    assert names >= OTHERS | UNGATED | TRANSPOSED | REFUSED.keys()
