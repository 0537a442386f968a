"""Checkpoints: a folder with `blast.safetensors` and `blast.json`, without pickle and without code.

`blast.safetensors` uses the tensor names of the model. A block-sparse matrix `x` has `x.values`, `x.row_offsets` and
`x.col_indices` in place of `x.weight`. Tied weights and shared indices are stored once. `blast.json` has the class of
the model, the block-sparse matrices with their blocks, the names that share a tensor, and digests. The folder can also
hold the tokenizer or image processor. `config.json` tells transformers to open the folder through `blast`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blast.block_sparse.sharding import refuse_sharded
from blast.checkpoint.builders import describe, skeleton
from blast.checkpoint.folder import folder_path, replaced_folder
from blast.checkpoint.manifest import WEIGHTS, read_manifest, write_manifest
from blast.checkpoint.partial import load_part
from blast.checkpoint.processing import check_vocabulary, kept_files, warn_of_changes, write_processing
from blast.checkpoint.reading import StoredTensors, fill, usable_device
from blast.checkpoint.tensors import dense_shapes, unique_tensors
from blast.checkpoint.transformers_config import write_config
from blast.errors import BlastError, check_argument
from blast.layers.block_linear import BlockLinear
from blast.model.convert import refuse_save_pretrained
from blast.model.module_replacement import sparse_layers, unwrapped

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def save(model: nn.Module, folder: str | Path, processing_class: Any = None) -> str:
    """Writes a model, sparse or dense, to a folder. After an error the folder is unchanged.

    An existing checkpoint is replaced; other files in its folder are kept. With `blast` imported,
    `AutoModelForCausalLM.from_pretrained(folder)` and its like open the folder of a transformers model.

    Args:
        model: Any model. `load(folder)` can build those of transformers and torchvision's VisionTransformer; other
            models need `load(folder, model=...)`.
        folder: The folder of the checkpoint; created with its parents.
        processing_class: The tokenizer, image processor or processor of the model, or a folder with its files; stored
            beside the model, where `AutoTokenizer.from_pretrained(folder)` and its like find it. Without it, that of a
            replaced checkpoint of the same model is kept.

    Returns:
        Digest of the checkpoint, `"sha256:…"`.

    Raises:
        BlastError: if the folder contains something else or cannot be written, part of the model's state cannot be
            stored, the tokenizer has more tokens than the model, or the model is sharded (`fully_shard`); then the
            message says how to get an unsharded one.

    Example:
        >>> blast.save(blast.to_sparse(model, masks), "my-sparse-model")
        'sha256:...'
    """
    from safetensors.torch import save_file

    model = unwrapped(model)
    refuse_sharded(model)
    check_vocabulary(model, processing_class)
    tensors, aliases = unique_tensors(model)
    described = describe(model)
    if described["base"] is not None and dense_shapes(skeleton(described)) != dense_shapes(model):
        described["base"] = None  # it was changed after it was built
    matrices = {name: _facts(layer) for name, layer in sparse_layers(model).items()}
    folder = folder_path(folder)
    kept = kept_files(folder, described) if processing_class is None else {}
    with replaced_folder(folder, kept) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        files = kept if processing_class is None else write_processing(processing_class, fresh)
        write_config(fresh, described)
        return write_manifest(fresh, {**described, "matrices": matrices, "aliases": aliases, "files": files})


def load(
    folder: str | Path,
    model: nn.Module | None = None,
    device: torch.device | str | None = None,
    *,
    tensor_parallel: bool | DeviceMesh = False,
) -> nn.Module:
    """Loads a model as it was saved, sparse or dense, in eval mode. Sparse matrices stay sparse while loading.

    Memory peaks at the size of the weights, on the device that they go to.

    Args:
        folder: A folder that `save` wrote.
        model: The dense model to load into, for classes that blast cannot build; changed in place. If it is built on
            the meta device, it needs no memory of its own.
        device: Device of the loaded tensors; by default that of `model`, else the CPU. With `tensor_parallel` the
            default is the GPU of this process, if it has one.
        tensor_parallel: Whether the processes that `torchrun` started load one model together: each gets a part, with
            about as many live blocks as the others have. A mesh of one dimension names the processes. All of them call
            this, and then the model with the same input. It is for inference with GPT-2, Llama, Qwen2 and Qwen3.

    Returns:
        The model; `blast.to_dense(model)` makes it dense. With `tensor_parallel` it is the part of this process.

    Raises:
        BlastError: if the checkpoint is missing, incomplete, altered or of another format version, or if `model` does
            not fit it, or this machine has no such device, or the device has too little memory. Then `model` is not
            changed. With `tensor_parallel` also if the model cannot be split over so many processes, they read
            different checkpoints, or one of them fails or ends; then all of them raise.

    Example:
        >>> digest = blast.save(blast.to_sparse(model, masks), "my-sparse-model")
        >>> model = blast.load("my-sparse-model", device="cpu")
    """
    folder, device = folder_path(folder), usable_device(device)
    if model is not None:
        check_argument("the model", model, nn.Module, "a torch.nn.Module")
    if tensor_parallel is not False:
        if model is not None:
            raise BlastError("tensor_parallel builds the model of the checkpoint itself; leave out model.")
        return _loaded(load_part(folder, device, tensor_parallel))
    manifest = read_manifest(folder)
    warn_of_changes(folder, manifest)
    target = skeleton(manifest) if model is None else model
    fill(target, manifest, StoredTensors(folder, manifest), device)
    return _loaded(target)


def _loaded(model: nn.Module) -> nn.Module:
    refuse_save_pretrained(model)
    return model.eval()


def _facts(layer: BlockLinear) -> dict[str, Any]:
    rows, cols = layer.index.index.grid
    return {
        "shape": [layer.out_features, layer.in_features],
        "block": list(layer.block),
        "blocks": rows * cols,
        "live": layer.col_indices.numel(),
        "transposed": layer.transposed,
    }
