"""Predicts the share of a copy's bandwidth that a kernel reaches on an H100 and an H200. Nothing here is measured.

Three limits decide. The prediction is the smallest of them, as a share of the bandwidth of a copy (at most 100 %).

- **memory**: a copy's bandwidth on this device. No kernel is predicted to be faster than a copy.
- **issue**: each of the four schedulers of a multiprocessor issues at most one instruction of a warp per cycle, and in
  practice 80 % of that. A kernel that executes many instructions per byte cannot keep the memory busy.
- **latency**: the warps of a multiprocessor wait for their loads and then for their own instructions, one after the
  other. A thread needs ``bursts x latency + instructions x mean stall / clock`` seconds for its work. All threads that
  fit on the device together move their bytes in this time. A load that is requested while the thread works on earlier
  data hides its latency behind this work (``hidden`` bursts).

Little's law gives the bytes that must be in flight on a multiprocessor: bandwidth x latency, reads only. The prediction
does not use this number, because the latency limit already contains it; the table shows it, because it explains why a
kernel waits.

Assumptions:

- The mean stall count of all instructions of a kernel is that of the instructions that are executed.
- SASS executes a fixed multiple of the instructions that PTX executes (``counts.py``).
- Every access hits memory, is aligned and is as wide as a pack of neurons.
- All blocks of a multiprocessor are always present.

Not in the model: the instruction cache, hits in the L2 cache (they make memory faster, so that the issue limit decides
more often), bank conflicts, the last wave of blocks, the time before a thread's first load and after its last row, the
launch, and a clock that differs from 1.755 GHz (1.98 GHz raises shares below 100 % by up to a tenth).
"""

from dataclasses import dataclass

#: multiprocessors and schedulers per multiprocessor (NVIDIA, H100 and H200 SXM data sheets)
MULTIPROCESSORS, SCHEDULERS, WARP = 132, 4, 32
THREADS = 128  # of a block: kThreads of multistep.cuh
#: clock in Hz that such cards hold under load; they may reach 1.98e9 (estimate)
CLOCK = 1.755e9
#: share of the issue slots that a kernel can use in practice (estimate)
ISSUED = 0.8
#: seconds from a load to its data when the memory is busy (estimate: 600 to 800 ns)
LATENCY = 700e-9


@dataclass(frozen=True)
class Device:
    """A GPU: bytes per second of its memory as specified, and of a copy (measured on such cards)."""

    peak: float
    copied: float


#: name -> device (peak: NVIDIA's data sheets; copied: measured on such cards, reads and writes together)
DEVICES = {"H100": Device(3.35e12, 3.0e12), "H200": Device(4.8e12, 4.3e12)}


@dataclass(frozen=True)
class Work:
    """What one thread does, once or per row of a walk.

    Attributes:
        instructions: SASS instructions that it executes.
        moved: bytes that it reads and writes.
        reads: share of ``moved`` that it reads.
        bursts: how often it waits for loads.
        flying: bytes that it has requested when it waits for the first time.
        hidden: number of bursts whose latency overlaps with the thread's own instructions.
    """

    instructions: float
    moved: float
    reads: float
    bursts: float
    flying: float
    hidden: float = 0


@dataclass(frozen=True)
class Prediction:
    """Limits in bytes per second, and bytes per multiprocessor in flight."""

    issue: float
    latency: float
    flying: float
    reads: float

    def needed(self, device: Device) -> float:
        """Returns the bytes in flight per multiprocessor that the device's memory needs (Little's law)."""
        return device.peak / MULTIPROCESSORS * LATENCY * self.reads

    def share(self, device: Device) -> float:
        """Returns the predicted share of a copy's bandwidth, at most 1."""
        return min(1.0, self.issue / device.copied, self.latency / device.copied)

    def limit(self, device: Device) -> str:
        """Returns what limits the kernel on this device: ``memory``, ``latency`` or ``issue``."""
        if self.share(device) == 1:
            return "memory"
        return "issue" if self.issue < self.latency else "latency"


def predict(work: Work, blocks: int, stall: float) -> Prediction:
    """Returns the limits of a kernel with this number of blocks per multiprocessor and this mean stall count."""
    threads = MULTIPROCESSORS * blocks * THREADS
    slots = MULTIPROCESSORS * SCHEDULERS * WARP * CLOCK * ISSUED  # instructions of a thread per second
    own = work.instructions * stall / CLOCK
    seconds = own + work.bursts * LATENCY - min(own, work.hidden * LATENCY)
    return Prediction(
        issue=slots * work.moved / work.instructions,
        latency=threads * work.moved / seconds,
        flying=blocks * THREADS * work.flying,
        reads=work.reads,
    )


def device_of(name: str) -> Device | None:
    """Returns the device that this name of a GPU contains, such as ``NVIDIA H100 80GB HBM3``; None if it is unknown.

    PCIe and NVL cards have other memories and clocks, so they are unknown.
    """
    if any(word in name for word in ("PCIe", "NVL", "MIG")):
        return None
    return next((device for key, device in DEVICES.items() if key in name), None)
