"""Benchmarks of whole backbones: ours, through their adapters, and beside timm's of the same size."""

import contextlib
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backbones.adapters import AdaptedBackbone, InteractionAdapter, SimpleFPN, TapPyramid, tap_indices
from backbones.benchmark.clock import Row, measure, ratio_line, table
from backbones.defocus import FAMILIES, DefocusMamba
from backbones.resolution import resolution_settings

# timm's backbones of the size of a base model, and the one that every detector was first published with.
PEERS = {
    "ViT-B, global attention": "vit_base_patch16_224",
    "Swin-B": "swin_base_patch4_window7_224",
    "ConvNeXt-B": "convnext_base",
    "ResNet-50": "resnet50",
}


def _images(options: Namespace) -> Tensor:
    return torch.randn(options.batch, 3, options.image_size, options.image_size, device=options.device)


def backbone(options: Namespace) -> None:
    """Images per second of our families."""
    images, rows = _images(options), []
    for name in options.families:
        model = FAMILIES[name](options.arch, section_size=224).to(options.device).eval()
        rows.append(Row(f"{name} {options.arch}", torch.no_grad()(lambda model=model: model(images))))
    measure(rows, options.repeats, options.device)
    print(table(f"Backbone, forward, {options.batch} × {options.image_size}², fp32", rows, rows[0].name))
    for row in rows:
        print(f"\n{row.name}: {options.batch / row.median:.2f} images/s")


def peers(options: Namespace) -> None:
    """Our backbones beside timm's: forward, and a training step up to the gradients; in 16 bits under autocast."""
    images = _images(options)
    models: dict[str, tuple[Any, Callable]] = {}
    for name in options.families:
        net = FAMILIES[name](options.arch, **resolution_settings(options.image_size, 224))
        models[f"{name} {options.arch}"] = (net, lambda images, net=net: net(images)[-1])
    for title, name in PEERS.items():
        peer: Any = _peer(name, options.image_size)
        models[title] = (peer, peer.forward_features)
    for net, _ in models.values():
        net.to(options.device)
    precision = "fp32" if options.dtype == torch.float32 else f"{options.dtype} under autocast"
    for title, step in (("forward", _forward), ("training step", _training_step)):
        rows = [Row(name, step(net, run, images, options)) for name, (net, run) in models.items()]
        measure(rows, options.repeats, options.device)
        print(table(f"Backbones, {title}, {options.batch} × {options.image_size}², {precision}", rows, rows[0].name))
        print()
        for ours in rows[: len(options.families)]:
            for theirs in rows[len(options.families) :]:
                print(ratio_line(title, rows, ours.name, theirs.name))
        print()
    for name, (net, _) in models.items():
        print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters")


def _peer(name: str, image_size: int) -> nn.Module:
    from backbones.integrations.timm import create_peer

    return create_peer(name, image_size)


def _autocast(options: Namespace) -> contextlib.AbstractContextManager:
    if options.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(options.device, options.dtype)


def _forward(net: nn.Module, run: Callable, images: Tensor, options: Namespace) -> Callable[[], object]:
    def forward():
        net.eval()
        with torch.no_grad(), _autocast(options):
            return run(images)

    return forward


def _training_step(net: nn.Module, run: Callable, images: Tensor, options: Namespace) -> Callable[[], object]:
    parameters = list(net.parameters())

    def step():
        net.train()
        with _autocast(options):
            loss = run(images).float().square().mean()
        # Returned, not kept: gradients that stay would count as memory of the next run.
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return step


def _train(model: nn.Module, images: Tensor) -> None:
    sum(m.mean() for m in model(images)).backward()


def adapter(options: Namespace) -> None:
    """Training steps of a Mamba backbone through each adapter, and the adapters' parameters."""
    images = _images(options)
    settings = resolution_settings(options.image_size, 224)
    rows, millions = [], {}
    for kind in (SimpleFPN, TapPyramid, InteractionAdapter):
        depth = DefocusMamba.block.archs[options.arch].depth
        net = DefocusMamba(options.arch, out_indices=tap_indices(depth), **settings)
        model = AdaptedBackbone(net, kind.fit(net, out_channels=256)).to(options.device)
        millions[kind.__name__] = sum(p.numel() for p in model.adapter.parameters()) / 1e6
        rows.append(Row(kind.__name__, partial(_train, model, images)))
    measure(rows, options.repeats, options.device)
    title = f"Mamba {options.arch}, training step, {options.batch} × {options.image_size}², fp32"
    print(table(title, rows, rows[0].name))
    for name, count in millions.items():
        print(f"\n{name}: {count:.2f} M parameters")
