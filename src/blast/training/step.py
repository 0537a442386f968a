"""One optimisation step: forward, backward, pruning, clipping and optimizer; on a GPU, if asked, as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blast.distributed import average_gradients, mean_over_ranks_, world_size
from blast.sparsity.sparsifier import Sparsifier
from blast.training.cuda_graphs import GraphMemory

# Graphs of a backward pass: the GPU runs one part of it while the host captures the next.
BACKWARD_PARTS = 4

Check = Callable[[float], Any]


def _unchecked(value: float) -> None:
    """Takes any number."""


class OptimizationStep:
    """Makes optimisation steps of one model, one after the other.

    With `graphs` the work of a step on the GPU is captured once and replayed, so that launching it costs the processor
    nothing: small models are several times faster. There are graphs for the loss, the gradients and what follows, and
    before the last one masks are updated. In the sparse state an update brings other parameters: what follows is
    launched by itself then, and the next step is captured anew. The first step of an execution is launched too, so that
    code is compiled before it is captured. In several processes there are no graphs.

    Attributes:
        graphs: Whether steps are replayed.

    Args:
        model: In training mode; its parameters may be replaced by the sparsifier.
        optimizer: Holds the model's parameters; for graphs it has to be `capturable`.
        loss_of: Mean loss of a batch.
        clip: Largest norm of the gradient.
        sparsifier: Prunes; None trains dense.
        graphs: Whether to replay CUDA graphs; nothing is captured for a model on a CPU.
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
        # The execution whose code has been compiled.
        self._compiled: str | None = None
        if self.graphs:
            # All steps on one stream: gradients are added up on the stream that they were first made on.
            self._stream = torch.cuda.Stream(device)
            self._memory = GraphMemory(self._stream)
            self._rate = torch.zeros((), device=device)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of all groups."""
        if self.graphs:
            # A graph reads it from this place.
            self._rate.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate if self.graphs else rate

    def run(self, batch: tuple[Tensor, ...], check_loss: Check = _unchecked, check_norm: Check = _unchecked) -> float:
        """Makes a step.

        Args:
            batch: Inputs and targets, on the device of the model, of the same shape in each step.
            check_loss: Takes the loss. In a step by itself before anything is changed; a replay is over by then.
            check_norm: Takes the norm of the gradient, likewise; before a mask update that of all blocks.

        Returns:
            The loss; in several processes the mean of theirs, which `check_loss` takes too.
        """
        if not self.graphs:
            return self._alone(batch, check_loss, check_norm)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._bring(batch)
            if self._update_due:
                loss = self._updated(check_loss, check_norm)
            elif self._compiled == self._execution:
                return self._replayed(check_loss, check_norm)
            else:
                self._compiled = self._execution
                loss = self._launched(check_loss, check_norm)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    @property
    def _update_due(self) -> bool:
        return self._sparsifier is not None and self._sparsifier.update_due

    @property
    def _execution(self) -> str:
        return "dense" if self._sparsifier is None else self._sparsifier.execution

    def _updated(self, check_loss: Check, check_norm: Check) -> float:
        """A step with a mask update."""
        if not self._graphs or not self._sparsifier.cuda_graphs.can_recompute:
            return self._launched(check_loss, check_norm)
        *gradients, rest = self._graphs
        for graph in gradients:
            graph.replay()
        if not self._recalled():
            return self._launched(check_loss, check_norm, short=True)
        value = self._loss.item()
        check_loss(value)
        self._check_all_blocks(check_norm)
        before = self._execution
        # Masked-dense, new masks lie where the old ones did, so that the graphs go on with them.
        self._sparsifier.step()
        if "sparse" in (before, self._execution):
            self._drop()
            check_norm(self._clipped().item())
            self._optimizer.step()
        else:
            rest.replay()
            self._sparsifier.cuda_graphs.optimizer_replayed()
            check_norm(self._norm.item())
        return value

    def _recalled(self) -> bool:
        """Has the gradients made that blocks grow by, on the host while the GPU replays; false if memory is short."""
        try:
            self._sparsifier.cuda_graphs.recompute_dense_gradients()
        except torch.OutOfMemoryError:
            # Handled by the caller: up to here the error holds what was made already.
            return False
        return True

    def _launched(self, check_loss: Check, check_norm: Check, short: bool = False) -> float:
        """A step by itself between steps that are replayed; `short` of memory, which their graphs held."""
        self._drop()
        self._memory.give_way(short)
        return self._alone(self._batch, check_loss, check_norm)

    def _drop(self) -> None:
        """Gives the graphs up."""
        self._graphs = []
        if self._sparsifier is not None:
            self._sparsifier.cuda_graphs.retain_activations(False)

    def _alone(self, batch: tuple[Tensor, ...], check_loss: Check, check_norm: Check) -> float:
        loss = self._loss_of(self._model, batch)
        # Of all processes, so that all of them stop at the same one.
        value = mean_over_ranks_(loss.detach().clone()).item()
        check_loss(value)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self._model)
        if self._update_due:
            self._check_all_blocks(check_norm)
        check_norm(self._rest().item())
        self._optimizer.step()
        return value

    def _check_all_blocks(self, check_norm: Check) -> None:
        """Has the norm of the gradient checked before a mask update: masks are chosen by it."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        check_norm(nn.utils.get_total_norm(gradients).item())

    def _rest(self) -> Tensor:
        """What lies between backward pass and optimizer; the norm of the gradient."""
        if self._sparsifier is not None:
            self._sparsifier.step()
        return self._clipped()

    def _clipped(self) -> Tensor:
        """Clips the gradient; gives the norm that it had."""
        return nn.utils.clip_grad_norm_(self._parameters, self._clip)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        # Of the optimizer: to go through all modules of a model takes the host longer.
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _replayed(self, check_loss: Check, check_norm: Check) -> float:
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

    def _bring(self, batch: tuple[Tensor, ...]) -> None:
        """Puts a batch where all steps read it, captured or launched.

        A capture of tensors with other strides than those of the launched step would be compiled anew, which a capture
        cannot be.
        """
        if not self._batch:
            self._batch = tuple(value.clone(memory_format=torch.contiguous_format) for value in batch)
        else:
            for place, value in zip(self._batch, batch, strict=True):
                place.copy_(value)

    def _capture(self) -> None:
        """Captures and replays a step of the batch, which the sparsifier counts; nothing of it has been done yet."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._sparsifier is not None:
            self._sparsifier.cuda_graphs.retain_activations()

        def forward() -> None:
            self._loss = self._loss_of(self._model, self._batch)

        def backward() -> None:
            marks = [p.register_post_accumulate_grad_hook(lambda _: self._memory.cut()) for p in self._part_ends()]
            # By this thread: to have another one launch it takes the host a sixth longer.
            try:
                with torch.autograd.set_multithreading_enabled(False):
                    self._loss.backward()
            finally:
                for mark in marks:
                    mark.remove()
            # Without its history, which the graphs have been through.
            self._loss = self._loss.detach()

        def rest() -> None:
            self._norm = self._rest()
            self._optimizer.step()

        self._graphs = self._memory.captured(forward, backward, rest)

    def _part_ends(self) -> list[nn.Parameter]:
        """Parameters whose gradients end a part of the backward pass: about as many lie between any two of them."""
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        return [
            trained[at] for at in sorted({len(trained) * part // BACKWARD_PARTS for part in range(1, BACKWARD_PARTS)})
        ]
