"""Interleaved timing, CUDA graphs, the roofline model and the choice of the device."""
