"""Every choice of the method as one frozen set of switches, and the named methods as presets of it.

What the switches do is our reading of the method: Zhu & Gupta's cubic schedule (arXiv 1710.01878) with RigL's
drop and grow (arXiv 1911.11134), on blocks instead of single weights. This file needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from blast.block_sparse.blocks import BlockShape, as_block
from blast.errors import BlastError, unknown_name
from blast.files import json_digest

CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": ("cubic", "linear", "constant"),
    "keep_score": ("magnitude", "random"),
    "grow": ("union", "swap", "none"),
    "grow_score": ("gradient", "random"),
    "swap_decay": ("cosine", "constant"),
    "ranking": ("matrix", "layer", "model"),
    "execution": ("auto", "masked", "sparse"),
}

METHODS: dict[str, dict[str, Any]] = {
    "blast": {"schedule": "cubic", "keep_score": "magnitude", "grow": "union", "grow_score": "gradient"},
    "rigl_swap": {"schedule": "cubic", "keep_score": "magnitude", "grow": "swap", "grow_score": "gradient"},
    "one_shot": {"schedule": "constant", "keep_score": "magnitude", "grow": "none", "grow_score": "gradient"},
    "random": {"schedule": "constant", "keep_score": "random", "grow": "none", "grow_score": "gradient"},
}


@dataclass(frozen=True)
class SparsifyConfig:
    """How a model is made block-sparse.

    Attributes:
        sparsity: Final share of blocks that are empty, in [0, 1).
        block: Side of a square block, or `(b_out, b_in)`.
        steps: Optimisation steps of the whole run, T.
        schedule: How the sparsity rises: `cubic`, `linear`, or `constant` (the final sparsity from the start).
        initial_sparsity: Sparsity at step 0, at most `sparsity`; unused by `constant`.
        hold: Share of `steps`, at the end, during which the mask is fixed.
        update_every: Steps between mask updates.
        keep_score: What live blocks are ranked by: `magnitude` (Frobenius norm) or `random` (a fixed random order).
        grow: `union` keeps the best blocks by weight and those by gradient (achieved sparsity below the target);
            `swap` drops as many blocks as it grows (exact budget); `none` never grows.
        grow_score: What dead blocks are ranked by: `gradient` (Frobenius norm of the dense gradient) or `random`.
        swap_share: Most of the budget that one update of `swap` may exchange.
        swap_decay: Whether `swap_share` falls to zero along a half cosine (as in RigL) or stays.
        ranking: Blocks compete within a `matrix`, a `layer`, or the whole `model`.
        dense_first: Layers at the start of the model that are not pruned.
        dense_last: Layers at its end that are not pruned.
        targets: `"mlp"`, `"attention"`, shell-style patterns of module names (`"*.q_proj"`), or `"re:"` + a regex.
        tie_gate_up: Whether the gate and up matrices of one MLP share a mask.
        seed: Seed of the random scores.
        execution: How the model runs while it trains; the result is the same but for rounding. `masked`: dense, with
            zeros in dead blocks. `sparse`: only live blocks are held, trained and computed with, from `break_even`
            on. `auto`: the same, from where the GPU is faster so (see `sparsity.break_even`); masked without a GPU, in
            `DistributedDataParallel`, and where a matrix is outside an MLP or its MLP has active dropout.
        break_even: Achieved sparsity from which to run sparse. None: 0 with `sparse`, measured or judged with `auto`.

    Raises:
        BlastError: if a value is out of its range.
    """

    sparsity: float
    block: BlockShape
    steps: int
    schedule: str = "cubic"
    initial_sparsity: float = 0.0
    hold: float = 0.2
    update_every: int = 25
    keep_score: str = "magnitude"
    grow: str = "union"
    grow_score: str = "gradient"
    swap_share: float = 0.3
    swap_decay: str = "cosine"
    ranking: str = "matrix"
    dense_first: int = 0
    dense_last: int = 0
    targets: tuple[str, ...] = ("mlp",)
    tie_gate_up: bool = False
    seed: int = 0
    execution: str = "auto"
    break_even: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", as_block(self.block))
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, (list, tuple)) or not targets or not all(isinstance(t, str) and t for t in targets):
            raise BlastError(f"targets is {self.targets!r}; give 'mlp', 'attention' or patterns of module names.")
        object.__setattr__(self, "targets", tuple(targets))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_name(name, str(getattr(self, name)), choices)
        for name, least in (("steps", 1), ("update_every", 1), ("dense_first", 0), ("dense_last", 0), ("seed", 0)):
            self._check_count(name, least)
        if not isinstance(self.tie_gate_up, bool):
            raise BlastError(f"tie_gate_up is {self.tie_gate_up!r}; give true or false.")
        for name in ("sparsity", "initial_sparsity"):
            value = self._check_number(name)
            if not 0 <= value < 1:
                raise BlastError(f"{name} is {value:g}; give a share of empty blocks from 0 up to but not including 1.")
        for name in ("hold", "swap_share", *(["break_even"] if self.break_even is not None else [])):
            value = self._check_number(name)
            if not 0 <= value <= 1:
                raise BlastError(f"{name} is {value:g}; give a share between 0 and 1.")
        if self.initial_sparsity > self.sparsity:
            raise BlastError(
                f"initial_sparsity {self.initial_sparsity:g} is above the final sparsity {self.sparsity:g}; "
                "give one that is at most as large, since the sparsity only rises."
            )

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BlastError(f"{name} is {value!r}; give a whole number of at least {least}.")

    def _check_number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise BlastError(f"{name} is {value!r}; give a number.")
        object.__setattr__(self, name, float(value))
        return float(value)

    @property
    def hold_steps(self) -> int:
        """Steps at the end of the run during which the mask is fixed."""
        return round(self.hold * self.steps)

    @property
    def final_step(self) -> int:
        """The step (counted from 0) at which the mask is trimmed to its exact budget and fixed: the last at most."""
        return min(self.steps - self.hold_steps, self.steps - 1)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SparsifyConfig:
        """A config from plain values, for instance read from JSON.

        Raises:
            BlastError: for an unknown key (the nearest is named), a missing key, or a value out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in settings:
            if key not in fields:
                raise unknown_name("sparsify setting", str(key), fields)
        missing = [n for n, field in fields.items() if field.default is dataclasses.MISSING and n not in settings]
        if missing:
            raise BlastError(f"the sparsify settings lack {', '.join(missing)}; add what is missing.")
        return cls(**settings)

    @classmethod
    def from_method(cls, method: str, **settings: Any) -> SparsifyConfig:
        """The config of a named method (see `METHODS`), completed and overridden by `settings`."""
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        return cls.from_dict({**METHODS[method], **settings})

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; `from_dict` gives the same config back."""
        return {**dataclasses.asdict(self), "block": list(self.block), "targets": list(self.targets)}

    def digest(self) -> str:
        """`sha256:` digest of all fields."""
        return json_digest(self.to_dict(), escaped=True)
