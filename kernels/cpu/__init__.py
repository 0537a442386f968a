"""Products for processors: C++ with vector instructions, built at the first use; without a compiler, plain PyTorch."""
