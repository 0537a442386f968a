"""Generation with CUDA graphs: the decoding loop that `model.generate` takes as `custom_generate`."""
