"""Each model family goes there and back: pruned, sparse, fused, saved, loaded, dense. `families.txt` says what happens.

python tests/model/test_model_families.py    # writes tests/model/families.txt again: read its diff
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

TABLE = Path(__file__).with_name("families.txt")
sys.path.insert(0, str(TABLE.parents[1] / "support"))

from model_families import CAUSAL, FAMILIES, NOT_TRIED, build, output  # noqa: E402  (a module of tests/support)

import blast  # noqa: E402
from blast.errors import BlastError  # noqa: E402
from blast.layers.sparse_mlp import SparseMlp  # noqa: E402
from blast.model.discovery import find_mlps, match_matrices  # noqa: E402

# A Sparsifier warns of what stays dense, in many of these families.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the MLP weights of this model stay dense")

# One family for each structure of an MLP; the others are slow only together.
QUICK = [
    "llama",  # gate, up, down
    "gpt2",  # Conv1D
    "bert",  # intermediate.dense, output.dense
    "bloom",  # a residual as second argument
    "opt",  # children of the layer itself
    "phi3",  # gate and up in one matrix
    "mixtral",  # experts in one tensor
    "ctrl",  # a Sequential
    "albert, shared layers",
    "t5, gated",
    "torchvision ViT",
    "torchvision Swin V2",
]
# Largest ‖sparse − dense‖ / ‖dense‖ in float32: the same products, summed in another order, through two layers.
SAME = 2e-5


def read_table() -> dict[str, str]:
    lines = TABLE.read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def difference(out: Tensor, expected: Tensor) -> float:
    out, expected = out.detach().double(), expected.detach().double()
    return ((out - expected).norm() / expected.norm()).item()


def gradients(family: str, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of the parameters that a dense and a sparse model share."""
    model.zero_grad()
    out = output(family, model)
    out.float().square().mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def train(family: str, model: nn.Module) -> dict[str, Tensor]:
    """Two steps with a Sparsifier: one updates the masks, one fixes them."""
    settings = {"sparsity": 0.5, "initial_sparsity": 0.25, "hold": 0.5, "steps": 2, "update_every": 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(block=8, **settings))
    for _ in range(2):
        optimizer.zero_grad()
        output(family, model).float().square().mean().backward()
        sparsifier.step()
        optimizer.step()
    optimizer.zero_grad()
    return sparsifier.masks


def agree(family: str, model: nn.Module, expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Checks outputs, with and without gradients, and gradients against those of the dense model."""
    with torch.no_grad():
        assert difference(output(family, model), expected[0]) <= SAME
    out, grads = gradients(family, model)
    assert difference(out, expected[0]) <= SAME
    names = expected[1].keys() & grads.keys()
    assert len(names) >= len(expected[1]) - sum(isinstance(layer, blast.BlockLinear) for layer in model.modules())
    scale = max(grad.norm() for grad in expected[1].values())
    for name in names:
        assert (grads[name] - expected[1][name]).norm() <= 10 * SAME * scale, name


def depends_on_its_mlps(family: str, dense: nn.Module) -> bool:
    """Whether the output follows the pruned matrices, so that an error in them would be seen."""
    outputs = []
    with torch.no_grad():
        for factor in (2, 0.5):
            for target in match_matrices(dense):
                target.weight.mul_(factor)
            outputs.append(output(family, dense))
    return difference(*outputs) > 50 * SAME


def fused_and_back(family: str, sparse: nn.Module, expected: tuple[Tensor, dict[str, Tensor]], mlps: int) -> str:
    """Fuses a sparse model, compares it, unfuses it, and says how many MLPs were fused, or why none was."""
    try:
        blast.fuse(sparse)
    except BlastError as error:
        return f"not fused: {without_names(error)}"
    agree(family, sparse, expected)
    count = sum(isinstance(module, SparseMlp) for module in sparse.modules())
    blast.unfuse(sparse)
    return f"{count} of {mlps} fused"


def journey(family: str, folder: Path) -> str:
    """Takes a family there and back, and says what was found, what was fused, and how it loads."""
    model = build(family)
    try:
        targets = match_matrices(model)
    except BlastError as error:
        return f"refused: {without_names(error)}"
    try:
        masks = train(family, model)
    except BlastError as error:
        return f"{roles(targets)}; refused: {without_names(error)}"
    model.eval()
    dense, expected = model, gradients(family, model)
    assert expected[0].isfinite().all()
    # Some models hold tensors that cannot be copied (the state of a recurrence, a normalised weight).
    sparse = build(family)
    sparse.load_state_dict(dense.state_dict())
    assert depends_on_its_mlps(family, dense)
    try:
        blast.to_sparse(sparse, masks)
    except BlastError as error:
        return f"{roles(targets)}; trains, not sparse: {without_names(error)}"
    agree(family, sparse, expected)
    fusing = fused_and_back(family, sparse, expected, len(find_mlps(dense)))

    blast.save(sparse, folder)
    try:
        loaded, loading = blast.load(folder), "loads"
    except BlastError:
        loaded, loading = blast.load(folder, model=build(family)), "loads with model="
    with torch.no_grad():
        assert torch.equal(output(family, loaded), output(family, sparse))
        again = blast.to_dense(loaded)
        assert [type(m).__name__ for m in again.modules()] == [type(m).__name__ for m in dense.modules()]
        assert difference(output(family, again), expected[0]) <= SAME
    for name, tensor in dense.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    return f"{roles(targets)}; {fusing}; {loading}"


def roles(targets: Sequence) -> str:
    count = Counter(target.role for target in targets)
    return ", ".join(f"{number} {role}" for role, number in count.items())


def without_names(error: BlastError) -> str:
    """The first line of a message up to its remedy."""
    return " ".join(str(error).split(";")[0].split())


def found(family: str, folder: Path) -> str:
    return f"not tried: {NOT_TRIED[family]}" if family in NOT_TRIED else journey(family, folder)


def check(family: str, folder: Path) -> None:
    table = read_table()
    assert family in table, f"{family} is a new family: run `python tests/model/{Path(__file__).name}`"
    assert found(family, folder) == table[family]


@pytest.mark.parametrize("family", QUICK)
def test_a_family_goes_there_and_back(family, tmp_path):
    check(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in {*QUICK, *NOT_TRIED}])
def test_each_other_family_goes_there_and_back(family, tmp_path):
    check(family, tmp_path)


def test_the_table_holds_every_causal_language_model_of_transformers():
    """It fails for a version of transformers with new families: try them, or say in NOT_TRIED why not."""
    table = read_table()
    assert not [family for family in CAUSAL if family not in table]
    assert {family for family, row in table.items() if row.startswith("not tried")} == set(NOT_TRIED)


if __name__ == "__main__":
    rows = []
    for name in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            try:
                row = found(name, Path(place) / "saved")
            except Exception as fault:
                row = f"FAILS: {type(fault).__name__} {' '.join(str(fault).split())[:300]}"
        rows.append(f"{name}: {row}\n")
        if sys.argv[1:] or "FAILS" in row:
            print(rows[-1], end="", flush=True)
    if not sys.argv[1:]:
        TABLE.write_text("".join(rows))
