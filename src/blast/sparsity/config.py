"""`SparsifyConfig`: every choice of the method. `METHODS`: the named methods, which are presets of it.

This is our reading of the method: Zhu & Gupta's cubic schedule (arXiv 1710.01878) with RigL's
drop and grow (arXiv 1911.11134), on blocks instead of single weights. This file needs the standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from blast.block_sparse.blocks import BlockShape, as_block
from blast.errors import BlastError, unknown_name
from blast.files import json_digest
from blast.settings import (
    Bounds,
    Count,
    Later,
    ListOrOne,
    Name,
    NotEmpty,
    Place,
    Seed,
    Share,
    Sparsity,
    check_fields,
    plain,
    read,
)


@dataclass(frozen=True)
class Method:
    """A method of pruning: a preset of `SparsifyConfig`, and what else differs between methods.

    Attributes:
        preset: The settings of `SparsifyConfig` that make the method; None for a dense model.
        label: Name in figures and tables.
        description: One sentence about it.
        prunes_parent: Whether it prunes the trained dense model instead of training a model of its own.
        finds_masks: Whether training finds its masks; else they are random, or those of a dense model.
    """

    preset: dict[str, Any] | None
    label: str
    description: str
    prunes_parent: bool = False
    finds_masks: bool = False


METHOD_DETAILS: dict[str, Method] = {
    "blast": Method(
        {"schedule": "cubic", "keep_score": "magnitude", "grow": "union", "grow_score": "gradient"},
        label="BLaST",
        description="The sparsity rises step by step; the best blocks by weight and those by gradient stay.",
        finds_masks=True,
    ),
    "rigl_swap": Method(
        {"schedule": "cubic", "keep_score": "magnitude", "grow": "swap", "grow_score": "gradient"},
        label="swap (RigL)",
        description="As `blast`, but each update drops as many blocks as it grows.",
        finds_masks=True,
    ),
    "gmp": Method(
        {"schedule": "cubic", "keep_score": "magnitude", "grow": "none", "grow_score": "gradient"},
        label="gradual magnitude (GMP)",
        description="The sparsity rises step by step; the best blocks by weight stay, and none grows.",
        finds_masks=True,
    ),
    "random": Method(
        {"schedule": "constant", "keep_score": "random", "grow": "none", "grow_score": "gradient"},
        label="static random",
        description="Random blocks from the start; they stay.",
    ),
    "one_shot": Method(
        {"schedule": "constant", "keep_score": "magnitude", "grow": "none", "grow_score": "gradient"},
        label="one-shot magnitude",
        description="The trained dense model keeps its largest blocks; no training follows.",
        prunes_parent=True,
    ),
    "one_shot_wanda": Method(
        {"schedule": "constant", "keep_score": "wanda", "grow": "none", "grow_score": "gradient"},
        label="one-shot Wanda",
        description="As `one_shot`, but blocks are ranked by weights times activations.",
        prunes_parent=True,
    ),
    "one_shot_obs": Method(
        {"schedule": "constant", "keep_score": "obs", "grow": "none", "grow_score": "gradient"},
        label="one-shot OBS",
        description="As `one_shot`, but the blocks that stay compensate those that go (SparseGPT on blocks).",
        prunes_parent=True,
    ),
    "small_dense": Method(
        None,
        label="small dense",
        description="A dense model with narrower MLPs: as many MLP weights as the sparsity leaves, or the given `ffn`.",
    ),
}
METHODS: dict[str, dict[str, Any]] = {
    name: method.preset for name, method in METHOD_DETAILS.items() if method.preset is not None
}
"""The settings of each named method, for `SparsifyConfig.from_method`.

Example:
    >>> blast.METHODS["rigl_swap"]["grow"]
    'swap'
    >>> blast.SparsifyConfig.from_method("rigl_swap", sparsity=0.9, block=64, steps=1000).grow
    'swap'
"""

PLACE = Place("sparsify setting")
_NUMBERS = (
    "sparsity", "initial_sparsity", "dense_start", "hold", "swap_share", "grow_share", "layer_spread", "break_even",
)  # fmt: skip
Layers = Annotated[int, Bounds(ge=0)]


@dataclass(frozen=True)
class SparsifyConfig:
    """How a model is made block-sparse.

    Attributes:
        sparsity: Final share of empty blocks, in [0, 1).
        block: Side of a square block, or `(b_out, b_in)`.
        steps: Optimization steps of the whole run, T.
        schedule: How the sparsity rises: `cubic`, `linear`, or `constant` (the final sparsity from the start).
        initial_sparsity: Sparsity at step 0, at most `sparsity`; not used by `constant`.
        dense_start: Share of `steps`, at the start, during which the model stays dense; the schedule begins after it.
        hold: Share of `steps`, at the end, during which the mask is fixed.
        update_every: Steps between mask updates.
        keep_score: Ranks live blocks: `magnitude` (Frobenius norm), `second_moment` (each weight times the root of its
            second moment in Adam), or `random` (a fixed random order). `lamp` is the norm in proportion to the larger
            ones of its matrix, so that matrices of any scale compare (arXiv 2010.07611). One-shot pruning also has
            `wanda` (weights times activations) and `obs` (the error of the output that removal costs, and what stays
            compensates it).
        grow: `union` keeps the best blocks by weight and the best by gradient; the achieved sparsity is below the
            target. `swap` drops as many blocks as it grows, so the budget is exact. `none` never grows.
        grow_share: Share of the budget that `union` fills with the best blocks by grow score.
        grow_decay: Whether `grow_share` stays, or falls to zero until the mask is fixed, along a half cosine or a line.
        grow_score: Ranks dead blocks: `gradient` (Frobenius norm of the dense gradient), or `random`. Random growth
            needs no dense gradient: the sparse state computes none. A block that grows at random trains from the next
            step on.
        regrown_state: The state of a block that grows in Adam. `zero`: its moments are zero, and the optimizer takes
            them for old ones. `warm`: it trains as if Adam had started when it grew (SMET, arXiv 2606.00888); needs
            torch's Adam or AdamW.
        regrown_warmup: Optimizer steps that `warm` counts for a block that grows. Its learning rate rises linearly over
            them. After them its moments have no bias, and Adam goes on as with any other block.
        swap_share: Largest share of the budget that one update of `swap` exchanges.
        swap_decay: Whether `swap_share` falls to zero along a half cosine (as in RigL) or stays.
        lr_density_power: The learning rate of the pruned matrices is multiplied by `density ** -power`. The density is
            the achieved share of live blocks. 0 changes nothing; 0.25 multiplies by 2.1 at a sparsity of 0.95.
        ranking: Blocks compete within a `matrix`, a `layer`, or the whole `model`. Matrices of different scales
            compare by the keep score `lamp`; others may starve some of them, which a warning tells.
        layer_spread: Layers with more outliers keep more blocks (OWL). The sparsity of a layer lies within the target
            plus or minus this number, and the mean is the target. Outliers are counted anew at each mask update.
            0 gives all layers the same sparsity.
        dense_first: Layers at the start of the model that are not pruned.
        dense_last: Layers at the end of the model that are not pruned.
        targets: `"mlp"` (with the experts of mixtures), `"attention"`, shell-style patterns of names (`"*.q_proj"`), or
            `"re:"` + a regex.
        tie_gate_up: Whether the gate and up matrices of one MLP share a mask.
        joint_hidden: Whether the keep score of a block is multiplied by the norms of the other matrices of its MLP in
            the same hidden units. So live blocks of gate, up and down meet in the same hidden units.
        permute_hidden: Whether one-shot pruning first permutes the hidden units of each MLP, so that important units
            lie in the same blocks. The function of the model does not change.
        seed: Seed of the random scores.
        execution: How the model runs while it trains; results differ by rounding only. `masked`: dense, with zeros in
            dead blocks. `sparse`: from `break_even` on, only live blocks are stored and computed. `auto`: `sparse` from
            the sparsity at which the GPU is faster with it. `auto` stays masked without a GPU, in
            `DistributedDataParallel`, for matrices outside an MLP, and for an MLP with active dropout.
        break_even: Achieved sparsity from which to run sparse. None: 0 with `sparse`; with `auto` from the GPU's table,
            else from a heuristic.

    Raises:
        BlastError: if a value is out of its range.

    Example:
        >>> config = blast.SparsifyConfig(sparsity=0.9, block=64, steps=1000, grow="swap")
        >>> config.final_step  # the masks are fixed from here on
        800
    """

    sparsity: Sparsity
    block: BlockShape
    steps: Count
    schedule: Literal["cubic", "linear", "constant"] = "cubic"
    initial_sparsity: Sparsity = 0.0
    dense_start: Annotated[Share, Later()] = 0.0
    hold: Share = 0.2
    update_every: Count = 25
    keep_score: Literal["magnitude", "second_moment", "lamp", "random", "wanda", "obs"] = "magnitude"
    grow: Literal["union", "swap", "none"] = "union"
    grow_share: Annotated[Share, Later()] = 1.0
    grow_decay: Annotated[Literal["constant", "cosine", "linear"], Later()] = "constant"
    grow_score: Literal["gradient", "random"] = "gradient"
    regrown_state: Annotated[Literal["zero", "warm"], Later()] = "zero"
    regrown_warmup: Annotated[Count, Later()] = 10
    swap_share: Share = 0.3
    swap_decay: Literal["cosine", "constant"] = "cosine"
    lr_density_power: Annotated[float, Bounds(ge=0, le=1), Later()] = 0.0
    ranking: Literal["matrix", "layer", "model"] = "matrix"
    layer_spread: Annotated[Sparsity, Later()] = 0.0
    dense_first: Layers = 0
    dense_last: Layers = 0
    targets: Annotated[tuple[Name, ...], NotEmpty(), ListOrOne()] = ("mlp",)
    tie_gate_up: bool = False
    joint_hidden: Annotated[bool, Later()] = False
    permute_hidden: Annotated[bool, Later()] = False
    seed: Seed = 0
    execution: Literal["auto", "masked", "sparse"] = "auto"
    break_even: Share | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", as_block(self.block))
        check_fields(self, PLACE.kind)
        # The digest of a config is the same for 0 and 0.0.
        for name in _NUMBERS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.initial_sparsity > self.sparsity:
            raise BlastError(
                f"initial_sparsity {self.initial_sparsity:g} is above the final sparsity {self.sparsity:g}; "
                "give one that is at most as large, since the sparsity only rises."
            )
        if self.dense_start + self.hold > 1:
            raise BlastError(
                f"dense_start {self.dense_start:g} and hold {self.hold:g} together exceed the run; "
                "lower one of them, so that their sum is at most 1."
            )
        if self.dense_start and self.initial_sparsity:
            raise BlastError(
                f"dense_start {self.dense_start:g} keeps the model dense, but initial_sparsity is "
                f"{self.initial_sparsity:g}; set one of them to 0."
            )
        self._check_scores()

    def _check_scores(self) -> None:
        """Refuses switches that change nothing, or that a score or a ranking does not allow."""
        if self.layer_spread and self.ranking == "model":
            raise BlastError(
                f"layer_spread {self.layer_spread:g} spreads the sparsity over the layers, which the ranking 'model' "
                "does already; set layer_spread to 0, or the ranking to 'matrix' or 'layer'."
            )
        if self.layer_spread and self.layer_spread >= 1 - self.sparsity:
            raise BlastError(
                f"layer_spread {self.layer_spread:g} may empty a layer, because the sparsity {self.sparsity:g} keeps "
                f"only {1 - self.sparsity:.3g} of the blocks; give a smaller layer_spread."
            )
        for switch in ("layer_spread", "joint_hidden"):
            if getattr(self, switch) and self.keep_score == "random":
                raise BlastError(f"{switch} needs scores of the weights, and the keep score is 'random'; leave it out.")

    @property
    def calibrated(self) -> bool:
        """Whether the keep score needs activations, which one-shot pruning has and training has not."""
        return self.keep_score in ("wanda", "obs")

    @property
    def grows_by_gradient(self) -> bool:
        """Whether blocks grow by their gradient, which takes the dense gradient; else at random, or never."""
        return self.grow != "none" and self.grow_score == "gradient"

    @property
    def hold_steps(self) -> int:
        """Steps at the end of the run during which the mask is fixed."""
        return round(self.hold * self.steps)

    @property
    def first_step(self) -> int:
        """The step, counted from 0, at which the schedule begins; the model is dense before it."""
        return round(self.dense_start * self.steps)

    @property
    def final_step(self) -> int:
        """The step, counted from 0, that trims the mask to its exact budget and fixes it; the last step at most."""
        return min(max(self.steps - self.hold_steps, self.first_step), self.steps - 1)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SparsifyConfig:
        """A config from plain values, for instance read from JSON.

        Raises:
            BlastError: for an unknown key (the nearest is named), a missing key, or a value out of range.
        """
        return read(cls, settings, PLACE)

    @classmethod
    def from_method(cls, method: str, **settings: Any) -> SparsifyConfig:
        """The config of a named method (see `METHODS`); `settings` complete and override its preset.

        Raises:
            BlastError: for an unknown method or setting, a missing setting, or a value out of range.
        """
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        return cls.from_dict({**METHODS[method], **settings})

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; `from_dict` gives the same config back."""
        values: dict[str, Any] = plain(self)
        return values

    def digest(self) -> str:
        """`sha256:` digest of all fields."""
        return json_digest(self.to_dict(), escaped=True)
