"""Checks that a model is in the sparse state before its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from blast.errors import BlastError


def require_sparse_state(model: nn.Module, sparse_matrices: Iterable[str]) -> None:
    """Checks that no matrix that is recorded as sparse exists as a dense weight in the model.

    A dense weight is a floating-point tensor of two dimensions with any name: a parameter, a buffer or a plain
    attribute, in the module of the matrix or in its parent module. Live blocks have three dimensions.

    Args:
        model: The model as it was loaded.
        sparse_matrices: Names of the modules whose weight is recorded as sparse; a mapping by name is fine.

    Raises:
        BlastError: if a matrix is dense, is missing, or holds no blocks; the message names the first one.
    """
    modules = dict(model.named_modules())
    remedy = "load the saved checkpoint with blast.load and evaluate that model unchanged."
    for name in sparse_matrices:
        if name not in modules:
            raise BlastError(f"'{name}' is recorded as sparse, but the model has no module of that name; {remedy}")
        module = modules[name]
        found = list(_tensors_below(module))
        for place, tensor in found:
            if _is_dense(tensor):
                raise _dense(name, f"{name}.{place}", tensor, remedy)
        if not any(tensor.is_floating_point() and tensor.dim() == 3 for _, tensor in found):
            raise BlastError(
                f"'{name}' is recorded as sparse, but its {type(module).__name__} holds no blocks; {remedy}"
            )
        shape = (getattr(module, "out_features", None), getattr(module, "in_features", None))
        parent = name.rpartition(".")[0]
        for place, tensor in _own_tensors(modules[parent]):
            if _is_dense(tensor) and tuple(tensor.shape) in (shape, shape[::-1]):
                raise _dense(name, f"{parent}.{place}".strip("."), tensor, remedy)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() == 2


def _dense(name: str, place: str, tensor: Tensor, remedy: str) -> BlastError:
    return BlastError(
        f"'{name}' is recorded as sparse, but exists as a dense weight {list(tensor.shape)} at '{place}'; {remedy}"
    )


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain attributes of a module, without its submodules."""
    for store in (module._parameters, module._buffers, vars(module)):
        for name, value in store.items():
            if isinstance(value, Tensor):
                yield name, value


def _tensors_below(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module and of its submodules, also of modules that are plain attributes."""
    yield from _own_tensors(module)
    hidden = {name: value for name, value in vars(module).items() if isinstance(value, nn.Module)}
    for child, value in {**module._modules, **hidden}.items():
        if value is not None:
            yield from ((f"{child}.{name}", tensor) for name, tensor in _tensors_below(value))
