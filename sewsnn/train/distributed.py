"""Several processes that train one network: started by torchrun, joined here."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sewsnn.errors import ConfigError
from sewsnn.train.meeting import meet


class Processes:
    """The processes of a run. Alone, every method does what it says of one process, and costs nothing.

    ``torchrun`` tells each its place by ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. On CUDA gradients travel by NCCL,
    what the host says to the others by gloo; on the CPU all by gloo.

    Attributes:
        rank, world: this process, and how many there are.
        local_rank: this process among those of its machine: the GPU it takes.
        is_first: whether it is the one that writes files and speaks.
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
                f"WORLD_SIZE - 1), or all be missing; got {given}"
            ) from None
        if self.world == 1:
            return
        if device.startswith("cuda:"):
            raise ConfigError(
                f"train.device must be cuda with {self.world} processes, each takes its own: got {device}"
            )
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            if self.local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"process {self.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                    "torchrun --nproc-per-node must be at most that"
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
            except (ValueError, RuntimeError) as error:  # no MASTER_ADDR, nobody there
                reason = str(error).splitlines()[0]
                raise ConfigError(f"cannot join the other {self.world - 1} process(es): {reason}") from None
            self._joined = True
        self._host = dist.new_group(backend="gloo") if cuda else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model``, its gradients averaged over the processes during backward. Batch-norm statistics stay each
        process's own until :meth:`share_buffers`."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def share_buffers(self, *models: nn.Module) -> None:
        """The first process's buffers (running statistics of BN) become everybody's, as DistributedDataParallel does
        before each step; here only when they are read."""
        if self.world > 1:
            for model in models:
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over processes."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """The least of all: said from host to host, the GPU's queue is not waited for."""
        if self.world == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, dist.ReduceOp.MIN, group=self._host)
        return int(box)

    def any(self, value: bool) -> bool:
        """Whether it is true on one of them; likewise."""
        return not self.least(int(not value))

    def gather(self, value: Any) -> list[Any]:
        """Everybody's, in the order of ranks, on all."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self._host)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's, on all."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self._host)
        return box[0]

    def leave(self, failed: bool = False) -> None:
        """Ends the group this object made. NCCL's end is one that all wait for: after a failure of this process alone
        the others would be waited for in vain, and its error not be seen."""
        if self._joined and not (failed and self._host is not None):
            dist.destroy_process_group()
        self._joined = False
