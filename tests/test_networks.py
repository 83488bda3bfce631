"""The sizes of the registry's networks are those of a run; firing rates over batches that continue one another."""

import pytest
import torch

from sewsnn.analysis import count_operations, firing_rates
from sewsnn.analysis.networks import networks_table, size_of, usual_steps
from sewsnn.errors import UserError
from sewsnn.models import create_model, list_models
from sewsnn.models.published import task_of
from sewsnn.neuron import IFNode

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "name, T, shape", [("sew_cifar10_net", 2, (1, 3, 32, 32)), ("sew_7b_net", 3, (3, 1, 2, 128, 128))]
)
def test_a_size_from_shapes_is_that_of_one_sample(name, T, shape):
    found, run = size_of(name, T), count_operations(create_model(name, T=T).eval(), torch.rand(shape))
    assert (found.T, run.T) == (T, T) and (found.parameters, found.macs) == (run.parameters, run.macs)
    assert (found.neurons, found.neuron_layers) == (run.neurons, run.neuron_layers)
    assert found.macs_per_image == run.macs_per_image
    assert size_of(name).T == 1


def test_usual_steps_are_the_fewest_published():
    assert usual_steps("sew_resnet18") == 4 and usual_steps("sew_resnet") == 4
    for name in list_models():
        steps = task_of(name).steps if task_of(name) else ()
        assert usual_steps(name) == (min(steps) if steps else 4)


def test_every_network_is_a_line_of_the_table():
    lines = {line.split()[0]: line for line in networks_table().splitlines()}
    assert lines.keys() == {"network", *list_models()}
    found = size_of("sew_resnet34")
    for number in (found.parameters, found.neuron_layers, found.neurons, found.macs):
        assert f" {number:,} " in lines["sew_resnet34"] + " "
    assert "3 x 224 x 224" in lines["sew_resnet34"] and lines["sew_resnet"].split()[1:] == ["any", "any"]
    for name, words in (("sew_resnet", "has no fixed size"), ("sew_resnet1", r"is unknown.*sew_resnet1")):
        with pytest.raises(UserError, match=words):
            size_of(name)


def test_rates_of_a_kept_state_continue_over_the_batches_others_begin_anew():
    batches = [torch.full((1, 2, 3), 0.6)] * 4  # the sum reaches 1 with every second batch
    assert firing_rates(IFNode(keep_state=True), batches) == {"": 0.5}
    assert firing_rates(IFNode(), batches) == {"": 0.0}
    assert firing_rates(IFNode(step_mode="s"), [x[0] for x in batches]) == {"": 0.5}
