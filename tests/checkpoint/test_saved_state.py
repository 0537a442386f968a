"""Whatever a module writes into its own state comes back bit for bit, or `blast.save` refuses it by name."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, prune

import blast
from blast.errors import BlastError


def there_and_back(model: nn.Module, folder: Path, fresh: nn.Module | None = None) -> nn.Module:
    """A model with other numbers, by default a copy, after it loaded what the model saved."""
    if fresh is None:
        fresh = copy.deepcopy(model)
        for tensor in {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}.values():
            tensor.data = tensor.data.clone().zero_()
    blast.save(model, folder)
    return blast.load(folder, model=fresh)


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    expected, found = one.state_dict(), other.state_dict()
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


class Packed(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "scale"] = torch.ones(1)


class Halved(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight / 2


class Counting(nn.Linear):
    def __init__(self, state):
        super().__init__(4, 4)
        self.seen = state

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)

    def add(module, state, prefix, _metadata):
        state[f"{prefix}step"] = torch.tensor(3)

    layer.register_state_dict_post_hook(add)
    return layer


def quantised() -> nn.Module:
    return quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)[0]


class Tagged(torch.Tensor):
    pass


def with_buffer(value: torch.Tensor) -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_buffer("table", value)
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Packed(4, 4), r"'1' \(Packed\) writes '1.scale' \(a Tensor\) into its state"),
        (lambda: Halved(4, 4), r"'1' \(Halved\) writes '1.weight' \(a changed tensor\)"),
        (lambda: Counting({"seen": 3}), r"'1' \(Counting\) writes extra state \(a dict\)"),
        (lambda: Counting(torch.ones(2)), r"'1' \(Counting\) writes extra state \(a Tensor\)"),
        (hooked, r"'1' \(Linear\) writes '1.step' \(a Tensor\)"),
        (quantised, r"'1.*' \(\w+\) writes '1\.\S+' \(a \w+\) into its state"),
        (lambda: with_buffer(torch.ones(2).as_subclass(Tagged)), r"'1.table' is a Tagged, whose class"),
        (lambda: with_buffer(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)), r"'1.table' .* qint8"),
        (lambda: with_buffer(torch.ones(2, 2).to_sparse()), r"'1.table' .* form sparse_coo"),
        (lambda: with_buffer(torch.ones(2, dtype=torch.complex128)), r"'1.table' .* form complex128"),
        (lambda: nn.LazyLinear(4), r"'1.weight' has no shape yet; call the model once"),
        (lambda: nn.Linear(4, 4, device="meta"), r"'1.weight' is on the meta device"),
    ],
)
def test_state_that_cannot_be_stored_is_refused_by_name(layer, message: str, tmp_path: Path) -> None:
    with pytest.raises(BlastError, match=message) as caught:
        blast.save(nn.Sequential(nn.Linear(4, 4), layer()), tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit_or_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    try:
        table = torch.randint(0, 2 if dtype == torch.bool else 100, (8, 16), dtype=torch.uint8).view(dtype)
        fresh = with_buffer(torch.zeros(8, 16, dtype=torch.uint8).view(dtype))
    except Exception:
        pytest.skip("torch makes no such tensor")
    refused = None
    try:
        loaded = there_and_back(with_buffer(table), tmp_path / "model", fresh)
    except BlastError as error:
        refused = str(error)
    if refused:
        assert dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float8_e4m3fn)
        assert str(dtype).removeprefix("torch.") in refused
    else:
        assert loaded.table.dtype == dtype
        assert torch.equal(loaded.table.view(torch.uint8), table.view(torch.uint8))


def parametrized(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
        nn.BatchNorm1d(4),
    )
    model(torch.randn(8, 4))
    return model


def test_parametrized_pruned_and_running_state_comes_back(tmp_path: Path) -> None:
    model = parametrized(0)
    before = copy.deepcopy(dict(model.state_dict()))
    loaded = there_and_back(model, tmp_path / "model", parametrized(1))
    assert_same_state(loaded, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), model.eval()(x))


def test_a_floating_buffer_outside_the_state_dict_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    model.register_buffer("table", torch.rand(3), persistent=False)
    assert torch.equal(there_and_back(model, tmp_path / "model").table, model.table)


def test_views_and_other_memory_formats_come_back(tmp_path: Path) -> None:
    memory = torch.randn(40)
    model = nn.ParameterDict({
        "view": nn.Parameter(memory[10:20]),
        "after": nn.Parameter(memory[20:40].view(4, 5)),
        "transposed": nn.Parameter(torch.randn(3, 5).t()),
        "columns": nn.Parameter(torch.randn(4, 6)[:, 1:3]),
        "expanded": nn.Parameter(torch.ones(1).expand(4)),
        "conjugate": nn.Parameter(torch.randn(3, dtype=torch.complex64).conj()),
        "channels": nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        "empty": nn.Parameter(torch.empty(0, 3)),
        "scalar": nn.Parameter(torch.tensor(2.0)),
    })  # fmt: skip
    loaded = there_and_back(model, tmp_path / "model")
    for name, tensor in model.items():
        assert torch.equal(loaded[name], tensor), name


def test_columns_of_one_matrix_are_two_tensors(tmp_path: Path) -> None:
    memory = torch.randn(4, 6)
    model = nn.ParameterDict({"left": nn.Parameter(memory[:, :3]), "right": nn.Parameter(memory[:, 3:])})
    loaded = there_and_back(model, tmp_path / "model")
    assert torch.equal(torch.cat([loaded["left"], loaded["right"]], 1), memory)


@pytest.mark.parametrize("part", [lambda w: w[:2], lambda w: w.t(), lambda w: w[:, 1:], lambda w: w.view(-1)[3:5]])
def test_tensors_that_share_a_part_of_their_memory_are_refused(part, tmp_path: Path) -> None:
    memory = torch.randn(4, 4)
    model = nn.ParameterDict({"whole": nn.Parameter(memory), "part": nn.Parameter(part(memory))})
    with pytest.raises(BlastError, match=r"'\w+' and '\w+' share a part of their memory"):
        blast.save(model, tmp_path / "model")


def test_tied_tensors_are_tied_again_also_a_parameter_and_a_buffer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[2].register_buffer("seen", model[0].weight.detach())
    loaded = there_and_back(model, tmp_path / "model")
    assert loaded[0].weight is loaded[1].weight
    assert loaded[2].seen.data_ptr() == loaded[0].weight.data_ptr()
    assert_same_state(loaded, model)
