"""The keys of a configuration with their types, defaults and limits."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class DataConfig:
    """The data set.

    ``name`` is a data set of :mod:`sewsnn.data`, and ``root`` is the folder of its files. ``T_train``: random temporal
    delete keeps this many of the T time-steps of each training batch; 0: all. :class:`sewsnn.data.source.Options`
    describes the other keys.
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
    frame_size: int = 0
    split: str = "paper"


@dataclass
class NeuronConfig:
    """The neuron of every layer; the names are those of :mod:`sewsnn.neuron`.

    - ``type``: ``IF``, ``LIF`` or ``PLIF``. ``tau``: time constant in time-steps (LIF, initial value for PLIF).
      ``decay_input``: divide the input by tau as well (LIF and PLIF).
    - ``v_threshold``: firing threshold. ``v_reset``: reset value of the membrane potential; null: soft reset.
      ``detach_reset``: no gradient through the reset.
    - ``surrogate``: surrogate gradient, a class of :mod:`sewsnn.surrogate`. ``surrogate_parameter``: its parameter;
      null: its default.
    - ``tau_grad``: the gradient of PLIF's time constant, ``full`` or ``frozen``.
    - ``backend``: ``native`` (compiled kernels), ``torch`` (reference), or ``auto``.
    """

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
    """The network, a model of :mod:`sewsnn.models`.

    - ``T``: number of time-steps. ``connect_f``: how a block combines spikes with its shortcut.
    - ``blocks``, ``widths``: blocks and channels of each stage, for ``sew_resnet`` only.
    - ``stem``, ``stem_kernel``: the first layers, for ResNets; null: the default of the model.
    - ``zero_init_residual``, ``pack_spikes``: see :mod:`sewsnn.models`.
    - ``neuron``: the neurons. ``last_neuron``: the last neuron of each block; null: as ``neuron``.
    - ``weights``: a checkpoint in any dialect with the initial weights (:func:`sewsnn.models.load_checkpoint`); null:
      random.
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
    """SGD with momentum (as in the SEW ResNet paper) or AdamW, both fused on CUDA.

    - ``lr``: the base learning rate. It is not scaled with the number of processes.
    - ``decay_norms: false``: no weight decay on parameters with at most one dimension (batch norm, biases, PLIF's w).
    - ``clip_norm``: limit of the L2 norm of all gradients together; 0: no limit.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_norms: bool = True
    clip_norm: float = 0.0


@dataclass
class ScheduleConfig:
    """The learning rate schedule; :func:`sewsnn.train.schedule.factor` defines it."""

    name: Literal["cosine", "step", "constant"] = "cosine"
    every: Literal["epoch", "step"] = "epoch"
    step_size: int = 64
    gamma: float = 0.1
    final: float = 0.0
    warmup_epochs: float = 0.0
    warmup_start: float = 0.01


@dataclass
class LossConfig:
    """The loss.

    - ``name``: ``ce`` is the cross entropy of the logits' mean over time (as in the SEW ResNet paper); ``tet`` is
      described at :class:`sewsnn.train.losses.Loss`, with ``tet_lambda`` and ``tet_target``.
    - ``label_smoothing``: in [0, 1].
    - ``mixup``, ``cutmix``: parameter of the Beta distribution; 0: not used. If both are set, each batch uses one of
      them.
    """

    name: Literal["ce", "tet"] = "ce"
    label_smoothing: float = 0.0
    tet_lambda: float = 0.05
    tet_target: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass
class TrainConfig:
    """The training.

    - ``epochs``; ``device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``threads``: CPU threads, 0: torch's default.
    - ``amp``, ``test_amp``: autocast in training and in evaluation. ``channels_last``: memory format.
    - ``compile``: mode of torch.compile; ``reduce-overhead`` uses CUDA graphs.
    - ``cuda_graph``: capture the whole training step as a CUDA graph and replay it (:mod:`sewsnn.train.graph`).
    - ``accumulate``: batches per optimizer step. ``sync_bn``: batch statistics over all processes.
    - ``ema``: decay of a moving average of the weights, which is evaluated as well; 0: none.
    - ``deterministic``: reproducible bit for bit, also on CUDA; slower.
    - ``checkpoint_steps``: number of steps between two checkpoints within an epoch; 0: save only after each epoch.
    - ``keep``: keep the checkpoints of this many last epochs as separate files; 0: none.
    - ``log_steps``: number of steps between two points in TensorBoard.
    - ``monitor``: record the firing rates and the gradient norm of each block in every training step
      (:mod:`sewsnn.analysis.monitor`).
    """

    epochs: int = 10
    device: str = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    test_amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    cuda_graph: bool = False
    accumulate: int = 1
    ema: float = 0.0
    sync_bn: bool = False
    deterministic: bool = False
    checkpoint_steps: int = 0
    keep: int = 0
    log_steps: int = 50
    monitor: bool = False
    threads: int = 0


@dataclass
class LearningRates:
    """The learning rates of ``sewsnn analyze functions`` and ``rtd``, one for each kind of network.

    The defaults are those of Table S2 in the supplement, for 192 epochs on DVS128 Gesture.

    Attributes:
        ADD: SEW network with ADD.
        AND: SEW network with AND.
        IAND: SEW network with IAND.
        Spiking: Spiking ResNet.
        Plain: plain network.
    """

    ADD: float = 0.001
    AND: float = 0.03
    IAND: float = 0.063
    Spiking: float = 0.1
    Plain: float = 0.005


@dataclass
class AnalysisConfig:
    """The settings of ``sewsnn analyze``; training does not read them.

    - ``seeds``: number of seeds of each result; the first is ``seed``, the others follow it.
    - ``jobs``: training runs at once; 0: one per processor, on CUDA one per GPU.
    - ``batches``: number of batches that are measured; 0: all test batches, and 1 training batch for gradients.
    - ``sweep``: factors of ``optimizer.lr`` that ``surrogates`` tries for each cell of its table.
    - ``learning_rates``: for ``functions`` and ``rtd``.
    - ``depths``: depths of the ResNets whose gradients are measured.
    - ``settings``: pairs of V_th and alpha for which gradients are measured.
    """

    seeds: int = 3
    jobs: int = 0
    batches: int = 0
    sweep: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    learning_rates: LearningRates = field(default_factory=LearningRates)
    depths: list[int] = field(default_factory=lambda: [18, 34, 50, 101, 152])
    settings: list[list[float]] = field(default_factory=lambda: [[1.0, 2.0], [0.5, 2.0], [1.0, 3.0]])


@dataclass
class PublishedConfig:
    """The published result to compare with.

    Attributes:
        test_accuracy: accuracy of the best epoch in percent; None (default): not published.
        last_test_accuracy: accuracy of the last epoch in percent; None (default): not published.
        source: where it was published.
    """

    test_accuracy: float | None = None
    last_test_accuracy: float | None = None
    source: str = ""


@dataclass
class Config:
    """The configuration of a run.

    Attributes:
        name: the name of the run (default ``"run"``).
        seed: seed of all random numbers, at least 0 (default 2020).
        output: the folder of the run; None (default): ``runs/<name>``.
        data: the data set.
        model: the network.
        optimizer: the optimizer.
        schedule: the learning rate schedule.
        loss: the loss.
        train: epochs, device, precision, checkpoints and logs.
        analysis: settings of ``sewsnn analyze``.
        published: the published result to compare with.
    """

    name: str = "run"
    seed: int = 2020
    output: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as nested dictionaries."""
        return dataclasses.asdict(self)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
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
    "data.frame_size": 0,
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
    "analysis.seeds": 1,
    "analysis.jobs": 0,
    "analysis.batches": 0,
    "seed": 0,
}
# Larger values cannot work: they exceed any memory, or the range of the integers or of float32.
AT_MOST = {
    "seed": 2**63 - 1,  # the limit of torch
    "data.batch_size": 2**20,
    "data.workers": 1024,
    "data.shift": 2**14,
    "data.generated": 2**31 - 1,
    "data.image_size": 2**14,
    "data.test_size": 2**14,
    "data.resize": 2**14,
    "data.scale_min": 1,
    "data.erase": 1,
    "data.frame_us": 2**32,  # the longest prepared recording in microseconds
    "data.frame_size": 128,  # the width and height of the sensor in pixels
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
    "analysis.seeds": 1000,
    "analysis.jobs": 1024,
    "analysis.batches": 2**31 - 1,
}
MOST_STAGES, MOST_BLOCKS, MOST_WIDTH = 16, 1024, 2**16  # model.blocks, model.widths and their entries
LARGEST = 1e30  # limit of any other number: float32 ends at 3e38, and products must fit
# Keys that do not affect the mathematics. A resumed run may change them, and the published result still applies.
FREE = {
    "output",
    "name",
    "data.root",
    "data.workers",
    "train.checkpoint_steps",
    "train.keep",
    "train.log_steps",
    *(f"published.{field}" for field in ("test_accuracy", "last_test_accuracy", "source")),
    *(f"analysis.{field.name}" for field in dataclasses.fields(AnalysisConfig)),
    *(f"analysis.learning_rates.{field.name}" for field in dataclasses.fields(LearningRates)),
}
