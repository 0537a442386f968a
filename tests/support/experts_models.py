"""Tiny mixtures of experts of transformers, one for each way of storing experts and routing tokens."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LATENT_ATTENTION = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}


def build(family: str) -> nn.Module:
    """A model of a family with fresh weights, the same in each call; hidden size 32, experts of 16 or 32."""
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def _qwen2_moe() -> nn.Module:
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 64}
    config = transformers.Qwen2MoeConfig(**SIZES, **sizes, intermediate_size=64, num_experts_per_tok=2)
    return transformers.Qwen2MoeForCausalLM(config)


def _qwen3_moe() -> nn.Module:
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16}
    config = transformers.Qwen3MoeConfig(**SIZES, **sizes, intermediate_size=64, num_experts_per_tok=2)
    return transformers.Qwen3MoeForCausalLM(config)


def _mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**SIZES, intermediate_size=32, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def _olmoe() -> nn.Module:
    config = transformers.OlmoeConfig(**SIZES, intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    return transformers.OlmoeForCausalLM(config)


def _deepseek_v2() -> nn.Module:
    sizes = {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    config = transformers.DeepseekV2Config(**SIZES, **LATENT_ATTENTION, **sizes, intermediate_size=64, n_group=1)
    return transformers.DeepseekV2ForCausalLM(config)


def _deepseek_v3() -> nn.Module:
    sizes = {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    groups = {"n_group": 2, "topk_group": 1}
    config = transformers.DeepseekV3Config(**SIZES, **LATENT_ATTENTION, **sizes, **groups, intermediate_size=64)
    return transformers.DeepseekV3ForCausalLM(config)


def _gpt_oss() -> nn.Module:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    config = transformers.GptOssConfig(**SIZES, **sizes, intermediate_size=32)
    model = transformers.GptOssForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("_bias"):
            nn.init.normal_(parameter, std=0.5)
    return model


def _llama4() -> nn.Module:
    sizes = {"num_local_experts": 4, "head_dim": 16, "intermediate_size": 32, "intermediate_size_mlp": 64}
    moe = {"num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "attention_chunk_size": 64}
    config = transformers.Llama4TextConfig(**SIZES, **sizes, **moe)
    return transformers.Llama4ForCausalLM(config)


FAMILIES = {
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
}


def tokens(step: int = 0) -> Tensor:
    """Tokens `[2, 8]` that depend on the step alone."""
    return torch.randint(1, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    """A loss on `tokens(step)`."""
    found: Tensor = model(input_ids=tokens(step), labels=tokens(step)).loss
    return found
