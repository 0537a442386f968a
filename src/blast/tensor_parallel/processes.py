"""The processes that hold the parts of one model: how they meet, what they compare, and what happens if one is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from blast.errors import BlastError, check_argument

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
# How long a process waits for the others, where this module makes the process group.
TIMEOUT = timedelta(minutes=5)
# What `torchrun` tells each process.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Sums of these are added up in float32.
HALVES = (torch.float16, torch.bfloat16)


class LostProcessError(BlastError):
    """Another process ended, or did not answer in time; the cause is in that one."""


@dataclass(frozen=True)
class Processes:
    """The processes that share one model.

    Attributes:
        group: Their process group; None for a single process.
        rank: The number of this process among them, from 0.
        size: How many they are.
    """

    group: dist.ProcessGroup | None
    rank: int
    size: int

    def __deepcopy__(self, _: Any) -> Processes:
        return self  # copies of a model belong to the same processes

    def add_up(self, part: Tensor) -> Tensor:
        """The sum of the parts of all processes, bit by bit the same in each of them.

        Args:
            part: The part of this process. The sum can take its memory. 16-bit parts are added up in float32 and
                rounded once.

        Raises:
            LostProcessError: if another process is lost.
        """
        if self.group is None:
            return part
        total = part.float() if part.dtype in HALVES else part.contiguous()
        if torch.compiler.is_compiling():
            from torch.distributed._functional_collectives import all_reduce

            return all_reduce(total, "sum", self.group).to(part.dtype)
        self._call(lambda: dist.all_reduce(total, group=self.group))
        return total.to(part.dtype)

    def concatenate(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """The parts of all processes one after the other along the last dimension, in each of them.

        Args:
            part: `[..., size of this process]`.
            sizes: The size of each process.

        Raises:
            LostProcessError: if another process is lost.
        """
        if self.group is None:
            return part
        padded = F.pad(part, (0, max(sizes) - part.shape[-1])).contiguous()
        if torch.compiler.is_compiling():
            from torch.distributed._functional_collectives import all_gather_tensor

            found = all_gather_tensor(padded[None], 0, self.group)
        else:
            found = padded.new_empty(self.size, *padded.shape)
            self._call(lambda: dist.all_gather_into_tensor(found, padded[None], group=self.group))
        return torch.cat([each[..., :size] for each, size in zip(found.unbind(), sizes, strict=True)], dim=-1)

    def gather(self, value: Any) -> list[Any]:
        """A small value of each process, in the order of their numbers.

        Raises:
            LostProcessError: if another process is lost.
        """
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.size
        self._call(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def together(self, work: Callable[[], T]) -> T:
        """Runs some work in each process. If it fails in one, all of them raise, so that none waits for another.

        Raises:
            BlastError: the error of this process; else the first of the others, with the number of that process.
        """
        fault: Exception | None = None
        try:
            found = work()
        except Exception as error:  # whatever it is, the others have to know
            fault = error
        text = None if fault is None else str(fault) if isinstance(fault, BlastError) else repr(fault)
        faults = self.gather(text)
        if fault is not None:
            raise fault
        for rank, other in enumerate(faults):
            if other is not None:
                raise BlastError(f"process {rank} of {self.size} failed: {other}")
        return found

    def check_equal(self, value: Any, what: str, remedy: str) -> None:
        """Checks that a value is the same in all processes.

        Args:
            value: A small value, for instance a digest.
            what: What differs if it is not: `different checkpoints were read`.
            remedy: What to do.

        Raises:
            BlastError: in each process, if it differs; the message names one that differs from the first.
        """
        found = self.gather(value)
        other = next((rank for rank, each in enumerate(found) if each != found[0]), None)
        if other is not None:
            raise BlastError(f"{what} by process 0 and process {other} of {self.size}; {remedy}.")

    def share_random_state(self, device: torch.device) -> None:
        """Gives each process the random state of the first one, on the CPU and on the device of the model."""
        gpu = device.type == "cuda"
        own = (torch.get_rng_state(), torch.cuda.get_rng_state(device) if gpu else None)
        first = self.gather(own if self.rank == 0 else None)[0]
        if self.rank:
            torch.set_rng_state(first[0])
            if gpu and first[1] is not None:
                torch.cuda.set_rng_state(first[1], device)

    def _call(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except (RuntimeError, ValueError) as error:  # the backends have errors of their own below these
            # gloo begins with a place in its source, and ends with general advice.
            first = (str(error).splitlines() or [type(error).__name__])[0]
            reason = re.sub(r"^\[\S+:\d+\] ", "", first).partition(". ")[0][:160]
            raise LostProcessError(
                f"process {self.rank} of {self.size} waited for another one that ended or did not answer in time "
                f"({reason}); look at the messages of the others, and start all of them again."
            ) from error


def meet(where: bool | DeviceMesh) -> Processes:
    """The processes that a model is split over.

    Args:
        where: True for all processes; a process group is made if there is none and `torchrun` started this program.
            A mesh of one dimension for those of the mesh.

    Raises:
        BlastError: if this program was not started by `torchrun` and has no process group, there are fewer GPUs than
            processes, or the mesh has several dimensions.
    """
    if not dist.is_available():
        raise BlastError("this torch has no torch.distributed; load the model without tensor_parallel.")
    if where is not True:
        return _of_mesh(where)
    if not dist.is_initialized():
        _start()
    if dist.get_world_size() == 1:
        return Processes(None, 0, 1)
    return Processes(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def own_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    chosen, local = torch.cuda.current_device(), int(os.environ.get("LOCAL_RANK", 0))
    # A program that made the process group itself may not have chosen a GPU.
    return torch.device("cuda", local if chosen == 0 and local < torch.cuda.device_count() else chosen)


def started_by_torchrun() -> bool:
    """Whether `torchrun` started several processes, and this one is among them."""
    return all(name in os.environ for name in TORCHRUN) and os.environ["WORLD_SIZE"] != "1"


def _of_mesh(mesh: Any) -> Processes:
    from torch.distributed.device_mesh import DeviceMesh

    check_argument("tensor_parallel", mesh, DeviceMesh, "True, or a torch.distributed.device_mesh.DeviceMesh")
    if mesh.ndim != 1:
        raise BlastError(
            f"the mesh has {mesh.ndim} dimensions and a model is split over one; give that one, as mesh['name']."
        )
    group = mesh.get_group()
    size = dist.get_world_size(group)
    return Processes(group if size > 1 else None, dist.get_rank(group), size)


def _start() -> None:
    missing: Sequence[str] = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise BlastError(
            "tensor_parallel needs one process for each part of the model, and this is a single one; start the program "
            "with `torchrun --nproc-per-node N`, or call torch.distributed.init_process_group first."
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here, local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])), int(os.environ["LOCAL_RANK"])
    if gpus and gpus < here:
        raise BlastError(
            f"torchrun started {here} processes on this machine, which has {gpus} GPUs, and each process needs one; "
            f"start {gpus} with --nproc-per-node, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on the CPU."
        )
    if gpus:
        torch.cuda.set_device(local)
    # gloo carries what is compared on the CPU, and tells at once if a process is lost.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
