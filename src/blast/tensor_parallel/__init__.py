"""Tensor parallelism for inference: each process holds a part of every matrix, and parts of sums are added up.

Hidden blocks of an MLP are dealt out so that each process has as many live blocks; heads of an attention are cut into
equal runs. DTensor is not used: parts of a block-sparse matrix have different numbers of blocks, and no DTensor does.
"""
