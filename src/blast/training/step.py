"""One optimization step: forward, backward, pruning, clipping and optimizer; on one GPU also as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blast.distributed import average_gradients, mean_over_ranks_, world_size
from blast.sparsity.sparsifier import Sparsifier
from blast.training.cuda_graphs import GraphMemory

# Graphs of a backward pass: the GPU runs one part while the CPU captures the next.
BACKWARD_PARTS = 4

Check = Callable[[float], Any]


def _unchecked(value: float) -> None:
    """Accepts any number."""


class OptimizationStep:
    """Runs the optimization steps of one model.

    With `graphs`, the GPU work of a step is captured once as CUDA graphs and replayed. Without CUDA graphs, a step of a
    small model is bound by the CPU's launch overhead, and is several times slower. There are graphs for the loss, for
    the gradients, and for the rest of the step.

    - A mask update runs between the graphs of the gradients and the rest.
    - In the sparse state an update replaces parameters; with warm regrown state it adds corrections. The rest of that
      step then runs eagerly, and the next step captures new graphs.
    - The first step in each execution state runs eagerly, so that its code is compiled before the capture.
    - With several processes there are no graphs.

    Args:
        model: In training mode; the sparsifier may replace its parameters.
        optimizer: The optimizer over the model's parameters; `capturable` if `graphs` is set.
        loss_of: Mean loss of a batch.
        clip: Largest norm of the gradient.
        sparsifier: Prunes; None trains dense.
        graphs: Whether to replay CUDA graphs; without effect for a model on a CPU.

    Attributes:
        graphs: Whether steps are replayed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[nn.Module, Any], Tensor],
        clip: float,
        sparsifier: Sparsifier | None = None,
        graphs: bool = False,
    ) -> None:
        self._model, self._optimizer, self._sparsifier = model, optimizer, sparsifier
        self._loss_of, self._clip = loss_of, clip
        device = next(model.parameters()).device
        self.graphs = graphs and device.type == "cuda" and world_size() == 1
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._batch: tuple[Tensor, ...] = ()
        # The execution state whose code is compiled.
        self._compiled: str | None = None
        if self.graphs:
            # One stream for all steps, because gradients accumulate on the stream of their first computation.
            self._stream = torch.cuda.Stream(device)
            self._memory = GraphMemory(self._stream)
            self._rate = torch.zeros((), device=device)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of all groups."""
        if self.graphs:
            # Graphs read the rate from this tensor.
            self._rate.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate if self.graphs else rate

    def run(self, batch: tuple[Tensor, ...], check_loss: Check = _unchecked, check_norm: Check = _unchecked) -> float:
        """Runs a step.

        Args:
            batch: Inputs and targets, on the device of the model, with the same shapes in each step.
            check_loss: Called with the loss. An eager step calls it before it changes anything, a replayed step after
                the replay.
            check_norm: Called with the norm of the gradient, at the same time; before a mask update also with the norm
                over all blocks, dead ones included.

        Returns:
            The loss; with several processes the mean over them, which `check_loss` gets too.
        """
        if not self.graphs:
            return self._run_eager(batch, check_loss, check_norm)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._copy_batch(batch)
            if self._update_due:
                loss = self._run_mask_update(check_loss, check_norm)
            elif self._compiled == self._execution:
                return self._replay_or_capture(check_loss, check_norm)
            else:
                self._compiled = self._execution
                loss = self._run_between_graphs(check_loss, check_norm)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    @property
    def _update_due(self) -> bool:
        return self._sparsifier is not None and self._sparsifier.update_due

    @property
    def _execution(self) -> str:
        return "dense" if self._sparsifier is None else self._sparsifier.execution

    def _run_mask_update(self, check_loss: Check, check_norm: Check) -> float:
        """Runs a step with a mask update."""
        if not self._graphs or not self._sparsifier.cuda_graphs.can_recompute:
            return self._run_between_graphs(check_loss, check_norm)
        *gradients, rest = self._graphs
        for graph in gradients:
            graph.replay()
        if not self._recompute_dense_gradients():
            return self._run_between_graphs(check_loss, check_norm, short=True)
        value = self._loss.item()
        check_loss(value)
        self._check_dense_norm(check_norm)
        kept = self._sparsifier.cuda_graphs.keeps_graphs
        # In the masked-dense state new masks overwrite the old ones in place, so the graphs stay valid.
        self._sparsifier.step()
        if not (kept and self._sparsifier.cuda_graphs.keeps_graphs):
            self._drop_graphs()
            check_norm(self._clip_gradients().item())
            self._optimizer.step()
        else:
            rest.replay()
            self._sparsifier.cuda_graphs.optimizer_replayed()
            check_norm(self._norm.item())
        return value

    def _recompute_dense_gradients(self) -> bool:
        """Computes the dense gradients after the replayed backward pass; false if there is too little memory."""
        try:
            self._sparsifier.cuda_graphs.recompute_dense_gradients()
        except torch.OutOfMemoryError:
            # The caller handles it, because until here the error keeps the new tensors alive.
            return False
        return True

    def _run_between_graphs(self, check_loss: Check, check_norm: Check, short: bool = False) -> float:
        """Runs an eager step between replayed ones; `short` if the memory of the graphs is needed."""
        self._drop_graphs()
        self._memory.release(short)
        return self._run_eager(self._batch, check_loss, check_norm)

    def _drop_graphs(self) -> None:
        """Drops the graphs and the retained activations."""
        self._graphs = []
        if self._sparsifier is not None:
            self._sparsifier.cuda_graphs.retain_activations(False)

    def _run_eager(self, batch: tuple[Tensor, ...], check_loss: Check, check_norm: Check) -> float:
        loss = self._loss_of(self._model, batch)
        # The mean over all processes, so that all of them stop at the same step.
        value = mean_over_ranks_(loss.detach().clone()).item()
        check_loss(value)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self._model)
        if self._update_due:
            self._check_dense_norm(check_norm)
        check_norm(self._prune_and_clip().item())
        self._optimizer.step()
        return value

    def _check_dense_norm(self, check_norm: Check) -> None:
        """Checks the norm over all blocks before a mask update, because the gradient decides the masks."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        check_norm(nn.utils.get_total_norm(gradients).item())

    def _prune_and_clip(self) -> Tensor:
        """Runs the work between backward pass and optimizer; returns the norm of the gradient."""
        if self._sparsifier is not None:
            self._sparsifier.step()
        return self._clip_gradients()

    def _clip_gradients(self) -> Tensor:
        """Clips the gradient; returns the norm before."""
        return nn.utils.clip_grad_norm_(self._parameters, self._clip)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        # From the optimizer, because a walk over all modules of a model takes the CPU longer.
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _replay_or_capture(self, check_loss: Check, check_norm: Check) -> float:
        if not self._graphs:
            self._capture()
        else:
            if self._sparsifier is not None:
                self._sparsifier.cuda_graphs.count_replayed_step()
            for graph in self._graphs:
                graph.replay()
        value, norm = torch.stack((self._loss.float(), self._norm.float())).tolist()
        check_loss(value)
        check_norm(norm)
        return value

    def _copy_batch(self, batch: tuple[Tensor, ...]) -> None:
        """Copies a batch to the tensors that every step reads, eager or captured.

        Tensors with other strides in the capture than in the eager step would need a recompilation, which is not
        possible during a capture.
        """
        if not self._batch:
            self._batch = tuple(value.clone(memory_format=torch.contiguous_format) for value in batch)
        else:
            for place, value in zip(self._batch, batch, strict=True):
                place.copy_(value)

    def _capture(self) -> None:
        """Captures and replays a whole step of the batch; the sparsifier counts it."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._sparsifier is not None:
            self._sparsifier.cuda_graphs.retain_activations()

        def forward() -> None:
            self._loss = self._loss_of(self._model, self._batch)

        def backward() -> None:
            marks = [p.register_post_accumulate_grad_hook(lambda _: self._memory.split()) for p in self._part_ends()]
            # In this thread: launches from another thread take the CPU a sixth longer.
            try:
                with torch.autograd.set_multithreading_enabled(False):
                    self._loss.backward()
            finally:
                for mark in marks:
                    mark.remove()
            # Without its autograd history, which is used up.
            self._loss = self._loss.detach()

        def rest() -> None:
            self._norm = self._prune_and_clip()
            self._optimizer.step()

        self._graphs = self._memory.capture(forward, backward, rest)

    def _part_ends(self) -> list[nn.Parameter]:
        """Parameters whose gradients end a part of the backward pass; the parts have about equal numbers of them."""
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        return [
            trained[at] for at in sorted({len(trained) * part // BACKWARD_PARTS for part in range(1, BACKWARD_PARTS)})
        ]
