"""Memory of inference, reckoned by hand for a shape with round numbers."""

from __future__ import annotations

from dataclasses import replace

from blast import architectures
from blast.architectures.inference_memory import activation_bytes, kv_cache_bytes

SHAPE = replace(
    architectures.get("llama-3.1-8b").shape,
    layers=3, hidden=10, ffn=100, heads=4, kv_heads=2, head_dim=5, vocab=64,
)  # fmt: skip


def test_keys_and_values_are_two_vectors_a_head_layer_and_token():
    assert kv_cache_bytes(SHAPE, batch=7, context=11) == 2 * (3 * 2 * 5) * (7 * 11) * 2
    assert kv_cache_bytes(SHAPE, batch=1, context=1, element=4) == 2 * (3 * 2 * 5) * 4


def test_a_pass_holds_the_larger_of_an_mlp_and_a_norm_and_the_logits_of_a_token_a_sequence():
    logits = 2 * 7 * 64
    # Layer by layer: four times the width of the model, three times that of the MLP.
    assert activation_bytes(SHAPE, 7, 21, fused=False) == 21 * 2 * (4 * 10 + 3 * 100) + logits
    # Fused: the hidden width once, and the output.
    assert activation_bytes(SHAPE, 7, 21, fused=True) == 21 * 2 * (5 * 10 + 100) + logits
    # Where the MLP is narrow, a norm holds more: three times the width, and twice in float32.
    narrow = replace(SHAPE, ffn=1)
    assert activation_bytes(narrow, 7, 21, fused=True) == 21 * (3 * 2 + 2 * 4) * 10 + logits


def test_gpus_share_the_hidden_width_and_the_logits_rounded_up():
    assert activation_bytes(SHAPE, 1, 1, fused=False, gpus=3) == 2 * (4 * 10 + 3 * 34) + 2 * 22
    assert activation_bytes(SHAPE, 1, 1, fused=True, gpus=3) == 2 * (5 * 10 + 34) + 2 * 22
    assert activation_bytes(SHAPE, 1, 1, fused=False, element=4) == 4 * (4 * 10 + 3 * 100) + 4 * 64
