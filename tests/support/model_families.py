"""Tiny models of the families of transformers and torchvision: two layers, hidden size 32, 64 tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models import swin_transformer as swin
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CAUSAL = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
HIDDEN, WIDE, VOCABULARY, IMAGE = 32, 64, 64, 16

# What a config calls its sizes. Those that a family does not have are left out.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "d_inner"), WIDE),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "shared_expert_intermediate_size"), WIDE),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim", "d_kv"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_head_dim", "moe_intermediate_size"), 32),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "resid_pdrop"), 0.0),
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout_rate"), 0.0),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "encoder_layers"), 1),
    "index_n_heads": 2,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_size": IMAGE,
    "patch_size": 8,
}

# What a family needs besides.
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
PER_LAYER_INPUT = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
OPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "cpmant": {"dim_head": 16, "dim_ff": WIDE, "prompt_length": 2},
    "ctrl": {"dff": WIDE},
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": WIDE, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {
        **PER_LAYER_INPUT,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "intermediate_size": [WIDE, WIDE],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {**PER_LAYER_INPUT, "num_kv_shared_layers": 0, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "inkling_text": {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "rel_extent": 64},
    "kimi_linear": {"linear_head_dim": 16, "linear_num_heads": 2},
    "lfm2": {"block_multiple_of": 8, "block_ff_dim": WIDE},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "longcat_flash": {
        "qk_rope_head_dim": 16,
        "head_dim": 16,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "mimo_v2_flash": {"num_attention_heads": 4},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "moe_shared_expert_intermediate_size": 32,
        "chunk_size": 8,
    },
    "prophetnet": {
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 2,
        "num_decoder_attention_heads": 2,
    },
    "qwen3_5_moe_text": LINEAR_ATTENTION,
    "qwen3_5_text": LINEAR_ATTENTION,
    "qwen3_next": LINEAR_ATTENTION,
    "qwen4_exp_text": {**LINEAR_ATTENTION, "hc_lowrank": 8, "hc_count": 2, **INDEXER},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "attention_head_size": 16,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "feed_forward_size": WIDE,
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 8,
        "shape_vocab_size": VOCABULARY,
    },
    "xlm": {"emb_dim": HIDDEN},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["hybrid", "hybrid"], "attention_head_dim": 32, "mamba_dt_rank": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 4, "mamba_headdim": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

# Families of causal language models that no tiny model is built of, and why.
LANGUAGE_MODEL = "its language model is {}, which is tried"
NOT_TRIED: dict[str, str] = {
    **{
        family: LANGUAGE_MODEL.format(text)
        for family, text in {
            "dots3_note": "dots3_note_text",
            "fuyu": "persimmon",
            "gemma3": "gemma3_text",
            "gemma3n": "gemma3n_text",
            "gemma4": "gemma4_text",
            "gemma4_unified": "gemma4_unified_text",
            "got_ocr2": "qwen2",
            "llama4": "llama4_text",
            "moss_transcribe_diarize": "qwen3",
            "qwen3_5": "qwen3_5_text",
            "qwen3_5_moe": "qwen3_5_moe_text",
            "qwen4_exp": "qwen4_exp_text",
        }.items()
    },
    "blt": "it is four models with hash embeddings of 6 GB",
    "emu3": "its text is mixed with the codes of an image tokenizer",
    "gemma4_assistant": "it drafts for gemma4 and reads that model's states",
    "gemma4_unified_assistant": "it drafts for gemma4_unified and reads that model's states",
    "git": "its forward pass reads the features of an image encoder",
    "mllama": "its forward pass reads the features of an image encoder",
    "musicgen": "its config is that of three models: text, audio and decoder",
    "musicgen_melody": "its config is that of three models: text, audio and decoder",
    "phi4_multimodal": "its language model is phi3, which is tried",
}


def build(family: str) -> nn.Module:
    """A model of a family with weights that are all nonzero, in eval mode; the same at each call."""
    torch.manual_seed(0)
    model = getattr(transformers, CAUSAL[family])(config(family)) if family in CAUSAL else OTHERS[family][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def output(family: str, model: nn.Module) -> Tensor:
    """What the model computes for a fixed input: logits, hidden states or embeddings, float32."""
    given = (OTHERS[family][1] if family in OTHERS else tokens)()
    if hasattr(getattr(model, "config", None), "use_cache") and not isinstance(given, Tensor):
        given = {**given, "use_cache": False}
    out = model(given) if isinstance(given, Tensor) else model(**given)
    if isinstance(out, Tensor):
        return out
    if "logits" in out or "logits_per_image" in out:
        return out["logits" if "logits" in out else "logits_per_image"]
    return torch.cat([part.flatten() for part in (out[0], out.get("pooler_output")) if part is not None])


def config(family: str, **options: Any) -> Any:
    """A small config of a family."""
    kind = CONFIG_MAPPING[family]
    names = inspect.signature(kind.__init__).parameters.keys() | getattr(kind, "__dataclass_fields__", {}).keys()
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return kind(**{**sizes, **OPTIONS.get(family, {}), **options})


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(3, 35).reshape(2, 16)}


def pairs_of_tokens() -> dict[str, Tensor]:
    return {**tokens(), "decoder_input_ids": torch.arange(5, 21).reshape(2, 8)}


def images(side: int = IMAGE) -> dict[str, Tensor]:
    return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * side * side).reshape(2, 3, side, side)}


def plain_images(side: int = 64) -> Tensor:
    return images(side)["pixel_values"]


def video() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 4 * 16 * 16).reshape(2, 3, 4, 16, 16)


def sound() -> dict[str, Tensor]:
    return {"input_values": torch.linspace(-1, 1, 2 * 800).reshape(2, 800).sin()}


def of_transformers(kind: str, family: str, **options: Any) -> Callable[[], nn.Module]:
    """Builds a class of transformers with a small config of a family."""
    return lambda: getattr(transformers, kind)(config(family, **options))


def clip() -> nn.Module:
    text = config("clip_text_model").to_dict()
    vision = config("clip_vision_model").to_dict()
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


SOUND = {"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 4}
SOUND |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "layerdrop": 0.0, "mask_time_prob": 0.0}
MVIT_BLOCKS = [MSBlockConfig(2, HIDDEN, HIDDEN, [3, 3, 3], [1, 2, 2], [1, 1, 1], [1, 1, 1]) for _ in range(2)]
STAGES = {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4, "image_size": 32}

# Other families: how a tiny model is built, and its input.
OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "albert, shared layers": (of_transformers("AlbertModel", "albert"), tokens),
    "bart, encoder and decoder": (of_transformers("BartForConditionalGeneration", "bart"), pairs_of_tokens),
    "clip, text and images": (clip, lambda: {**tokens(), **images()}),
    "convbert": (of_transformers("ConvBertModel", "convbert", embedding_size=32), tokens),
    "convnext": (
        of_transformers("ConvNextModel", "convnext", hidden_sizes=[32, 64], depths=[1, 1], num_stages=2, patch_size=4),
        lambda: images(32),
    ),
    "deberta-v2": (of_transformers("DebertaV2Model", "deberta-v2"), tokens),
    "dinov2": (of_transformers("Dinov2Model", "dinov2"), images),
    "dinov2, gated": (of_transformers("Dinov2Model", "dinov2", use_swiglu_ffn=True, mlp_ratio=3), images),
    "dinov3_vit, gated": (of_transformers("DINOv3ViTModel", "dinov3_vit", use_gated_mlp=True), images),
    "distilbert": (of_transformers("DistilBertModel", "distilbert", dim=HIDDEN, hidden_dim=WIDE), tokens),
    "esm": (of_transformers("EsmModel", "esm"), tokens),
    "funnel": (of_transformers("FunnelModel", "funnel", block_sizes=[1, 1], d_head=16), tokens),
    "hubert": (of_transformers("HubertModel", "hubert", **SOUND), sound),
    "m2m_100": (of_transformers("M2M100ForConditionalGeneration", "m2m_100"), pairs_of_tokens),
    "mobilebert": (
        of_transformers("MobileBertModel", "mobilebert", intra_bottleneck_size=32, embedding_size=32),
        tokens,
    ),
    "modernbert": (of_transformers("ModernBertModel", "modernbert"), tokens),
    "mpnet": (of_transformers("MPNetModel", "mpnet"), tokens),
    "mt5": (of_transformers("MT5ForConditionalGeneration", "mt5"), pairs_of_tokens),
    "segformer": (
        of_transformers(
            "SegformerModel",
            "segformer",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[32, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
        ),
        lambda: images(32),
    ),
    "siglip, images": (of_transformers("SiglipVisionModel", "siglip_vision_model"), images),
    "swin": (of_transformers("SwinModel", "swin", **STAGES), lambda: images(32)),
    "swinv2": (of_transformers("Swinv2Model", "swinv2", **STAGES), lambda: images(32)),
    "switch_transformers": (
        of_transformers(
            "SwitchTransformersForConditionalGeneration",
            "switch_transformers",
            num_sparse_encoder_layers=1,
            num_decoder_layers=2,
        ),
        pairs_of_tokens,
    ),
    "t5": (of_transformers("T5ForConditionalGeneration", "t5", feed_forward_proj="relu"), pairs_of_tokens),
    "t5, gated": (of_transformers("T5ForConditionalGeneration", "t5", feed_forward_proj="gated-gelu"), pairs_of_tokens),
    "vit": (of_transformers("ViTForImageClassification", "vit"), images),
    "wav2vec2": (of_transformers("Wav2Vec2Model", "wav2vec2", **SOUND), sound),
    "whisper, encoder and decoder": (
        of_transformers("WhisperForConditionalGeneration", "whisper", max_source_positions=16, num_mel_bins=8),
        lambda: {
            "input_features": torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32),
            "decoder_input_ids": pairs_of_tokens()["decoder_input_ids"],
        },
    ),
    "torchvision ViT": (
        lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, HIDDEN, WIDE),
        lambda: plain_images(16),
    ),
    "torchvision Swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 32, [1, 1], [2, 2], [4, 4], stochastic_depth_prob=0.0),
        plain_images,
    ),
    "torchvision Swin V2": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4],
            32,
            [1, 1],
            [2, 2],
            [4, 4],
            stochastic_depth_prob=0.0,
            block=swin.SwinTransformerBlockV2,
            downsample_layer=swin.PatchMergingV2,
        ),
        plain_images,
    ),
    "torchvision ConvNeXt": (
        lambda: torchvision.models.ConvNeXt([CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)]),
        plain_images,
    ),
    "torchvision MaxViT": (
        lambda: torchvision.models.MaxVit((64, 64), 16, 4, [32], [1], 16, 0.0),
        plain_images,
    ),
    "torchvision MViT": (
        lambda: MViT(
            (16, 16),
            4,
            MVIT_BLOCKS,
            residual_pool=False,
            residual_with_cls_embed=False,
            rel_pos_embed=False,
            proj_after_attn=False,
            num_classes=8,
        ),
        video,
    ),
    "torchvision Swin 3D": (
        lambda: SwinTransformer3d([2, 4, 4], 32, [1, 1], [2, 2], [2, 4, 4], stochastic_depth_prob=0.0, num_classes=8),
        video,
    ),
}
FAMILIES = [*CAUSAL, *OTHERS]
