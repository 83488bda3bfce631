"""The published results: each belongs to a network of the registry and to its task."""

from sewsnn.models import create_model, list_models
from sewsnn.models.published import RESULTS, TASKS, published, task_of
from sewsnn.models.sew_resnet import FREE_SIZE


def test_results_belong_to_networks_and_tasks():
    for result in RESULTS:
        assert result.network in list_models() and task_of(result.network) is TASKS[result.data]
        assert 0 < result.accuracy < 100 and result.source
        assert result.T is None or result.T in TASKS[result.data].steps
    assert len({r[:2] + r[4:] for r in RESULTS}) == len(RESULTS), "a setting has two results"


def test_every_network_of_a_fixed_size_has_a_task():
    assert [name for name in list_models() if task_of(name) is None] == sorted(FREE_SIZE)
    for name in ("sew_resnet18", "spiking_7b_net", "sew_wide_7b_net", "sew_cifar10_net"):
        task, net = task_of(name), create_model(name)
        first = next(m for m in net.modules() if hasattr(m, "in_channels"))
        assert first.in_channels == task.input_shape[0] and net.fc.out_features == task.classes


def test_published_narrows_down():
    assert [r.accuracy for r in published("sew_resnet18")] == [63.18, 62.81]
    assert [r.accuracy for r in published("sew_resnet18", epoch="last")] == [62.81]
    assert [r.connect_f for r in published("sew_7b_net")] == ["ADD", "IAND", "AND"]
    assert published("sew_resnet") == []
