"""`SparsifyCallback`: prunes a model while the Trainer of transformers trains it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from blast.errors import BlastError
from blast.integrations.json_state import from_json, to_json
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

# What accelerate calls the ways of training whose parameters are not those of the model.
REFUSED = {"DEEPSPEED": "DeepSpeed", "FSDP": "FSDP", "MEGATRON_LM": "Megatron-LM", "XLA": "torch_xla"}


class SparsifyCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Makes a model block-sparse while `transformers.Trainer` trains it.

    ```python
    pruning = SparsifyCallback(sparsity=0.9, block=32)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[pruning])
    trainer.train()
    blast.to_sparse(model, pruning.sparsifier.masks)
    blast.save(model, "my-sparse-model")
    ```

    - Gradient accumulation, clipping, gradient checkpointing, mixed precision and `torch_compile` work as without it.
      The gradient is pruned before it is clipped, as in a loop of your own. The logged `grad_norm` is that before
      pruning.
    - The Trainer's checkpoints and `save_model` hold the dense form of the model and its optimizer, with zeros in dead
      blocks: stock tools open them. The masks are in `trainer_state.json`. `resume_from_checkpoint` continues exactly.
    - With `execution="sparse"`, the model is dense while it is saved, and after the training.
    - `load_best_model_at_end` and early stopping compare models with the final masks only, once these are fixed.

    It does not work with DeepSpeed, FSDP, Megatron-LM or XLA. With several processes or GPUs training stays
    masked-dense.

    Args:
        **settings: The settings of `SparsifyConfig`. `steps` is by default the number of steps of the Trainer. `method`
            names a preset (see `blast.METHODS`).

    Raises:
        BlastError: for an unknown setting or a value out of range. `trainer.train()` raises one if the training or the
            checkpoint does not allow pruning.

    Example:
        >>> SparsifyCallback(sparsity=0.9, block=32).config(steps=1000).final_step
        800
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._sparsifier: Sparsifier | None = None
        # The Trainer's `max_grad_norm` while this callback clips in its place.
        self._max_grad_norm: float | None = None
        # Whether the model was made dense to be saved, and the next step makes it sparse again.
        self._paused = False
        # Whether the best model of the Trainer has the final masks.
        self._best_is_final = False
        self.config(steps=1)

    @property
    def sparsifier(self) -> Sparsifier:
        """The `Sparsifier`: its `masks`, `report()`, `sparsity_achieved`.

        Raises:
            BlastError: before the training.
        """
        if self._sparsifier is None:
            raise BlastError("the training has not begun, so there is no sparsifier yet; call trainer.train() first.")
        return self._sparsifier

    def config(self, steps: int) -> SparsifyConfig:
        """The config of a training of so many steps."""
        settings = {"steps": steps, **self._settings}
        method = settings.pop("method", None)
        return SparsifyConfig.from_dict(settings) if method is None else SparsifyConfig.from_method(method, **settings)

    def state(self) -> dict[str, Any]:
        """What the Trainer stores with its checkpoints."""
        saved = None
        if self._sparsifier is not None:
            execution = "sparse" if self._paused else self._sparsifier.execution
            saved = to_json({**self._sparsifier.state_dict(), "execution": execution})
        return {"args": self._settings, "attributes": {"saved": saved}}

    # Events of the Trainer, in the order of a training.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        """Creates the sparsifier, or resumes it from the checkpoint that the Trainer has loaded."""
        model, optimizer = of["model"], of["optimizer"]
        _refuse_wrappers(optimizer)
        self._give_back_clipping(args)
        if self._sparsifier is not None:
            # A second training of the same model.
            self._sparsifier.to_masked()
        self._paused = False
        name = type(self).__name__
        stored = state.stateful_callbacks.setdefault(name, self.state())
        if isinstance(stored, list):
            raise BlastError(f"the Trainer has several callbacks of the class {name}; give it one.")
        config = self._config_for(args, state)
        saved = stored["attributes"].get("saved") if state.global_step else None
        if state.global_step and saved is None:
            raise BlastError(
                "the checkpoint to resume from was not written by a training with this callback; start a new training "
                "from its weights (from_pretrained) instead of resuming."
            )
        self._sparsifier = Sparsifier(model, optimizer, config, state=None if saved is None else from_json(saved))
        self._best_is_final = self._sparsifier.finished

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Goes on in the sparse state, and takes over the clipping, because the Trainer would clip before pruning."""
        if self._paused:
            self.sparsifier.to_sparse()
            self._paused = False
        if self._max_grad_norm is None:
            self._max_grad_norm, args.max_grad_norm = args.max_grad_norm or 0.0, 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any
    ) -> None:
        """Prunes, then clips."""
        self._give_back_clipping(args)
        self.sparsifier.step()
        if args.max_grad_norm and args.max_grad_norm > 0:
            _unscale(of["optimizer"])
            nn.utils.clip_grad_norm_(of["model"].parameters(), args.max_grad_norm)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Makes the model dense if it is saved next; the search for the best model starts anew with the final masks."""
        if self.sparsifier.finished and not self._best_is_final:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
            self._best_is_final = True
        if control.should_save or control.should_training_stop:
            self._pause()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Makes the model dense if it may be saved next because it is the best one."""
        if self._sparsifier is not None and args.save_strategy == "best":
            self._pause()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Checks that the checkpoint is dense."""
        if self.sparsifier.execution == "sparse":
            raise BlastError(
                f"checkpoint-{state.global_step} was saved in the sparse state and cannot be resumed from; put "
                "SparsifyCallback after the callbacks that ask for saving."
            )

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Makes the model dense if it is saved next."""
        if control.should_save or control.should_training_stop:
            self._pause()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        """Makes the model dense after the last step, before the Trainer loads the best model."""
        if self._sparsifier is not None and "train_runtime" in (of.get("logs") or {}):
            self._pause()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Trims the masks to the final sparsity if the training has ended before."""
        self._give_back_clipping(args)
        self._pause()
        self._paused = False
        if self.sparsifier.finished:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            # The weights are those of the best checkpoint, and so must the masks be.
            stored = json.loads((Path(state.best_model_checkpoint) / "trainer_state.json").read_text())
            saved = from_json(stored["stateful_callbacks"][type(self).__name__]["attributes"]["saved"])
            self.sparsifier.load_state_dict({**saved, "execution": "masked"})
        reached = self.sparsifier.sparsity_achieved
        self.sparsifier.finish()
        warnings.warn(
            f"the training stopped at step {state.global_step}, before its masks were final: the weights were pruned "
            f"from sparsity {reached:.3f} to {self.sparsifier.sparsity_achieved:.3f} without further training.",
            stacklevel=2,
        )

    def _config_for(self, args: TrainingArguments, state: TrainerState) -> SparsifyConfig:
        """The config of this training."""
        config = self.config(steps=state.max_steps)
        if config.steps > state.max_steps:
            raise BlastError(
                f"steps is {config.steps}, but the Trainer runs {state.max_steps} steps, so that the masks would not "
                "become final; leave `steps` out, or train longer."
            )
        if args.world_size == 1 and args.n_gpu <= 1:
            return config
        if config.execution == "sparse":
            raise BlastError(
                'execution="sparse" works in one process on one GPU only with the Trainer; set execution="masked", or '
                "write a loop with blast.average_gradients(model)."
            )
        return SparsifyConfig.from_dict({**config.to_dict(), "execution": "masked"})

    def _pause(self) -> None:
        """Makes the model dense until the next step."""
        if self.sparsifier.execution == "sparse":
            self.sparsifier.to_masked()
            self._paused = True

    def _give_back_clipping(self, args: TrainingArguments) -> None:
        if self._max_grad_norm is not None:
            args.max_grad_norm, self._max_grad_norm = self._max_grad_norm, None


def _refuse_wrappers(optimizer: Any) -> None:
    kind = getattr(getattr(optimizer, "accelerator_state", None), "distributed_type", None)
    name = REFUSED.get(getattr(kind, "name", ""))
    if name is not None:
        raise BlastError(
            f"SparsifyCallback does not work with {name}, which trains other parameters than those of the model; use "
            "one process, or DistributedDataParallel."
        )


def _unscale(optimizer: Any) -> None:
    """Unscales the gradients under a gradient scaler, unless the Trainer has done so."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return
    try:
        scaler.unscale_(optimizer.optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
