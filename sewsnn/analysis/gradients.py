"""The norm of the gradient at each block, measured and by equation S4: :func:`gradient_norms`."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sewsnn.analysis.blocks import blocks_of, last_neuron
from sewsnn.analysis.watching import evaluating
from sewsnn.models.blocks import Block
from sewsnn.neuron import IFNode


class BlockGradient(NamedTuple):
    """The gradient at one block. L is the cross entropy of the mean logits, S^l the input and O^l the output.

    Attributes:
        name: its name in ``model.named_modules()``.
        residual: ``"sew"``, ``"spiking"`` or ``"plain"``.
        downsample: its shortcut has a convolution, since it changes the shape.
        follows: its input S^l is the output O^(l-1) of the block before, with no pooling between them.
        rate: Phi, spikes per neuron and time-step of S^l; above 1 where ADD has added spikes.
        elements: N T, the number of elements of S^l over all samples, neurons and time-steps.
        norm: ||dL/dS^l||, the L2 norm over all elements.
        norm_output: ||dL/dO^l||, before a pooling.
        factors: Theta'(1 - V_th) and Theta'(0 - V_th), by which the block multiplies dL/dO^l; (1.0, 1.0) for an
            identity block of a SEW network (main paper, equation 9). None: the block is not an identity, or its
            neurons are not those of equation S1, and nothing is predicted.
        element_wise: ||dL/dS^l|| computed element by element from dL/dO at the end of the row of identity blocks,
            including what flows to S[t] from later time-steps; None where nothing is predicted.
    """

    name: str
    residual: str
    downsample: bool
    follows: bool
    rate: float
    elements: int
    norm: float
    norm_output: float
    factors: tuple[float, float] | None
    element_wise: float | None


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> list[BlockGradient]:
    """Measures ||dL/dS^l|| and ||dL/dO^l|| at every block, for one batch in training mode.

    L is the cross entropy of the mean logits, averaged over the batch. Batch norm uses the statistics of the batch.
    Norms are summed in float64. The model does not change: modes, buffers (running statistics), neuron states, hooks
    and ``grad`` of the parameters are as before.

    Args:
        model: a network of :mod:`sewsnn.models`.
        x: input ``[N, C, H, W]`` or ``[T, N, C, H, W]``, on the model's device.
        y: labels ``[N]``.

    Returns:
        One :class:`BlockGradient` for each block, in the order of the network.

    Raises:
        ValueError: there is no block.

    Source: main paper, section 3.2; supplement, A.4.

    Example:
        >>> net = sewsnn.models.create_model("spiking_cifar10_net", zero_init_residual=True)
        >>> found = gradient_norms(net, torch.rand(2, 3, 32, 32), torch.tensor([3, 7]))
        >>> predicted = predicted_norms(found)
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks of sewsnn.models")
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def before(name):
        def hook(module, args):
            s_seq = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()  # all weights are frozen
            inputs[name] = s_seq
            return (s_seq, *args[1:])

        return hook

    with _training(model) as hooks, torch.enable_grad():
        for name, block in blocks:
            hooks.append(block.register_forward_pre_hook(before(name)))
            hooks.append(
                block.register_forward_hook(lambda m, args, o_seq, name=name: outputs.__setitem__(name, o_seq))
            )
        loss = cross_entropy(model(x, return_seq=False), y)
        # Gradients of the blocks' inputs and outputs only: autograd skips those of the weights.
        asked = [tensors[name] for name, _ in blocks for tensors in (inputs, outputs)]
        grads = torch.autograd.grad(loss, asked)
    return _found(blocks, inputs, outputs, grads)


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[list]:
    """Puts the model in training mode with its neurons at rest; restores it and its buffers afterwards."""
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [{name: None if b is None else b.clone() for name, b in found.items()} for _, found in buffers]
    with evaluating(model) as hooks:
        model.train()
        try:
            yield hooks
        finally:
            with torch.no_grad():
                for (module, found), saved in zip(buffers, values, strict=True):
                    module._buffers.update(found)
                    for name, buffer in found.items():
                        if buffer is not None:
                            buffer.copy_(saved[name])


def _found(blocks, inputs, outputs, grads) -> list[BlockGradient]:
    found: list[BlockGradient] = []
    flowing: Tensor | None = None  # dL/dS of the block after this one, computed element by element
    follows = [i > 0 and inputs[name] is outputs[blocks[i - 1][0]] for i, (name, _) in enumerate(blocks)]
    for i in reversed(range(len(blocks))):
        name, block = blocks[i]
        s_seq, (at_input, at_output) = inputs[name].detach(), grads[2 * i : 2 * i + 2]
        factors = _factors(block, s_seq, outputs[name].detach())
        if factors is None:
            flowing = None
        else:
            goes_on = flowing is not None and follows[i + 1]
            flowing = _through(block, s_seq.double(), flowing if goes_on else at_output.double(), factors)
        one = BlockGradient(
            name=name,
            residual=block.style.residual,
            downsample=block.downsample is not None,
            follows=follows[i],
            rate=float(s_seq.sum(dtype=torch.float64)) / s_seq.numel(),
            elements=s_seq.numel(),
            norm=_norm(at_input),
            norm_output=_norm(at_output),
            factors=factors,
            element_wise=None if flowing is None else _norm(flowing),
        )
        found.insert(0, one)
    return found


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _factors(block: Block, s_seq: Tensor, o_seq: Tensor) -> tuple[float, float] | None:
    """Theta'(1 - V_th) and Theta'(0 - V_th) of an identity block; None if it is none, or if h = S does not hold."""
    weight = block.last_bn.weight
    branch_is_off = weight is not None and not weight.any()  # no gradient flows through the branch
    if block.style.residual == "plain" or block.downsample is not None or not branch_is_off:
        return None
    if not torch.equal(s_seq, o_seq):
        return None
    if block.style.residual == "sew":
        return 1.0, 1.0
    node = last_neuron(block)
    if not isinstance(node, IFNode) or node.v_reset != 0:
        return None  # h = S needs an IF neuron whose potential is 0 after each time-step
    x = torch.tensor([1.0, 0.0], dtype=torch.float64) - node.v_threshold
    at_1, at_0 = node.surrogate_function.gradient(x).tolist()
    return at_1, at_0


def _through(block: Block, s_seq: Tensor, grad: Tensor, factors: tuple[float, float]) -> Tensor:
    """dL/dS of an identity block from dL/dO = ``grad``. In a Spiking block the membrane potential carries gradient from
    each time-step to the one before, in the neurons that did not fire there:

        dL/dS[t] = dL/dO[t] Theta'(S[t] - V_th) + (1 - S[t]) dL/dS[t + 1]
    """
    if block.style.residual == "sew":
        return grad
    at_1, at_0 = factors
    theta = s_seq * at_1 + (1 - s_seq) * at_0
    kept = 1 - s_seq  # dv/dh
    if not last_neuron(block).detach_reset:
        kept = kept - s_seq * theta  # v = h (1 - s) has the derivative -h Theta' as well, and h = S
    found = grad * theta
    for t in reversed(range(len(found) - 1)):
        found[t] += kept[t] * found[t + 1]
    return found


def predicted_norms(found: Sequence[BlockGradient]) -> list[float | None]:
    """Predicts ||dL/dS^l|| by equation S4 for the identity blocks; all others restart the prediction.

    For the block l of a row of identity blocks that ends k - 1 blocks later,

        ||dL/dS^l|| = ||dL/dO^(l+k-1)|| sqrt(Phi a^(2k) + (1 - Phi) b^(2k)),  a = Theta'(1 - V_th), b = Theta'(0 - V_th)

    where ||dL/dO^(l+k-1)|| is measured and Phi is the firing rate of S^l. A SEW block has a = b = 1 (main paper,
    equation 9), so that the norm is constant within the row.

    Equation S4 is printed without the squares, which an L2 norm needs. Its factor sqrt(N T) belongs to the norm of the
    product, a vector of N T elements. The product of the two norms is the norm of the element-wise product only in the
    mean square: the formula here assumes that dL/dO does not depend on whether a neuron fired. Under that assumption
    it is exact for T = 1. For T > 1 it leaves out the gradient that reaches S[t] from later time-steps through the
    membrane potential of a silent neuron. ``BlockGradient.element_wise`` needs no assumption and includes that path.

    Args:
        found: the result of :func:`gradient_norms`.

    Returns:
        One norm for each block, in order; None for a block that is not an identity.

    Source: supplement, equations S1 to S4; main paper, equation 9.
    """
    predicted: list[float | None] = []
    end, a_k, b_k = 0.0, 1.0, 1.0  # of the row: ||dL/dO|| at its end, a^k, b^k
    in_row = False
    for block in reversed(found):
        if block.factors is None:
            predicted.append(None)
            in_row = False
            continue
        if not in_row:
            end, a_k, b_k = block.norm_output, 1.0, 1.0
        a_k, b_k = a_k * block.factors[0], b_k * block.factors[1]
        squares = a_k**2 if a_k == b_k else block.rate * a_k**2 + (1 - block.rate) * b_k**2
        predicted.append(end * squares**0.5)
        in_row = block.follows
    return predicted[::-1]
