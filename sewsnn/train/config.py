"""The configuration of a training run: dataclass defaults < YAML file < command line.

A key is a path through the dataclasses below (``optimizer.lr``); on the command line the last part alone is enough
where only one key ends so (``--lr 0.05``).
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sewsnn.errors import ConfigError


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
    """SGD with momentum (the paper's) or AdamW."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass
class ScheduleConfig:
    """Learning rate over epochs: cosine to 0 at the last, steps of ``gamma`` every ``step_size``, or constant."""

    name: Literal["cosine", "step", "constant"] = "cosine"
    step_size: int = 64
    gamma: float = 0.1


@dataclass
class TrainConfig:
    """``amp``: autocast in training (evaluation is float32). ``checkpoint_steps``: a checkpoint every so many steps,
    besides the one after each epoch; 0: none."""

    epochs: int = 10
    device: str = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    checkpoint_steps: int = 0
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
    train: TrainConfig = field(default_factory=TrainConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def folder(self) -> Path:
        return Path(self.output or f"runs/{self.name}")


_AT_LEAST = {
    "data.batch_size": 1,
    "data.shift": 0,
    "data.T_train": 0,
    "data.generated": 0,
    "model.T": 1,
    "optimizer.lr": 0,
    "optimizer.momentum": 0,
    "optimizer.weight_decay": 0,
    "schedule.step_size": 1,
    "schedule.gamma": 0,
    "train.epochs": 1,
    "train.checkpoint_steps": 0,
    "train.threads": 0,
    "seed": 0,
}
_MOST_SEED = 2**63 - 1  # that torch takes


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file and puts ``overrides`` (key -> YAML text, as from the command line) over it.

    Where they make another experiment of it, what was published for the file's is no aim any more.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), a value has the wrong type.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from None
    config = from_dict({} if content is None else content, str(path))
    before = config.to_dict()
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    if any(_is_of_the_experiment(key) for key in differences(before, config.to_dict())):
        config.published = PublishedConfig()
    check(config)
    return config


def _is_of_the_experiment(key: str) -> bool:
    """Whether a result would be another one's with another value of the key."""
    section = key.partition(".")[0]
    chosen = section in ("data", "model", "optimizer", "schedule")
    return (chosen or key == "train.epochs") and key not in ("data.root", "data.generated")


def from_dict(content: Any, where: str = "config") -> Config:
    """A configuration from nested dictionaries; what is missing keeps its default."""
    return _build(Config, content, "", where)


def check(config: Config) -> None:
    """Values that are of the right type and still make no sense."""
    for key, least in _AT_LEAST.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value >= least:
            raise ConfigError(f"{key} must be at least {least}, got {value}")
        if value == math.inf:
            raise ConfigError(f"{key} must be finite, got {value}")
    if config.seed > _MOST_SEED:
        raise ConfigError(f"seed must be at most {_MOST_SEED}, got {config.seed}")
    if (config.model.name == "sew_resnet") != bool(config.model.blocks):
        raise ConfigError("model.blocks and model.widths are needed by model.name: sew_resnet, and by no other model")
    if len(config.model.blocks) != len(config.model.widths):
        raise ConfigError(
            f"model.blocks and model.widths must have one entry per stage, got {config.model.blocks} and "
            f"{config.model.widths}"
        )
    if config.data.T_train > config.model.T:
        raise ConfigError(f"data.T_train must be at most model.T, {config.model.T}, got {config.data.T_train}")


def keys(cls: type = Config, prefix: str = "") -> list[str]:
    """All keys, as dotted paths."""
    out = []
    for name, hint in typing.get_type_hints(cls).items():
        section = _section(hint)
        out += keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return out


def differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Keys in which two configurations, as dictionaries, differ."""
    out = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            out += differences(x, y, f"{prefix}{key}.")
        elif x != y:
            out.append(f"{prefix}{key}")
    return out


def _section(hint: Any) -> type | None:
    """The dataclass of a section of keys, which may be null; None for a value."""
    for choice in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(choice):
            return choice
    return None


def _unknown(key: str, where: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if not near:  # a right leaf under a wrong section
        near = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    hint = f"; the nearest is {near[0]!r}" if near else f"; known: {', '.join(known)}"
    return ConfigError(f"{where}: unknown key {key!r}{hint}")


def _build(cls: type, content: Any, prefix: str, where: str):
    if not isinstance(content, dict):
        name = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{where}: {name} must be a mapping of keys to values, got {type(content).__name__}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        if name not in hints:
            known = keys() if prefix == "" else [k for k in keys() if k.startswith(prefix)]
            known += [prefix + n for n in hints if prefix + n not in known]
            raise _unknown(f"{prefix}{name}", where, known)
        hint = hints[name]
        section = _section(hint)
        if section and (value is not None or section is hint):
            values[name] = _build(section, {} if value is None else value, f"{prefix}{name}.", where)
        elif section:
            values[name] = None
        else:
            values[name] = _convert(value, hint, f"{prefix}{name}", where)
    return cls(**values)


def _override(config: Config, key: str, text: str) -> None:
    known = keys()
    path = key if key in known else None
    if path is None:
        endings = [k for k in known if k.endswith(f".{key}") and _is_there(config, k)]
        if len(endings) > 1:
            raise ConfigError(f"--{key} could be any of {', '.join(endings)}: write the whole key")
        if not endings:
            raise _unknown(key, "command line", known + [k.split(".")[-1] for k in known])
        path = endings[0]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *sections, name = path.split(".")
    target = config
    for section in sections:
        if getattr(target, section) is None:
            setattr(target, section, _section(typing.get_type_hints(type(target))[section])())
        target = getattr(target, section)
    setattr(target, name, _convert(value, typing.get_type_hints(type(target))[name], path, "command line"))


def _is_there(config: Config, key: str) -> bool:
    """Whether no section on the way to the key is null: one that is must be asked for by its name."""
    target = config
    for section in key.split(".")[:-1]:
        target = getattr(target, section)
        if target is None:
            return False
    return True


def _convert(value: Any, hint: Any, key: str, where: str):
    """``value`` as the type in ``hint``, or a ConfigError. An int serves as a float; nothing else is converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(value, inner, key, where)
    if origin is Literal:
        # YAML reads a bare `off` as false.
        value = "off" if value is False and "off" in arguments else value
        if value in arguments:
            return value
        raise ConfigError(f"{where}: {key} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if origin is list:
        if isinstance(value, list):
            return [_convert(v, arguments[0], f"{key}[{i}]", where) for i, v in enumerate(value)]
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                pass
    elif hint is bool or hint is str:
        if isinstance(value, hint):
            return value
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    name = f"list of {arguments[0].__name__}" if origin is list else hint.__name__
    raise ConfigError(f"{where}: {key} must be {name}, got {value!r} ({type(value).__name__})")
