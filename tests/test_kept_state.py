"""Nodes that keep their state: with activation checkpointing, in torch.func transforms, across dtypes and modes."""

import copy
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from sewsnn import analysis, functional, layers, models, neuron
from sewsnn.layers.plan import by_modules, plan

NODES = [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode]
MODES = [{"keep_state": True}, {"step_mode": "s"}, {}]


def gradients(node, reentrant, *, reset_inside=False, calls=3, inside=1, chain=False):
    """Gradients of a linear layer before the node, over several calls; ``reentrant=None``: no checkpointing."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 6).double()
    node = copy.deepcopy(node).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)

    def body(z):
        if reset_inside:
            functional.reset_net(node)
        total = 0
        for k in range(inside):
            y = linear(z + 0.3 * k)
            total = total + (node(y[0]) if node.step_mode == "s" else node(y)) * (k + 1)
        return total

    loss = 0
    for k in range(calls):
        z = x * (1 + k)
        s = body(z) if reentrant is None else checkpoint(body, z, use_reentrant=reentrant)
        loss = loss + (s * (k + 1)).sum()
    loss.backward()
    return linear.weight.grad, x.grad, *(p.grad for p in node.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("cls", NODES)
def test_activation_checkpointing_gives_right_gradients_or_an_error(cls, mode, reentrant):
    node = cls(**mode)
    for arguments in ({}, {"calls": 1}, {"inside": 2}, {"reset_inside": True}, {"reset_inside": True, "inside": 3}):
        expected = gradients(node, None, **arguments)
        if node.keeps_state and not arguments.get("reset_inside"):
            with pytest.raises(RuntimeError, match="at the beginning of the checkpointed function"):
                gradients(node, reentrant, **arguments)
        else:
            for found, right in zip(gradients(node, reentrant, **arguments), expected, strict=True):
                torch.testing.assert_close(found, right)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("trick", ["reset before backward", "detach before backward", "to before backward"])
def test_a_state_changed_before_backward_is_no_way_around(reentrant, trick):
    """The second call starts from the state of the first. A repetition from another state would be silently wrong."""
    node, x = neuron.IFNode(keep_state=True), torch.randn(3, 4, requires_grad=True)
    loss = sum(checkpoint(node, x * k, use_reentrant=reentrant).sum() for k in (1, 2))
    {"reset before backward": node.reset, "detach before backward": node.detach}.get(trick, node.double)()
    with pytest.raises(RuntimeError, match="checkpoint"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_state_that_is_passed_in_and_out_is_right(reentrant):
    """The state is assigned inside the function, so that the repetition also has it."""

    def gradient(wrap):
        node, x = neuron.LIFNode(keep_state=True), torch.linspace(-1, 3, 24).view(2, 3, 4).requires_grad_()

        def body(x, v):
            node.v = v
            return node(x), node.v

        v, loss = torch.zeros(3, 4), 0
        for k in range(1, 4):
            s, v = checkpoint(body, x * k, v, use_reentrant=reentrant) if wrap else body(x * k, v)
            loss = loss + (s * k).sum()
        loss.backward()
        return x.grad

    torch.testing.assert_close(gradient(True), gradient(False))


@pytest.mark.parametrize("reentrant", [True, False])
def test_fused_blocks_and_networks(reentrant):
    torch.manual_seed(0)
    block, z = layers.BNNeuron(4), torch.randn(2, 3, 4, 5, 5, requires_grad=True)
    (block(z) ** 2).sum().backward()
    expected, z.grad = z.grad, None
    (checkpoint(block, z, use_reentrant=reentrant) ** 2).sum().backward()
    torch.testing.assert_close(z.grad, expected)
    kept = layers.BNNeuron(4, neuron.IFNode(keep_state=True))
    with pytest.raises(RuntimeError, match="checkpointed function"):
        checkpoint(kept, z, use_reentrant=reentrant).sum().backward()
    net = models.create_model("sew_resnet", blocks=[1], widths=[4], num_classes=3)
    functional.set_step_mode(net, "s")
    frame = torch.randn(2, 3, 32, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="checkpointed function"):
        checkpoint(net, frame, use_reentrant=reentrant).sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", ["detached by hand", "copied", "looked at"])
def test_a_state_put_back_between_forward_and_backward_is_no_way_around(reentrant, how):
    node = neuron.LIFNode(keep_state=True)
    node.v = torch.zeros(4, 6)
    x = torch.randn(3, 4, 6, requires_grad=True)
    s = checkpoint(node, x * 3, use_reentrant=reentrant)
    if how == "looked at":
        analysis.firing_rates(node, [x.detach()])
    else:
        node.v = node.v.detach() if how == "detached by hand" else node.v.clone()
    with pytest.raises(RuntimeError, match="assign v at the beginning of the checkpointed function"):
        s.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_state_assigned_in_the_checkpointed_function_is_right(reentrant):
    node, v = neuron.LIFNode(keep_state=True), torch.rand(4, 6)
    x = torch.randn(3, 4, 6, requires_grad=True)

    def body(z):
        node.v = v
        return node(z)

    found = []
    for run in (body, lambda z: checkpoint(body, z, use_reentrant=reentrant)):
        x.grad = None
        run(x).sum().backward()
        found.append(x.grad.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "name, value, kind",
    [
        ("step_mode", "S", ValueError),
        ("backend", "cuda", ValueError),
        ("tau_grad", "Full", ValueError),
        ("decay_input", "no", TypeError),
        ("detach_reset", "no", TypeError),
        ("store_v_seq", 2, TypeError),
        ("store_v", None, TypeError),
    ],
)
def test_settings_are_checked_at_assignment_as_in_the_constructor(name, value, kind):
    node = neuron.ParametricLIFNode()
    before = getattr(node, name)
    with pytest.raises(kind, match=f"{name} must be"):
        setattr(node, name, value)
    with pytest.raises(kind, match=f"{name} must be"):
        neuron.ParametricLIFNode(**{name: value})
    assert getattr(node, name) == before
    node.detach_reset = 0
    assert node.detach_reset is False


@pytest.mark.parametrize("value", [nn.Parameter(torch.tensor(0.7)), torch.tensor(0.7), True, "1"], ids=repr)
@pytest.mark.parametrize("name", ["v_threshold", "v_reset", "tau"])
def test_a_setting_that_would_not_be_trained_is_refused_at_assignment(name, value):
    node = neuron.LIFNode()
    before = getattr(node, name)
    with pytest.raises(TypeError, match=f"{name} must be a number, got"):
        setattr(node, name, value)
    assert getattr(node, name) == before and not list(node.parameters())
    with pytest.raises(ValueError, match=name):
        setattr(node, name, float("nan"))
    setattr(node, name, np.float32(2.5))
    assert type(getattr(node, name)) is float and "tau=0.5" not in repr(node)
    with pytest.raises(ValueError, match="tau must be at least 1"):
        node.tau = 0.5


@pytest.mark.parametrize("options", [{}, {"store_v_seq": True}, {"backend": "torch"}], ids=str)
@pytest.mark.parametrize("make", [*NODES, None], ids=str)
def test_nothing_of_a_transform_that_has_ended_is_kept(make, options):
    module = layers.BNNeuron(4, neuron.IFNode(**options)).eval() if make is None else make(**options)
    node = module.neuron if make is None else module
    x = torch.randn(3, 2, 5, 4, 3)
    vmap(grad(lambda x: (module(x) ** 2).sum()))(x)
    assert node.v is None and node.v_seq is None
    copy.deepcopy(module)
    torch.save(module, io.BytesIO())
    module.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in module.parameters()) and repr(node.v)
    module.float()(x[0])
    assert node.v.shape == (5, 4, 3) and repr(node.v)


def test_a_state_that_was_put_away_is_not_kept_alive():
    node, x = neuron.IFNode(keep_state=True), torch.randn(2, 3, requires_grad=True)
    node(x)
    before = weakref.ref(node.v)
    node.v = None
    assert before() is None


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_potentials_of_a_class_of_tensors_of_ones_own_are_kept(backend):
    class Own(torch.Tensor):
        pass

    node = neuron.IFNode(backend=backend)
    node(torch.randn(2, 3).as_subclass(Own))
    assert node.v.shape == (3,)


def test_a_kept_state_cannot_enter_a_transform():
    for node in (neuron.IFNode(keep_state=True), neuron.IFNode(step_mode="s")):
        with pytest.raises(RuntimeError, match=r"inside a torch\.func transform"):
            vmap(lambda x, node=node: node(x))(torch.randn(2, 3, 4))
        assert node.v is None


def test_nothing_of_a_tracer_is_kept():
    from torch._subclasses import FakeTensorMode

    node = neuron.IFNode()
    with FakeTensorMode():
        node(torch.randn(2, 3))
    assert node.v is None


def test_forward_mode_says_that_there_is_only_reverse_mode():
    x = torch.randn(2, 3)
    nodes = [neuron.IFNode(), neuron.IFNode(backend="torch"), neuron.ParametricLIFNode(), layers.BNNeuron(3).eval()]
    for node in nodes:
        y = x if not isinstance(node, layers.BNNeuron) else torch.randn(2, 1, 3, 2)
        with pytest.raises(NotImplementedError, match="only for reverse mode"):
            torch.func.jvp(node, (y,), (y,))


def test_states_and_parameters_of_another_kind():
    x = torch.randn(2, 3, 4)
    nested = torch.nested.nested_tensor([torch.zeros(4)] * 3)
    for v in (torch.eye(3, 4).to_sparse(), torch.eye(3, 4).to_sparse_csr(), nested):
        with pytest.raises(TypeError, match="v must be a dense"):
            functional.if_multistep(x, v)
    with pytest.raises(TypeError, match="w must be a dense"):
        functional.plif_multistep(x, torch.ones(1).to_sparse())
    with pytest.raises(ValueError, match="vmap needs at least one sample"):
        vmap(lambda x: functional.if_multistep(x)[0])(torch.randn(0, 2, 3))
    node = neuron.IFNode(keep_state=True)
    node(x)
    with pytest.raises(TypeError, match=r"reset\(\) before another dtype"):
        node(x.double())
    node.reset()
    with torch.inference_mode():
        node(x)
    x.requires_grad_()
    node(x).sum().backward()  # goes on from it
    assert x.grad is not None
    with torch.inference_mode():
        v = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"v was made in torch\.inference_mode"):
        functional.if_multistep(x, v)


def test_fusing_is_a_matter_of_each_thread():
    """After two exports at the same time, fusion is still on."""
    inside, leave = threading.Event(), threading.Event()

    def export():
        with by_modules():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=export)
    thread.start()
    inside.wait(10)
    block, z = layers.BNNeuron(3), torch.randn(2, 2, 3, 4, 4)
    assert plan(z, block, block.neuron) is not None
    with by_modules():
        leave.set()
        thread.join()
        assert plan(z, block, block.neuron) is None
    assert plan(z, block, block.neuron) is not None
