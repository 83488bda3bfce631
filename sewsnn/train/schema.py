"""The keys of a configuration, their types, defaults and limits."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class DataConfig:
    """``name``: a data set of :mod:`sewsnn.data`, ``root``: the folder of its files; the rest is explained at
    :class:`sewsnn.data.source.Options`.

    Of each batch of training sequences ``T_train`` time-steps are left (random temporal delete); 0: all.
    """

    name: str = "digits"
    root: str | None = None
    batch_size: int = 64
    workers: int = 0
    shift: int = 0
    flip: bool = False
    T_train: int = 0
    drop_last: bool = False
    generated: int = 0
    image_size: int = 224
    test_size: int = 0
    resize: int = 256
    scale_min: float = 0.08
    augment: Literal["none", "trivial", "rand", "auto"] = "none"
    erase: float = 0.0
    loader: Literal["torchvision", "dali"] = "torchvision"
    on_corrupt: Literal["stop", "skip"] = "stop"
    split_by: Literal["number", "time", "duration"] = "number"
    frame_us: int = 0
    split: str = "paper"


@dataclass
class NeuronConfig:
    """The neuron of every layer, names as in :mod:`sewsnn.neuron`. ``v_reset: null`` is soft reset,
    ``surrogate_parameter: null`` the surrogate's own default."""

    type: Literal["IF", "LIF", "PLIF"] = "IF"
    tau: float = 2.0
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    surrogate: str = "ATan"
    surrogate_parameter: float | None = None
    tau_grad: Literal["full", "frozen"] = "full"
    backend: Literal["auto", "native", "torch"] = "auto"


@dataclass
class ModelConfig:
    """A model of :mod:`sewsnn.models`; ``blocks`` and ``widths`` are for ``sew_resnet`` only, ``stem`` for ResNets.

    ``stem``, ``stem_kernel``: null is the model's own. ``last_neuron``: of each block; null: ``neuron``. ``weights``: a
    checkpoint of any dialect to begin with (:func:`sewsnn.models.load_checkpoint`).
    """

    name: str = "sew_resnet18"
    T: int = 4
    connect_f: Literal["ADD", "AND", "IAND"] = "ADD"
    blocks: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    stem: Literal["imagenet", "small"] | None = None
    stem_kernel: int | None = None
    zero_init_residual: bool = False
    pack_spikes: bool = False
    neuron: NeuronConfig = field(default_factory=NeuronConfig)
    last_neuron: NeuronConfig | None = None
    weights: str | None = None


@dataclass
class OptimizerConfig:
    """SGD with momentum (the paper's) or AdamW, both fused on CUDA. ``decay_norms: false``: no weight decay on
    parameters of one dimension or none (BN, biases, PLIF's w). ``clip_norm``: gradients are scaled down to this L2 norm
    of all of them together; 0: never. ``lr`` is that of all processes together, whatever their number."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_norms: bool = True
    clip_norm: float = 0.0


@dataclass
class ScheduleConfig:
    """The learning rate over epochs: see :func:`sewsnn.train.schedule.factor`."""

    name: Literal["cosine", "step", "constant"] = "cosine"
    every: Literal["epoch", "step"] = "epoch"
    step_size: int = 64
    gamma: float = 0.1
    final: float = 0.0
    warmup_epochs: float = 0.0
    warmup_start: float = 0.01


@dataclass
class LossConfig:
    """``ce``: cross entropy of the logits' mean over time (the paper's); ``tet``: :class:`sewsnn.train.losses.Loss`.
    ``mixup``, ``cutmix``: parameter of their Beta distribution; 0: not used; both: one of them for each batch."""

    name: Literal["ce", "tet"] = "ce"
    label_smoothing: float = 0.0
    tet_lambda: float = 0.05
    tet_target: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass
class TrainConfig:
    """How it is trained.

    ``amp``: autocast in training, ``test_amp`` in evaluation. ``accumulate``: batches per optimizer step. ``ema``:
    decay of an exponential moving average of the weights, evaluated besides; 0: none. ``sync_bn``: batch statistics
    over all processes. ``compile``: torch.compile's mode; ``reduce-overhead`` uses CUDA graphs. ``deterministic``: the
    same bits in each run, on CUDA too; slower. ``checkpoint_steps``: a checkpoint every so many steps, besides the one
    after each epoch; 0: none. ``keep``: checkpoints of the last so many epochs are kept besides. ``log_steps``: steps
    between points in TensorBoard. ``threads``: of the CPU; 0: as many as torch takes.
    """

    epochs: int = 10
    device: str = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    test_amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    accumulate: int = 1
    ema: float = 0.0
    sync_bn: bool = False
    deterministic: bool = False
    checkpoint_steps: int = 0
    keep: int = 0
    log_steps: int = 50
    threads: int = 0


@dataclass
class PublishedConfig:
    """The result a configuration aims at, in percent: best epoch and last; null: not published. ``source``: where."""

    test_accuracy: float | None = None
    last_test_accuracy: float | None = None
    source: str = ""


@dataclass
class Config:
    """A whole run. ``output``: its folder; null: ``runs/<name>``."""

    name: str = "run"
    seed: int = 2020
    output: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def folder(self) -> Path:
        return Path(self.output or f"runs/{self.name}")


AT_LEAST = {
    "data.batch_size": 1,
    "data.workers": 0,
    "data.shift": 0,
    "data.T_train": 0,
    "data.generated": 0,
    "data.image_size": 1,
    "data.test_size": 0,
    "data.resize": 1,
    "data.scale_min": 0,
    "data.erase": 0,
    "data.frame_us": 0,
    "model.T": 1,
    "optimizer.lr": 0,
    "optimizer.momentum": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "schedule.step_size": 1,
    "schedule.gamma": 0,
    "schedule.final": 0,
    "schedule.warmup_epochs": 0,
    "schedule.warmup_start": 0,
    "loss.label_smoothing": 0,
    "loss.tet_lambda": 0,
    "loss.mixup": 0,
    "loss.cutmix": 0,
    "train.epochs": 1,
    "train.accumulate": 1,
    "train.ema": 0,
    "train.checkpoint_steps": 0,
    "train.keep": 0,
    "train.log_steps": 1,
    "train.threads": 0,
    "seed": 0,
}
# Beyond these nothing can work: no memory holds it, no number of the program or of float32 has it.
AT_MOST = {
    "seed": 2**63 - 1,  # that torch takes
    "data.batch_size": 2**20,
    "data.workers": 1024,
    "data.shift": 2**14,
    "data.generated": 2**31 - 1,
    "data.image_size": 2**14,
    "data.test_size": 2**14,
    "data.resize": 2**14,
    "data.scale_min": 1,
    "data.erase": 1,
    "data.frame_us": 2**32,  # as many microseconds as a prepared recording can have
    "model.T": 2**16,
    "optimizer.momentum": 1,
    "schedule.step_size": 2**31 - 1,
    "schedule.gamma": 1000,
    "loss.label_smoothing": 1,
    "loss.tet_lambda": 1,
    "loss.mixup": 10**6,
    "loss.cutmix": 10**6,
    "train.epochs": 10**6,
    "train.accumulate": 2**20,
    "train.ema": 1,
    "train.checkpoint_steps": 2**31 - 1,
    "train.keep": 10**6,
    "train.log_steps": 2**31 - 1,
    "train.threads": 1024,
}
MOST_STAGES, MOST_BLOCKS, MOST_WIDTH = 16, 1024, 2**16  # model.blocks, model.widths and their entries
LARGEST = 1e30  # of any other number: float32 ends at 3e38, and it is multiplied with others
# Keys that do not touch the mathematics: a resumed run may change them, and the published result stays the aim.
FREE = {
    "output",
    "name",
    "data.root",
    "data.workers",
    "train.checkpoint_steps",
    "train.keep",
    "train.log_steps",
    *(f"published.{field}" for field in ("test_accuracy", "last_test_accuracy", "source")),
}
