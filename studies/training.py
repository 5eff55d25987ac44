"""One run of the study: a small network trained, tested and measured, its result written whole or not at all.

The loop is plain PyTorch: at a hundred seconds a run, a runner's hooks, logs and checkpoints would be most of the code.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from backbones.classifier import DefocusClassifier
from backbones.drop_path_schedule import DropPathSchedule
from defocus_eval.files import replacing, write_text
from studies.measures import layer_numbers
from studies.runs import Run
from studies.scattered_shapes import KINDS, draw
from studies.variants import Variant


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share.

    Attributes:
        side: Of the images, in pixels.
        steps: Of training.
        train_images: Drawn once; each epoch sees them mirrored at random.
        test_images: For the accuracy.
        measured_images: The first of the test images, for maps and their numbers.
        batch: Images in a step.
        learning_rate: Of AdamW at its highest.
        patch_size: Side of a token in pixels.
        sizes: ``arch`` by family.
    """

    side: int
    steps: int
    train_images: int
    test_images: int
    measured_images: int
    batch: int
    learning_rate: float
    patch_size: int
    sizes: dict[str, dict]


def identity(variant: Variant, settings: Settings) -> dict:
    """All that a result depends on but its seed, as JSON gives it back: a result with another one is another's."""
    return json.loads(json.dumps(dict(variant=asdict(variant), settings=asdict(settings))))


def to_input(images) -> Tensor:
    """uint8 images as the network takes them, scaled as the demo's detector scales its own."""
    return (torch.as_tensor(images).float() - 127.5) / 60


def train(model: DefocusClassifier, variant: Variant, settings: Settings, seed: int) -> Iterator[float]:
    """Trains ``model`` on drawn images, yielding the loss of each step.

    Args:
        model: The network, with its initial values.
        variant: How it is trained.
        settings: Of the study.
        seed: Of the order of the images, mirroring and drop path.
    """
    data = draw(settings.train_images, settings.side, "train")
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(_groups(model), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    drop_path = DropPathSchedule(model, *variant.drop_path, settings.steps)
    order = _order(settings)
    model.train()
    for step in range(settings.steps):
        drop_path.step(step)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _warm_cosine(step, settings.steps)
        chosen = order[step]
        mirrored = torch.rand(len(chosen), 1, 1, 1) < 0.5
        x = to_input(images[chosen])
        loss = model.loss(torch.where(mirrored, x.flip(-1), x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def _groups(model: DefocusClassifier) -> list[dict]:
    """Parameters with and without weight decay."""
    spared = model.no_weight_decay()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        dict(params=[p for name, p in trained if (name in spared) == without], weight_decay=0.0 if without else 0.05)
        for without in (False, True)
    ]


def _order(settings: Settings) -> Tensor:
    """Which images each step sees, `(steps, batch)`: whole epochs in a new order each."""
    wanted = settings.steps * settings.batch
    epochs = -(-wanted // settings.train_images)
    order = torch.cat([torch.randperm(settings.train_images) for _ in range(epochs)])
    return order[:wanted].view(settings.steps, settings.batch)


def _warm_cosine(step: int, steps: int) -> float:
    """Share of the learning rate: up in the first twentieth, down along a cosine."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@torch.no_grad()
def accuracy(model: DefocusClassifier, images: Tensor, labels: Tensor, batch: int = 100) -> float:
    """Share of the images whose class the class token's head finds."""
    model.eval()
    right = sum((model(x).argmax(1) == y).sum() for x, y in zip(images.split(batch), labels.split(batch)))
    return right.item() / len(labels)


def make_result(key: str, variant: Variant, seed: int, settings: Settings) -> tuple[dict, DefocusClassifier]:
    """Trains, tests and measures one network.

    Args:
        key: Of the variant, for the result.
        variant: The network.
        seed: Of its initial values and its training.
        settings: Of the study.

    Returns:
        What is known of it, as JSON takes it, and the network.
    """
    start = time.monotonic()
    torch.manual_seed(seed)
    model = variant.build(settings.sizes[variant.family], num_classes=len(KINDS), patch_size=settings.patch_size)
    losses = []
    for step, loss in enumerate(train(model, variant, settings, seed), 1):
        losses.append(loss)
        if step % max(settings.steps // 10, 1) == 0:
            print(f"step {step}/{settings.steps}: loss {fmean(losses[-100:]):.3f}", flush=True)
    trained = time.monotonic() - start
    test = draw(settings.test_images, settings.side, "test")
    images, labels = to_input(test.images), torch.from_numpy(test.labels)
    few = slice(settings.measured_images)
    result = dict(
        variant=key,
        seed=seed,
        settings=identity(variant, settings),
        accuracy=accuracy(model, images, labels),
        loss=fmean(losses[-100:]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=layer_numbers(model, images[few], labels[few]),
        training_seconds=trained,
        processor_seconds=time.process_time(),
        seconds=time.monotonic() - start,
    )
    return result, model


def write_result(result: dict, model: DefocusClassifier, folder: Path) -> None:
    """Leaves the weights and then the result in ``folder``, each whole or not at all."""
    run = Run(result["variant"], result["seed"])
    with replacing(run.file(folder, ".pth")) as file:
        torch.save({"model": model.state_dict()}, file)
    write_text(run.file(folder), json.dumps(result, indent=1) + "\n")
