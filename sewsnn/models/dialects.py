"""The dialects of checkpoints: each dialect names the same weights in another way.

``sewsnn``
    The names of this package.
``torchvision``
    For ResNets the same names, which SpikingJelly's ``sew_resnet*`` use as well: ``layer1.0.conv1``, ``layer1.0.bn1``.
``authors``
    The names of the paper's code. Convolution and norm are in a container: ``layer1.0.conv1.module.0`` and ``.1``. The
    event networks are one ``nn.Sequential`` named ``conv``, which includes the pooling layers, and a linear layer
    ``out``.
``containers``
    The names of the authors' code under SpikingJelly >= 0.0.0.0.8, whose containers have no ``.module``.
"""

from collections.abc import Iterable

from torch import nn

from sewsnn.models.blocks import Block
from sewsnn.models.pooled_net import PooledNet
from sewsnn.models.sew_resnet import SEWResNet
from sewsnn.models.weights import without_compiled

DIALECTS = ("sewsnn", "torchvision", "authors", "containers")
_INNER = {"authors": ".module", "containers": ""}  # the part of the name between a container and its child's number


def dialects(model: nn.Module) -> dict[str, dict[str, str]]:
    """For each dialect: the model's name of each entry of the state dict -> the dialect's name.

    Dialects that have no names for the model are left out. The names follow from the modules, for any size, neuron and
    residual style. A model from outside :mod:`sewsnn.models` has only its own names. The names contain no prefix of
    torch.compile.
    """
    own = {key: without_compiled(key) for key in model.state_dict()}
    if isinstance(model, SEWResNet):
        modules, found = _resnet_modules, {"torchvision": own, "sewsnn": own}
    elif isinstance(model, PooledNet):
        modules, found = _pooled_modules, {"sewsnn": own}
    else:
        return {"sewsnn": own}
    for dialect, inner in _INNER.items():
        names = modules(model, inner)
        found[dialect] = {key: _renamed(name, names) for key, name in own.items()}
    return found


def detect(model: nn.Module, keys: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The dialect whose names for this model occur most often in ``keys``, and these names (:func:`dialects`)."""
    keys = set(keys)
    found = dialects(model)
    best = max(found, key=lambda dialect: len(keys.intersection(found[dialect].values())))
    return best, found[best]


def _renamed(key: str, modules: dict[str, str]) -> str:
    """The new name of an entry; its innermost renamed module decides."""
    parts = key.split(".")
    for i in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:i])
        if path in modules:
            return ".".join([modules[path], *parts[i:]])
    return key


def _resnet_modules(model: SEWResNet, inner: str) -> dict[str, str]:
    """New names of a ResNet's modules: each convolution-norm pair of a block goes into a container."""
    names = {}
    for path, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        path = without_compiled(path)
        for i in range(1, block.convs + 1):
            names |= _pair(f"{path}.conv{i}", f"{path}.bn{i}", f"{path}.conv{i}{inner}")
        if block.downsample is not None:
            sew = block.style.residual == "sew"  # a neuron follows: nn.Sequential(container, neuron)
            container = f"{path}.downsample.0{inner}" if sew else f"{path}.downsample{inner}"
            names |= _pair(f"{path}.downsample.0", f"{path}.downsample.1", container)
            if sew:
                names[f"{path}.downsample_sn"] = f"{path}.downsample.1"
    return names


def _pooled_modules(model: PooledNet, inner: str) -> dict[str, str]:
    """New names of a PooledNet's modules: ``conv.N`` numbers stems, blocks and pooling layers in running order."""
    names = {"fc": "out"}
    place = 0
    for i in range(1, model.stages + 1):
        stage = getattr(model, f"layer{i}")
        if stage.conv is not None:
            names |= _pair(f"layer{i}.conv", f"layer{i}.bn", f"conv.{place}.0{inner}")
            names[f"layer{i}.sn"] = f"conv.{place}.1"
            place += 1
        blocks = getattr(stage.blocks, "_orig_mod", stage.blocks)  # a compiled nn.Sequential cannot be iterated
        for b, block in enumerate(blocks):
            names |= _pooled_block(f"layer{i}.blocks.{b}", block, f"conv.{place}", inner)
            place += 1
        place += 1  # the pooling layer
    return names


def _pooled_block(path: str, block: Block, place: str, inner: str) -> dict[str, str]:
    names = {}
    for k in range(1, block.convs + 1):
        unit, sn = f"{place}.conv.{k - 1}", f"{path}.sn{k}"
        if block.style.residual == "spiking" and k == block.convs:  # its neuron follows the sum
            names |= _pair(f"{path}.conv{k}", f"{path}.bn{k}", f"{unit}{inner}")
            names[sn] = f"{place}.sn"
        else:
            names |= _pair(f"{path}.conv{k}", f"{path}.bn{k}", f"{unit}.0{inner}")
            names[sn] = f"{unit}.1"
    return names


def _pair(conv: str, bn: str, container: str) -> dict[str, str]:
    return {conv: f"{container}.0", bn: f"{container}.1"}
