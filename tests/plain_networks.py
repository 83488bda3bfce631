"""SEW, Spiking and plain networks written out in plain PyTorch, for comparison with sewsnn's."""

import torch
from torch.nn import functional as F


class Plain:
    """A network from its state dict: conv2d, batch_norm, and a loop over the time-steps. Nothing here is sewsnn's.

    Attributes:
        blocks: name of the block -> {"S": [a tensor per batch], "A": [...], "O": [...]}; a Spiking block has no A.
        spikes: name of the neuron layer -> its spikes, a tensor per batch.
        inputs: name of the convolution or linear layer -> what it reads, a tensor per batch.
        macs: its multiply-accumulates for one image.
    """

    def __init__(self, state, residual="sew", connect_f="ADD"):
        self.state, self.residual, self.connect_f = state, residual, connect_f
        self.blocks, self.spikes, self.inputs, self.macs = {}, {}, {}, {}

    def conv_bn(self, conv, bn, x_seq, stride=1):
        weight, (mean, var, gain, bias) = self.state[f"{conv}.weight"], self.of_norm(bn)
        self.inputs.setdefault(conv, []).append(x_seq)
        z = F.conv2d(x_seq.flatten(0, 1), weight, stride=stride, padding=weight.shape[-1] // 2)
        self.macs[conv] = z[0].numel() * weight[0].numel()
        return F.batch_norm(z, mean, var, gain, bias, eps=1e-5).unflatten(0, x_seq.shape[:2])

    def of_norm(self, bn):
        return [self.state[f"{bn}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]

    def fire(self, name, x_seq):
        v, s_seq = torch.zeros_like(x_seq[0]), []
        leak = self.state.get(f"{name}.w")
        for x in x_seq:
            h = v + x if leak is None else v + (x - v) * leak.sigmoid()
            s_seq.append((h >= 1).to(h))
            v = h * (1 - s_seq[-1])
        self.spikes.setdefault(name, []).append(torch.stack(s_seq))
        return self.spikes[name][-1]

    def block(self, name, s_seq, stride=1):
        convs = 3 if f"{name}.conv3.weight" in self.state else 2
        x = s_seq
        for i in range(1, convs + 1):
            strided = i == (2 if convs == 3 else 1)  # the 3x3 convolution that comes first
            x = self.conv_bn(f"{name}.conv{i}", f"{name}.bn{i}", x, stride if strided else 1)
            if i < convs:
                x = self.fire(f"{name}.sn{i}", x)
        shortcut = s_seq
        if f"{name}.downsample.0.weight" in self.state:
            shortcut = self.conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", s_seq, stride)
            if self.residual == "sew":
                shortcut = self.fire(f"{name}.downsample_sn", shortcut)
        found = self.blocks.setdefault(name, {"S": [], "A": [], "O": []})
        found["S"].append(s_seq)
        if self.residual == "spiking":
            o = self.fire(f"{name}.sn{convs}", x + shortcut)
        else:
            a = o = self.fire(f"{name}.sn{convs}", x)
            found["A"].append(a)
            if self.residual == "sew":
                o = {"ADD": a + shortcut, "AND": a * shortcut, "IAND": (1 - a) * shortcut}[self.connect_f]
        found["O"].append(o)
        return o

    def classify(self, s_seq):
        self.inputs.setdefault("fc", []).append(s_seq.mean((-2, -1)).mean(0))
        self.macs["fc"] = self.state["fc.weight"].numel()

    def resnet(self, x, T):
        """A ResNet with the small stem, for a still image."""
        z = self.conv_bn("conv1", "bn1", x[None])
        s_seq = self.fire("sn1", z.expand(T, *z.shape[1:]))
        for stage in range(1, 9):
            for i in range(9):
                if f"layer{stage}.{i}.conv1.weight" in self.state:
                    s_seq = self.block(f"layer{stage}.{i}", s_seq, 2 if stage > 1 and i == 0 else 1)
        self.classify(s_seq)

    def pooled(self, x_seq):
        """A network with max pooling after each stage, for a sequence; O^l is before the pooling."""
        s_seq = x_seq
        for stage in range(1, 9):
            if f"layer{stage}.conv.weight" in self.state:
                s_seq = self.fire(f"layer{stage}.sn", self.conv_bn(f"layer{stage}.conv", f"layer{stage}.bn", s_seq))
            for i in range(9):
                if f"layer{stage}.blocks.{i}.conv1.weight" in self.state:
                    s_seq = self.block(f"layer{stage}.blocks.{i}", s_seq)
            if f"layer{stage}.blocks.0.conv1.weight" in self.state:
                s_seq = F.max_pool2d(s_seq.flatten(0, 1), 2).unflatten(0, s_seq.shape[:2])
        self.classify(s_seq)


def rate(tensors):
    """Spikes per neuron, time-step and sample; None without tensors."""
    return sum(float(t.double().sum()) for t in tensors) / sum(t.numel() for t in tensors) if tensors else None


def expected_blocks(plain):
    return {
        name: (*(rate(found[key]) for key in "SAO"), rate([(o != 0).double() for o in found["O"]]))
        for name, found in plain.blocks.items()
    }
