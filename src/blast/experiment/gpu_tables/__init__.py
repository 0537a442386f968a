"""The measured tables of a GPU in `kernels/tuned/`, made from benchmark records."""
