"""Backbones and adapters in two processes: every trainable parameter has its gradient in time."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from backbones import (
    AdaptedBackbone,
    DefocusMamba,
    DefocusRetNet,
    DefocusViT,
    InteractionAdapter,
    SimpleFPN,
    TapPyramid,
)
from tests.forked import start

MAMBA = dict(embed_dims=32, inner_dims=64, depth=4, dt_rank=4, norm_group_dims=32)
SIZES = {
    DefocusMamba: MAMBA,
    DefocusViT: dict(embed_dims=32, depth=4, num_heads=2),
    DefocusRetNet: dict(embed_dims=32, depth=4, num_heads=2, value_dims=64, ffn_dims=48),
}
ADAPTERS = [
    (SimpleFPN, (-1,), dict(out_channels=16)),
    (SimpleFPN, (1,), dict(out_channels=16)),
    (SimpleFPN, (-1,), dict(out_channels=16, start_level=3, num_outs=1)),
    (SimpleFPN, (-1,), dict(out_channels=16, start_level=1, num_outs=6)),
    (TapPyramid, (0, 1, 2, 3), dict()),
    (TapPyramid, (0, 1, 2, 3), dict(out_channels=16, num_outs=5)),
    (InteractionAdapter, (0, 1, 2, 3), dict(num_heads=4)),
    (InteractionAdapter, (1, 3), dict(num_heads=4, start_level=1, num_outs=2)),
    (InteractionAdapter, (3,), dict(num_heads=4, start_level=3, num_outs=2, out_channels=16)),
]


def models():
    for family, arch in SIZES.items():
        for out_indices in [(0,), (0, 2), (-1,)]:
            yield family(arch, out_indices=out_indices)
    # Five blocks, of which the last is no tap.
    yield AdaptedBackbone(net := DefocusMamba({**MAMBA, "depth": 5}, out_indices=(0, 1, 2, 3)), TapPyramid.fit(net))
    for adapter, out_indices, settings in ADAPTERS:
        net = DefocusMamba(MAMBA, out_indices=out_indices)
        yield AdaptedBackbone(net, adapter.fit(net, **settings))


def train(rank, address):
    """Two steps of each model; one that waits for a gradient raises at the second."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    for number, model in enumerate(models()):
        train_one(number, model, rank)
    # A group that is destroyed while its last gathering is cleared away waits for the interpreter, which waits for it.
    dist.barrier()
    dist.destroy_process_group()


def train_one(number, model, rank):
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        try:
            sum(m.square().mean() for m in parallel(torch.randn(1, 3, 40 + 16 * rank, 50))).backward()
        except RuntimeError as error:
            raise AssertionError(f"model {number}: {error}") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            theirs = [torch.empty_like(parameter.grad) for _ in range(2)]
            dist.all_gather(theirs, parameter.grad)
            assert torch.equal(*theirs), (number, name)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes(tmp_path):
    processes = [start(train, rank, f"file://{tmp_path}/rendezvous") for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_each_trainable_parameter_gets_a_gradient():
    for number, model in enumerate(models()):
        sum(m.square().mean() for m in model(torch.randn(1, 3, 40, 50))).backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], (number, without)
