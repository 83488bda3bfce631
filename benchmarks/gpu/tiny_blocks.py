"""Runs every kernel of batch norm + neuron + connection, of max pooling and of the stem once, on shapes for
compute-sanitizer.

    python -m benchmarks.gpu.tiny_blocks [--device cuda|cpu] [--every N] [--large]

With given statistics, the outputs must equal those of the CPU kernels bit for bit, and the gradients must agree up to
rounding. In training the statistics are summed in another order, so that comparison uses float64. --every 5 takes only
every fifth case. --large launches each pass once at the shapes of SEW-ResNet-18, for a profiler.
"""

import itertools

import torch
from torch import nn

from benchmarks.gpu.tiny import run
from sewsnn import layers, neuron

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NEURONS = {
    "none": lambda: None,
    "if": lambda: neuron.IFNode(store_v=False),
    "lif3": lambda: neuron.LIFNode(tau=3.0),
    "plif": lambda: neuron.ParametricLIFNode(store_v=False),
}
CONNECTIONS = (None, "ADD", "AND", "IAND", "before")
SIZES = ((8, 4, 4), (3, 5, 5), (64, 2, 2))  # C, H, W


def operands(shape, dtype, device, channels_last):
    """Returns z, the shortcut and two gradients."""
    generator = torch.Generator().manual_seed(sum(shape))
    made = []
    for k in range(4):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.4
        x = (x.round().clamp(0, 2) if k == 1 else x).to(dtype).to(device)
        made.append(x.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else x)
    return made


def modules(C, kind, dtype, device, training):
    """Returns a batch norm with its own statistics, and the neuron."""
    torch.manual_seed(C)
    bn, node = nn.BatchNorm2d(C), NEURONS[kind]()
    for p in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        nn.init.uniform_(p, 0.3, 1.0)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    bn.to(device, state).train(training)
    return bn, node if node is None else node.to(device, state)


def block(shape, kind, connection, dtype, device, channels_last, training):
    """Returns the output, the packed spikes, and the gradients and running statistics."""
    z, shortcut, grad, grad_skip = operands(shape, dtype, device, channels_last)
    bn, node = modules(shape[2], kind, dtype, device, training)
    before = connection == "before"
    settings = {"connect_f": "ADD" if before else connection, "connect_before": before}
    if connection:
        settings["shortcut"] = shortcut.requires_grad_()
    z.requires_grad_()
    output = layers.bn_neuron(z, bn, node, return_skip=True, pack_spikes=True, **settings)
    inputs = [z, *bn.parameters(), *([shortcut] if connection else []), *(node.parameters() if node else ())]
    grads = torch.autograd.grad([output.out, output.skip], inputs, [grad, grad_skip])
    return output.out.detach(), output.bits, [*grads, bn.running_mean, bn.running_var]


def stem(shape, kind, T, dtype, device, channels_last, training):
    z, *_ = operands(shape[1:], dtype, device, channels_last)
    bn, node = modules(shape[2], kind, dtype, device, training)
    if isinstance(node, neuron.LIFNode):
        node.store_v = False
    out = layers.bn_neuron_pool(z.requires_grad_(), bn, node, T)
    grad = torch.linspace(-1, 1, out.numel(), device=device, dtype=torch.float64).view(out.shape).to(dtype)
    grads = torch.autograd.grad(out, [z, *bn.parameters(), *node.parameters()], grad)
    return out.detach(), None, [*grads, bn.running_mean, bn.running_var]


def pooled(shape, kind, connection, window, before, dtype, device, channels_last, training):
    """A block with max pooling before or after the neuron."""
    z, *_ = operands(shape, dtype, device, channels_last)
    bn, node = modules(shape[2], kind, dtype, device, training)
    with torch.no_grad():
        bn.weight[::2] *= -1
    if isinstance(node, neuron.LIFNode):
        node.store_v = False
    pool = nn.MaxPool2d(*window)
    size = [*shape[:2], *pool(torch.empty(shape[2:], device="meta")).shape] if before else shape
    shortcut = operands(size, dtype, device, channels_last)[1].requires_grad_() if connection else None
    settings = {"connect_f": connection, "pool": pool, "pool_before": before}
    out = layers.bn_neuron(z.requires_grad_(), bn, node, shortcut, **settings).out
    grad = torch.linspace(-1, 1, out.numel(), device=device, dtype=torch.float64).view(out.shape).to(dtype)
    inputs = [t for t in (z, shortcut, *bn.parameters(), *node.parameters()) if t is not None]
    return out.detach(), None, [*torch.autograd.grad(out, inputs, grad), bn.running_mean, bn.running_var]


def differs(call) -> str | None:
    """Returns how the results of the device differ from those of the CPU, or None. ``call(device, training)`` computes
    them."""
    out, bits, grads = call("device", False)
    expected, expected_bits, expected_grads = call("cpu", False)
    if not torch.equal(out.cpu(), expected):
        return f"{int((out.cpu() != expected).sum())} outputs of {out.numel()} differ"
    if bits is not None and not torch.equal(bits.cpu(), expected_bits):
        return "the packed spikes differ"
    compared = [(False, grads, expected_grads)]
    trained = call("device", True)[2]
    if out.dtype == torch.float64:  # else rounding of the statistics may change a spike, and with it all later values
        compared.append((True, trained, call("cpu", True)[2]))
    for training, found, wanted in compared:
        for a, b in zip(found, wanted, strict=True):
            rounding = 2.0**-6 if a.element_size() == 2 else 1e-9 if a.dtype == torch.float64 else 1e-3
            if not torch.allclose(a.cpu().double(), b.double(), rtol=0, atol=rounding * max(1.0, float(b.abs().max()))):
                error = float((a.cpu().double() - b.double()).abs().max())
                return f"a gradient or running statistic is off by {error:.1e} (training: {training})"
    return None


def differences(device: str, every: int = 1):
    """Yields for each case, or every n-th one, how it differs from the CPU, if it does, and then None."""
    where = {"device": device, "cpu": "cpu"}
    for name, call in itertools.islice(cases(), 0, None, every):
        difference = differs(lambda place, training, call=call: call(where[place], training))
        if difference:
            yield f"{name}: {difference}"
        yield None


def cases():
    """Yields (name, function of device and training)."""
    for dtype, T, size, last in itertools.product(DTYPES, (3, 4, 17), SIZES, (True, False)):
        shape = (T, 2, *size)
        for i, (kind, connection) in enumerate(itertools.product(NEURONS, CONNECTIONS)):
            if (i + T + sum(size)) % 3 and (dtype, T) != (torch.float32, 4):
                continue  # a third of the combinations, but all of them for float32 and T = 4
            if connection == "before" and kind == "none":
                continue
            case = f"{kind}, {connection}, {dtype}, {shape}, channels_last={last}"
            yield case, lambda d, t, a=(shape, kind, connection, dtype), last=last: block(*a, d, last, t)
        for i, (window, before, kind) in enumerate(
            itertools.product(((3, 2, 1), (2, 2, 0)), (False, True), ("if", "lif3", "plif"))
        ):
            connection, big = (None, "ADD")[i % 2], (T, 2, size[0], 7, 6)
            case = f"pooled {window}, before={before}, {kind}, {connection}, {dtype}, {big}, channels_last={last}"
            about = (big, kind, connection, window, before, dtype)
            yield case, lambda d, t, a=about, last=last: pooled(*a, d, last, t)
        if T == 17:
            continue
        for kind in ("if", "lif3", "plif"):
            big = (T, 2, size[0], 9, 12)
            case = f"stem, {kind}, {dtype}, {big}, channels_last={last}"
            yield case, lambda d, t, a=(big, kind, T, dtype), last=last: stem(*a, d, last, t)


def large() -> None:
    """Runs each pass once at the shapes of SEW-ResNet-18."""
    for dtype, (C, H) in itertools.product((torch.float32, torch.bfloat16), ((64, 56), (512, 7))):
        for connection in (None, "ADD", "AND"):
            block((4, 32, C, H, H), "if", connection, dtype, "cuda", True, True)
        for before in (False, True):
            pooled((4, 32, C, H, H), "if", None, (2, 2, 0), before, dtype, "cuda", True, True)
    stem((4, 32, 64, 112, 112), "if", 4, torch.bfloat16, "cuda", True, True)
    torch.cuda.synchronize()


if __name__ == "__main__":
    run(__doc__, differences, "the CPU kernels", large)
