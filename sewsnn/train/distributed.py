"""Training with several processes that torchrun starts: they join a process group here."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sewsnn.errors import ConfigError
from sewsnn.train.meeting import meet


class Processes:
    """The process group of a run. With a single process every method is a no-op.

    ``torchrun`` gives each process its place in ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. On CUDA, NCCL transfers
    gradients and gloo transfers messages between hosts. On the CPU, gloo transfers both.

    Args:
        device: ``train.device`` of the configuration.
        timeout_minutes: minutes to wait for the other processes (default 30).

    Attributes:
        rank: index of this process, 0 to ``world - 1``.
        world: number of processes.
        local_rank: index of this process on its machine, and of the GPU that it uses.
        is_first: whether this is rank 0, which writes files and prints.

    Raises:
        ConfigError: the environment variables are invalid, the machine has too few GPUs, or the other processes cannot
            be reached.
    """

    def __init__(self, device: str, timeout_minutes: float = 30):
        numbers = {name: os.environ.get(name) or None for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        self.rank, self.world, self.local_rank = 0, 1, 0
        self._host = None
        self._joined = False
        if all(value is None for value in numbers.values()):
            return
        try:
            self.rank, self.world = int(numbers["RANK"]), int(numbers["WORLD_SIZE"])
            self.local_rank = int(numbers["LOCAL_RANK"] or 0)
            if not (0 <= self.rank < self.world and self.local_rank >= 0):
                raise ValueError
        except (TypeError, ValueError):
            given = ", ".join(f"{name}={value and value[:40]}" for name, value in numbers.items())
            raise ConfigError(
                "RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them (RANK from 0 to "
                f"WORLD_SIZE - 1), or all be unset; got {given}"
            ) from None
        if self.world == 1:
            return
        if device.startswith("cuda:"):
            raise ConfigError(
                f"train.device must be cuda with {self.world} processes, so that each takes its own GPU; got {device}"
            )
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            if self.local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"process {self.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                    "torchrun --nproc-per-node must not exceed that number"
                )
            torch.cuda.set_device(self.local_rank)
        if not dist.is_initialized():
            try:
                timeout = timedelta(minutes=timeout_minutes)
                dist.init_process_group(
                    "nccl" if cuda else "gloo",
                    store=meet(timeout),
                    rank=self.rank,
                    world_size=self.world,
                    timeout=timeout,
                )
            except (ValueError, RuntimeError) as error:  # MASTER_ADDR is missing, or nothing answers
                reason = str(error).splitlines()[0]
                raise ConfigError(f"cannot join the other {self.world - 1} process(es): {reason}") from None
            self._joined = True
        self._host = dist.new_group(backend="gloo") if cuda else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wraps ``model`` so that backward averages its gradients over the processes. The batch-norm statistics stay
        local to each process until :meth:`share_buffers`."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def share_buffers(self, *models: nn.Module) -> None:
        """Copies the buffers of rank 0 (running statistics of batch norm) to all processes. DistributedDataParallel
        does this before each step; here it happens only before the buffers are read."""
        if self.world > 1:
            for model in models:
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum over all processes, on all of them."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """Returns the minimum over all processes. The hosts exchange it, without waiting for the queue of the GPU."""
        if self.world == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, dist.ReduceOp.MIN, group=self._host)
        return int(box)

    def any(self, value: bool) -> bool:
        """Returns whether the value is true on any process, likewise without waiting for the GPU."""
        return not self.least(int(not value))

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes in the order of ranks, on all of them."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self._host)
        return values

    def from_first(self, value: Any) -> Any:
        """Returns the value of rank 0 on all processes."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self._host)
        return box[0]

    def leave(self, failed: bool = False) -> None:
        """Ends the process group that this object created. NCCL ends a group collectively: if only this process failed
        (``failed=True``), it would wait for the others forever and its error would not be seen, so the group is not
        ended."""
        if self._joined and not (failed and self._host is not None):
            dist.destroy_process_group()
        self._joined = False
