"""Save and load block-sparse models: safetensors and a manifest."""
