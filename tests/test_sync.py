"""Shared batch statistics: two processes (gloo) with unequal shares of a batch give the results of one process."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from sewsnn import layers, models

SHARES = (slice(0, 2), slice(2, 6))


def network(stem):
    torch.manual_seed(0)
    return models.create_model("sew_resnet", blocks=[1, 1], widths=[8, 16], num_classes=5, stem=stem, T=3).double()


def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 5, (6,), generator=generator)


def _process(rank, port, folder, how, stem):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, (x, y) = network(stem), batch()
    if how == "torch":  # DistributedDataParallel refuses it on the CPU, so the test adds the gradients itself
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapped = model
    else:
        wrapped = nn.parallel.DistributedDataParallel(layers.convert_sync_batchnorm(model))
    x, y = x[SHARES[rank]], y[SHARES[rank]]
    logits = wrapped(x)
    (nn.functional.cross_entropy(logits, y, reduction="sum") / 6 * 2).backward()  # DDP divides by 2
    for p in model.parameters() if how == "torch" else ():
        dist.all_reduce(p.grad)
        p.grad /= 2
    torch.save((logits.detach(), [p.grad for p in model.parameters()], model.state_dict()), f"{folder}/{rank}.pt")
    with pytest.raises(RuntimeError, match="not finite"):  # on both processes, though only one has such values
        model(x if rank else x / 0)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in torch.load(f"{folder}/{rank}.pt")[2].items())
    dist.destroy_process_group()


@pytest.mark.parametrize("how, stem", [("sewsnn", "imagenet"), ("torch", "small")])
def test_two_processes_are_one(how, stem, tmp_path):
    model, (x, y) = network(stem), batch()
    logits = model(x)
    nn.functional.cross_entropy(logits, y).backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (port, str(tmp_path), how, stem), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([r[0] for r in results]), logits.detach(), rtol=1e-9, atol=1e-9)
    for _, grads, state in results:
        for actual, p in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(actual, p.grad, rtol=1e-9, atol=1e-11)
        for name, expected in model.state_dict().items():
            torch.testing.assert_close(state[name], expected, rtol=1e-12, atol=1e-12)


def test_alone_nothing_changes():
    model = layers.convert_sync_batchnorm(network("small"))
    assert model.state_dict().keys() == network("small").state_dict().keys()
    model(batch()[0])
    with pytest.raises(TypeError, match="model must be a module"):
        layers.convert_sync_batchnorm(None)


def test_every_norm_gets_the_group():
    """The group that is asked for, or all processes; nothing else of the network is marked."""
    model, group = network("small"), object()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in model.modules() if m not in norms]
    for given, expected in ((None, "world"), (group, group)):
        layers.convert_sync_batchnorm(model, given)
        assert norms and all(m.process_group == expected for m in norms)
    assert not any(hasattr(m, "process_group") for m in others)
    assert layers.BNNeuron(4, process_group=group).process_group is group
