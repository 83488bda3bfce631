"""The CUDA kernels of every neuron on the host, compared with the reference. A new neuron needs no new test."""

import dataclasses
import functools

import bn_host
import host
import pytest
import torch
from every_kind import NODES, cases, compare, inputs
from test_bn_kernels import compare as compare_block

pytestmark = pytest.mark.usefixtures("one_thread")
FIELDS = dataclasses.fields(bn_host.Block)
every_node = pytest.mark.parametrize("name", NODES)


def by_kernels(x, state, learnt, spec, layout):
    return host.by_spec(spec, x, state, learnt, layout=layout, v_mode=2)


@every_node
def test_equals_the_reference(name):
    for i, (settings, T, dtype, given, channels) in enumerate(cases(name)):
        node = NODES[name](**settings)
        on_host = functools.partial(by_kernels, layout=host.Layout(gap=i % 2))
        compare(on_host, node.spec(), *inputs(node, T, dtype, given, channels))


@every_node
def test_after_batch_norm(name):
    for i, (settings, T, dtype, _, channels) in enumerate(cases(name)):
        if T > 16 and (dtype != torch.float64 or settings.get("v_reset", 0) is None):
            continue  # rounding decides which neurons fire; potentials and gradients may grow without bound
        node = NODES[name](**settings)
        spec, (x, _, learnt) = node.spec(), inputs(node, T, dtype, False, channels)
        numbers = {field.name: getattr(spec, field.name) for field in FIELDS if hasattr(spec, field.name)}
        numbers["leak"] = None if learnt is None else learnt.detach().double()
        chosen = {"connect": ("add", "add_before", None)[i % 3], "channels_last": i % 2 == 0}
        block = bn_host.Block(spec.kind, **chosen, **numbers)
        compare_block(block, dtype, tuple(x.shape))
