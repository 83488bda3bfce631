"""The implementations: the same SEW ResNet (IF, ATan, detached hard reset, ADD) with the same weights, built in several
ways.

    fused                sewsnn with its defaults
    packed               the same with pack_spikes=True
    unfused              sewsnn with torch's batch norm
    plain                unfused, with neurons as a loop over time-steps that autograd differentiates
    compile              torch.compile of plain, default mode
    spikingjelly         SpikingJelly's network as in its examples: the image is repeated T times before conv1
    spikingjelly_once    the same, changed by hand to compute its stem (conv1, bn1) once per image
    converted            spikingjelly after sewsnn.convert.from_spikingjelly(net): the effect of that one line

SpikingJelly sets step_mode per layer, so its stem can run in single-step mode, and a hook can expand its result to T
time-steps as a view; the values stay the same. SpikingJelly does not offer this; it is the strongest version we could
make of it. SpikingJelly's memory optimisation (memopt, checkpointing) computes forward twice and is left out, as is
checkpointing for all others.
"""

import importlib.util
import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sewsnn import models, neuron
from sewsnn.convert import from_spikingjelly
from sewsnn.data.vision import transforms

PROVIDERS = ("fused", "packed", "unfused", "plain", "compile", "spikingjelly", "spikingjelly_once", "converted")
SPIKINGJELLYS = {"spikingjelly", "spikingjelly_once", "converted"}  # these need SpikingJelly
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Case:
    """A case to measure. ``model`` is a name of the registry, or JSON: ``{"name": "sew_resnet", "blocks": ...}``."""

    model: str
    batch: int
    size: int
    T: int
    dtype: str
    device: str

    def settings(self) -> dict:
        """Returns ``name`` and the arguments of the model."""
        return json.loads(self.model) if self.model.startswith("{") else {"name": self.model}

    def exact(self) -> "Case":
        """Returns a small case in float64, where rounding changes no spike. It shows whether two networks compute the
        same function."""
        return replace(self, batch=2, size=min(self.size, 64), dtype="float64")


def available(provider: str) -> bool:
    """Returns whether the library that the provider needs is installed."""
    return provider not in SPIKINGJELLYS or importlib.util.find_spec("spikingjelly") is not None


def build(provider: str, case: Case, memory_format: str) -> nn.Module:
    """Returns the network, from images ``[N, 3, H, W]`` to logits ``[N, classes]``, with the initial weights that all
    providers share."""
    torch.manual_seed(0)
    common = case.settings() | {"T": case.T, "connect_f": "ADD"}
    weights = models.create_model(**common, fused=False).state_dict()
    if provider in SPIKINGJELLYS:
        net = SpikingJelly(case, stem_once=provider == "spikingjelly_once")
        net.theirs.load_state_dict(weights)
        if provider == "converted":
            from_spikingjelly(net.theirs)
    else:
        if provider in ("plain", "compile"):
            common["neuron"] = neuron.IFNode(store_v=False, backend="torch")
        net = models.create_model(**common, fused=provider in ("fused", "packed"), pack_spikes=provider == "packed")
        net.load_state_dict(weights)
    if case.dtype == "float64":
        net.double()
    net.to(case.device, memory_format=MEMORY_FORMATS[memory_format])
    if provider.startswith("spikingjelly") and (case.device, case.dtype) == ("cuda", "bfloat16"):
        net.keep_bfloat16()
    return torch.compile(net, dynamic=False) if provider == "compile" else net


class SpikingJelly(nn.Module):
    """SpikingJelly's SEW ResNet for static images; each call resets the network at its end."""

    def __init__(self, case: Case, stem_once: bool):
        super().__init__()
        if importlib.util.find_spec("torchvision"):
            transforms()  # SpikingJelly's networks import torchvision, which needs this beside a CPU-only torch
        from spikingjelly.activation_based import functional, surrogate
        from spikingjelly.activation_based import neuron as theirs

        self.T, self.stem_once = case.T, stem_once
        node = {"spiking_neuron": theirs.IFNode, "surrogate_function": surrogate.ATan(2.0), "detach_reset": True}
        self.theirs = _their_network(case.settings(), cnf="ADD", **node)
        functional.set_step_mode(self.theirs, "m")
        self._reset = functional.reset_net
        if stem_once:
            self.theirs.conv1.step_mode = self.theirs.bn1.step_mode = "s"
            self.theirs.bn1.register_forward_hook(lambda module, images, z: z.expand(case.T, *z.shape))

    def keep_bfloat16(self) -> None:
        """Stores the neurons' state in bfloat16. Under autocast alone, SpikingJelly's neurons would fall back to a loop
        over time-steps. CUDA only."""
        from spikingjelly.activation_based import precision

        config = precision.PrecisionConfig(mode="bf16", neuron_storage="bf16")
        self.theirs = precision.prepare_model_for_precision(self.theirs, torch.device("cuda"), config).model

    def forward(self, images: Tensor) -> Tensor:
        if not self.stem_once:
            images = torch.cat([images] * self.T).unflatten(0, (self.T, -1))  # in the memory format of the images
        logits = self.theirs(images).mean(0)
        self._reset(self.theirs)
        return logits


def _their_network(settings: dict, **more) -> nn.Module:
    from spikingjelly.activation_based.model import sew_resnet

    settings = dict(settings)
    name = settings.pop("name")
    if name != "sew_resnet":
        return getattr(sew_resnet, name)(**settings, **more)
    block = sew_resnet.Bottleneck if settings.pop("bottleneck", False) else sew_resnet.BasicBlock
    if settings.pop("widths") != [64, 128, 256, 512]:
        raise ValueError("SpikingJelly's SEW ResNet has the widths [64, 128, 256, 512]")
    return sew_resnet.SEWResNet(block, settings.pop("blocks"), **settings, **more)
