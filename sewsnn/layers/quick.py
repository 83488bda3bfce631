"""The call of :func:`sewsnn.layers.bn_neuron` that most networks make in training, with as little Python as possible.

On small images a GPU is done before Python has checked the arguments of the next layer. This path leaves the checks of
the tensors to the compiled op, which makes all of them before it does anything. Calls that are not as usual take the
general path.
"""

from torch import Tensor, nn

from sewsnn import neuron
from sewsnn.layers.connection import Connection
from sewsnn.layers.norm import for_one_call
from sewsnn.layers.plan import may_skip_calls
from sewsnn.ops import bn as native
from sewsnn.ops.reference import NEURONS, state_dtype

# A class that is derived from one of these may compute something else.
_NODES = frozenset(getattr(neuron, name) for name in neuron.__all__ if name != "BaseNode")
_devices = set()  # those on which the compiled kernels have been found to run


def train(
    z_seq: Tensor,
    norm: nn.Module,
    node: nn.Module,
    shortcut: Tensor | None,
    connection: Connection,
    return_skip: bool,
) -> native.Output | None:
    """Runs the op, or returns None: the general path must run.

    The arguments are those of :func:`sewsnn.layers.bn_neuron`. Only the connection has been checked.

    Raises:
        sewsnn.ops.bn.Refused: the op raised an error; there may be a clearer one.
    """
    node_type = type(node)
    if node_type not in _NODES or not getattr(norm, "training", False) or type(z_seq) is not Tensor:
        return None  # other classes of tensors, for example FakeTensor, may run no compiled op
    if not may_skip_calls(norm, node):
        return None
    spec, device = node.__dict__.get("_spec") or node.spec(), z_seq.device
    if node.backend == "torch" or spec.missing:
        return None
    if device not in _devices:
        if device.type == "meta" or not node.runs_native(device):
            return None
        _devices.add(device)
    state = state_dtype(z_seq.dtype)
    weight, bias, running = for_one_call(norm, state) or (None, None, None)
    if weight is None or running is None or weight.numel() != norm.num_features:
        return None
    leak, store_v, model = None, node.store_v, NEURONS[spec.kind]
    if model.learnt:
        if model.per_channel and z_seq.dim() > 2:  # the op takes one channel's parameters for those of a layer
            node.check_channels("z_seq", z_seq.shape, 2)
        leak = node.learnt_parameters(state)
    numbers = (norm.eps, connection.number, 0, *spec.numbers)
    output = native.bn_neuron_train(z_seq, shortcut, weight, bias, leak, running, numbers, store_v, False, return_skip)
    if store_v:
        node._keep_final_v(output.v)
        if node.state_names != ("v",):
            output = with_potential(output)
    return output


def with_potential(output: native.Output) -> native.Output:
    """The output with the membrane potential as ``v``, where the op returns several states: it is the first of them."""
    return output._replace(v=output.v[0])
