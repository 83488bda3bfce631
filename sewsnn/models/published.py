"""The tasks of the paper's networks and the published accuracies, each with its source.

The tables in the documentation and the commands read them from here.
"""

from typing import NamedTuple


class Task(NamedTuple):
    """A data set as the networks see it."""

    data: str
    input_shape: tuple[int, int, int]  #: C, H, W
    classes: int
    steps: tuple[int, ...]  #: T of the published runs; empty: the paper does not state it
    still: bool  #: True: images, shown T times; False: sequences of T frames


class Result(NamedTuple):
    """A published accuracy on the test set."""

    network: str  #: name in the registry
    data: str
    accuracy: float  #: top-1, in percent
    source: str
    T: int | None = None  #: None: the source does not state it
    connect_f: str | None = None
    surrogate: str | None = None  #: class in :mod:`sewsnn.surrogate`; None: the paper's usual ATan
    epoch: str = "best"  #: "best" or "last" epoch; the papers report the best


TASKS = {
    task.data: task
    for task in (
        Task("ImageNet", (3, 224, 224), 1000, (4,), True),
        Task("DVS Gesture", (2, 128, 128), 11, (16,), False),
        Task("CIFAR10-DVS", (2, 128, 128), 10, (4, 8, 16), False),
        Task("CIFAR-10", (3, 32, 32), 10, (), True),
    )
}

_LOG = "the authors' training logs"
_PAPER = "main paper"
_SECOND = "reported by others"
_TABLE_S3 = "supplement, Table S3"
_DEPTHS = (18, 34, 50, 101, 152)

_TASK_OF = {
    **{f"{residual}_resnet{depth}": "ImageNet" for residual in ("sew", "spiking", "plain") for depth in _DEPTHS},
    **{f"{residual}_7b_net": "DVS Gesture" for residual in ("sew", "spiking", "plain")},
    "sew_wide_7b_net": "CIFAR10-DVS",
    **{f"{residual}_cifar10_net": "CIFAR-10" for residual in ("sew", "spiking")},
}

_IMAGENET = {  # best and last epoch of 320, for 18, 34, 50, 101, 152
    "sew": ((63.18, 62.81), (67.04, 66.66), (67.78, 67.37), (68.76, 68.40), (69.26, 68.99)),
    "spiking": ((62.32, 61.95), (61.86, 61.59), (57.66, 57.66), (31.79, 30.73), (10.03, 8.71)),
}
_CIFAR10 = {"ATan": (82.63, 77.33), "Rectangular": (82.56, 66.01), "Constant": (12.56, 10.0)}  # SEW (ADD), Spiking

RESULTS = (
    *(
        Result(
            f"{residual}_resnet{depth}", "ImageNet", value, _LOG, 4, "ADD" if residual == "sew" else None, None, epoch
        )
        for residual, rows in _IMAGENET.items()
        for depth, values in zip(_DEPTHS, rows, strict=True)
        for epoch, value in zip(("best", "last"), values, strict=True)
    ),
    Result("sew_7b_net", "DVS Gesture", 97.92, _PAPER, 16, "ADD"),
    Result("sew_7b_net", "DVS Gesture", 95.49, "supplement, A.3", 16, "IAND"),
    Result("sew_7b_net", "DVS Gesture", 70.49, "supplement, A.3", 16, "AND"),
    Result("spiking_7b_net", "DVS Gesture", 90.97, _SECOND, 16),
    Result("plain_7b_net", "DVS Gesture", 91.67, f"{_SECOND}, uncertain", 16),
    *(
        Result("sew_wide_7b_net", "CIFAR10-DVS", value, _PAPER, T, "ADD")
        for T, value in ((4, 64.8), (8, 70.2), (16, 74.4))
    ),
    *(
        Result(f"{residual}_cifar10_net", "CIFAR-10", values[i], _TABLE_S3, None, ("ADD", None)[i], surrogate)
        for surrogate, values in _CIFAR10.items()
        for i, residual in enumerate(("sew", "spiking"))
    ),
)


def task_of(name: str) -> Task | None:
    """The task for which a network was published.

    Args:
        name: name of a network in the registry.

    Returns:
        The task; None if the network has no fixed size or is not from the paper.
    """
    return TASKS.get(_TASK_OF.get(name))


def published(name: str, **settings) -> list[Result]:
    """The published results of a network, the best first.

    Args:
        name: name of a network in the registry.
        settings: fields of :class:`Result` that must match, for example ``T=4, connect_f="ADD", epoch="best"``.

    Returns:
        A list of :class:`Result`, which may be empty.
    """
    found = [r for r in RESULTS if r.network == name and all(getattr(r, k) == v for k, v in settings.items())]
    return sorted(found, key=lambda r: -r.accuracy)
