"""Clocks: interleaved timing, CUDA graphs, the roofline model, the device."""
