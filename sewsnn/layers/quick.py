"""The call of :func:`sewsnn.layers.bn_neuron` that most networks make in training, with as little Python as possible.

On small images a GPU is done before Python has checked the arguments of the next layer. This path leaves the checks of
the tensors to the compiled op, which makes all of them before it does anything. Calls that are not as usual take the
general path.
"""

from torch import Tensor, nn

from sewsnn.layers.connection import Connection
from sewsnn.layers.norm import for_one_call
from sewsnn.layers.plan import leak_of, may_skip_calls
from sewsnn.neuron import IFNode, LIFNode, ParametricLIFNode
from sewsnn.ops import bn as native
from sewsnn.ops.load import resolve_backend
from sewsnn.ops.reference import state_dtype

_NODES = (IFNode, LIFNode, ParametricLIFNode)  # a derived class may compute something else
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
    surrogate, device = node.surrogate_function, z_seq.device
    if getattr(surrogate, "kind", None) is None or node.backend == "torch":
        return None
    if device not in _devices:
        if device.type == "meta" or resolve_backend(node.backend, device, surrogate) != "native":
            return None
        _devices.add(device)
    state = state_dtype(z_seq.dtype)
    weight, bias, running = for_one_call(norm, state) or (None, None, None)
    if weight is None or running is None or weight.numel() != norm.num_features:
        return None
    v_reset, store_v = node.v_reset, node.store_v
    tau, decay_input, leak = 2.0, True, None
    if node_type is LIFNode:
        tau, decay_input = node.tau, node.decay_input
    elif node_type is ParametricLIFNode:
        decay_input, leak = node.decay_input, leak_of(node.charge_arguments()["w"], state)
    numbers = (  # what numbers_of makes of the options, without making the options
        norm.eps,
        connection.number,
        0,
        node.kind,
        tau,
        decay_input,
        node.v_threshold,
        v_reset is not None,
        0.0 if v_reset is None else v_reset,
        surrogate.kind,
        surrogate.parameter,
        node.detach_reset,
    )
    output = native.bn_neuron_train(z_seq, shortcut, weight, bias, leak, running, numbers, store_v, False, return_skip)
    if store_v:
        node._keep_final_v(output.v)
    return output
