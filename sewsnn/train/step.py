"""One training step: forward, loss, backward and optimizer."""

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sewsnn.analysis.monitor import Monitor
from sewsnn.data import random_temporal_delete
from sewsnn.data.source import seed_of
from sewsnn.errors import UserError, out_of_memory
from sewsnn.train import graph
from sewsnn.train.average import Average
from sewsnn.train.distributed import Processes
from sewsnn.train.losses import Loss, mix
from sewsnn.train.nonfinite import NonFinite, bad_entries, find
from sewsnn.train.schema import Config
from sewsnn.train.sums import NEVER, Sums

_RTD, _MIX = -1, -2  # places for random numbers that no epoch uses
_LEAST_SCALE = 2.0**-24


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Returns the autocast context for ``off``, ``bf16`` or ``fp16``."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


class Step:
    """Forward, loss and backward of a batch, and the optimizer step after every ``train.accumulate`` batches.

    Only :meth:`check` and :meth:`check_weights` wait for the GPU. A step with an infinite or NaN loss or gradient does
    not change the weights: the GradScaler skips it; its scale is 1 except in fp16.

    Args:
        config: the configuration of the run.
        model: the network. It is wrapped and compiled here and keeps its parameters.
        optimizer: the optimizer of its parameters.
        processes: the process group, over which gradients are averaged.
        classes: the number of classes.

    Attributes:
        scaler: scales the loss in fp16 (Micikevicius et al., ICLR 2018).
        average: the moving average of the weights, or None.
        monitor: sums the firing rates and gradient norms of the blocks (``train.monitor``), or None.
    """

    def __init__(
        self, config: Config, model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes, classes: int
    ):
        self.config, self.model, self.optimizer = config, model, optimizer
        self.processes, self.classes = processes, classes
        self.device = next(model.parameters()).device
        self.loss = Loss(config.loss)
        settings = config.train
        scale = {} if settings.amp == "fp16" else {"init_scale": 1.0, "growth_interval": 2**31 - 1}
        self.scaler = torch.amp.GradScaler(self.device.type, **scale)
        self.average = Average(model, settings.ema) if settings.ema else None
        self._wrapped = processes.wrap(model, self.device)
        self._network = self._wrapped
        if settings.compile != "off":
            self._network = torch.compile(self._wrapped, mode=settings.compile)
        self._graphs = settings.compile in ("reduce-overhead", "max-autotune")
        # Autograd stores a first gradient without a copy, and the replay of a CUDA graph for the next batch would
        # overwrite that memory. Autograd adds to a gradient that already exists.
        self._keeps_gradients = (self._graphs or settings.cuda_graph) and settings.accumulate > 1
        if self._keeps_gradients and self._graphs:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.monitor: Monitor | None = None
        if settings.monitor:
            self.monitor = Monitor(model)
            self._one = torch.ones((), device=self.device)
        self.graphed: graph.GraphedStep | None = None
        if recorder := graph.recorder(config, self.device, processes.world):
            self.graphed = graph.GraphedStep(self._train, model, self.average, optimizer, self.scaler, recorder)

    def run(self, x: Tensor, y: Tensor, epoch: int, step: int, group: int, last: bool, sums: Sums) -> None:
        """Trains on one batch and adds its results to ``sums``.

        Args:
            x: the samples.
            y: their labels.
            epoch: index of the epoch.
            step: index of the step in the epoch. Random temporal delete and mixing depend only on the seed, ``epoch``,
                ``step`` and (mixing) the rank.
            group: number of batches that share an optimizer step with this one.
            last: whether this batch is the last of them.
            sums: the sums of the epoch.

        Raises:
            UserError: memory ran out; the message suggests settings that need less.
        """
        if self.config.data.T_train:
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, _RTD, epoch, step))
            x = random_temporal_delete(x, self.config.data.T_train, generator=generator)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # the next replay may overwrite the outputs of the last one
        target = y
        if self.config.loss.mixup or self.config.loss.cutmix:
            seed = seed_of(self.config.seed, _MIX, epoch, step, self.processes.rank)
            x, target = mix(x, y, self.classes, self.config.loss, seed)
        first = last and self.average is not None and self.average.is_new()
        try:
            if self.graphed is None:
                self._train(x, target, y, step, group, last, first, sums)
            else:
                self.graphed.run((x, target, y), step, (group, last, first), sums)
        except (RuntimeError, MemoryError) as error:
            if reason := out_of_memory(error):
                raise UserError(
                    f"epoch {epoch + 1}, step {step + 1}: out of memory on {self.device} ({reason}). To use less, set "
                    "a smaller data.batch_size with a larger train.accumulate, train.amp or model.pack_spikes"
                ) from None
            # Batch norm on the CPU raises for statistics that are not finite.
            if "finite" in str(error):
                self.explain(epoch, step, "a batch statistic", lambda _: (x, target), largest=2.0**63)
            raise
        sums.steps = step + 1
        if last and self.average is not None:
            self.average.n_averaged += 1

    def _train(
        self, x: Tensor, target: Tensor, y: Tensor, step: int | Tensor, group: int, last: bool, first: bool, sums: Sums
    ) -> None:
        """Does all of a step that a CUDA graph can repeat. ``first``: it is the first update of the average."""
        waiting = self.processes.world > 1 and not last
        with self._wrapped.no_sync() if waiting else contextlib.nullcontext():
            logits, loss = self._forward(self._network, x, target)
            if self.monitor is not None:
                self.monitor.scale = self.scaler.scale(self._one) / group
            self.scaler.scale(loss / group).backward()
        sums.add(loss.detach(), logits.detach(), y, step)
        if last:
            self._update(first)

    def _forward(self, network: Callable, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.config.train.amp):
            if self.loss.needs_seq:
                logits_seq = network(x, return_seq=True)
                return logits_seq.mean(0), self.loss(logits_seq, target)
            logits = network(x)
            return logits, self.loss(logits, target)

    def _update(self, first: bool) -> None:
        if self.config.optimizer.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        if self.average is not None:
            self.average.blend(self.model, first)

    def check(self, sums: Sums, epoch: int, batch: Callable[[int], tuple[Tensor, Tensor] | None]) -> None:
        """Stops the run on all processes if its loss or gradients are infinite or NaN. Waits for the GPU.

        Args:
            sums: the sums of the epoch.
            epoch: index of the epoch.
            batch: returns the batch of a step of this epoch again, or None if it cannot.

        Raises:
            NonFinite: names the step and the layer.
        """
        mine, scale = sums.first_bad(), self.scaler.get_scale()
        step = self.processes.least(mine)
        if step < NEVER:
            self.explain(epoch, step, "the loss" if step == mine else "the loss of another process", batch)
        if self.config.train.amp == "fp16":  # infinite gradients are normal in fp16, unless they persist
            if scale < _LEAST_SCALE:
                raise NonFinite(
                    f"epoch {epoch + 1}: gradients in fp16 are infinite at every loss scale; try train.amp: bf16"
                )
        elif scale != 1.0:
            self.explain(epoch, sums.steps - 1, "a gradient", batch)

    def release(self) -> None:
        """Drops the references to the process group: its threads must end before Python exits. Drops CUDA graphs."""
        self._wrapped = self._network = self.model
        self.graphed = None

    def check_weights(self, epoch: int, step: int) -> None:
        """Stops the run before weights with infinite or NaN values overwrite a good checkpoint. Waits for the GPU.

        Raises:
            NonFinite: names the parameter or statistic.
        """
        models = [self.model] if self.average is None else [self.model, self.average.module]
        if name := next((name for model in models for name in bad_entries(model)), None):
            raise NonFinite(
                f"epoch {epoch + 1}, step {step}: the parameter or statistic {name} is not finite after the step. Try "
                "a smaller optimizer.lr or optimizer.weight_decay. The last checkpoint is unchanged"
            )

    def explain(
        self,
        epoch: int,
        step: int,
        what: str,
        batch: Callable[[int], tuple[Tensor, Tensor] | None],
        largest: float = math.inf,
    ) -> None:
        """Raises :class:`NonFinite` with the layer where the first infinite or NaN value appears."""
        again = batch(step)
        place = again and find(self.model, *again, lambda x, y: self._forward(self.model, x, y)[1], largest)
        where = f"the first such value is {place}" if place else "a repeat of the batch is finite everywhere"
        raise NonFinite(
            f"epoch {epoch + 1}, step {step + 1}: {what} is not finite; {where}. The last checkpoint is unchanged"
        )
