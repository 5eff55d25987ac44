"""Predictions of a trained model as COCO's results or label maps, and their official scores."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from backbones.integrations.frameworks import needed
from backbones.integrations.transformers_training.data import CocoImages, LabelledImages, LabelMapImages
from defocus_eval.evaluate import evaluate
from defocus_eval.files import replacing, write_text
from defocus_eval.progress import with_progress

with needed("transformers"), needed("accelerate"):
    from accelerate import PartialState
    from accelerate.utils import gather_object

# Detections of an image that COCO's evaluation counts.
MOST = 100
FILES = {"boxes": "predictions.bbox.json", "masks": "predictions.segm.json", "semantic": "predictions"}


def predict_and_score(
    model: nn.Module, processor, dataset: LabelledImages, task: str, folder: Path, batch_size: int, bf16: bool = False
) -> dict[str, Any] | None:
    """Writes a model's predictions for a data set and scores them; several processes share the images.

    Args:
        model: In every process, on its device.
        processor: Of the model.
        dataset: What to predict.
        task: "boxes", "masks" or "semantic".
        folder: Where the predictions go: `FILES`.
        batch_size: Images at once.
        bf16: Whether to predict under bf16 autocast.

    Returns:
        As of `defocus_eval.evaluate.evaluate`, and so as of ``defocus evaluate`` with ``--samples 0``; None in all
        processes but the first.
    """
    state = PartialState()
    path = folder / FILES[task]
    (path if task == "semantic" else folder).mkdir(parents=True, exist_ok=True)
    mine = range(state.process_index, len(dataset), state.num_processes)
    predict = {"boxes": _boxes, "masks": _masks, "semantic": partial(_label_maps, folder=path)}[task]
    entries = []
    with evaluating(model, bf16):
        for indices in with_progress(_chunks(mine, batch_size), -(-len(mine) // batch_size), "Predicting", "batch"):
            samples = [dataset.read(index) for index in indices]
            images = [sample["image"].as_subclass(Tensor) for sample in samples]
            inputs = processor(images=images, return_tensors="pt").to(next(model.parameters()).device)
            sizes = [tuple(image.shape[-2:]) for image in images]
            entries += predict(model(**inputs), processor, dataset, indices, sizes)
    if state.num_processes > 1:
        entries = gather_object(entries)
    if not state.is_main_process:
        return None
    if task != "semantic":
        write_text(path, json.dumps(entries))
    names = {"classes": dataset.names, "ignore_label": dataset.ignore_label} if task == "semantic" else {}
    return evaluate(path, dataset.annotations, samples=0, **names)


def main_scores(result: dict[str, Any]) -> dict[str, float]:
    """The scores that a log shows, by the names that `defocus_eval.logs` knows."""
    scores = {}
    for task in ("bbox", "segm"):
        if task in result:
            scores |= {f"{task}_mAP": result[task]["AP"], f"{task}_mAP_50": result[task]["AP50"]}
    if "semantic" in result:
        scores["mIoU"] = 100 * result["semantic"]["mIoU"]
    return scores


@contextlib.contextmanager
def evaluating(model: nn.Module, bf16: bool) -> Iterator[None]:
    """A model in evaluation, without gradients, which goes on afterwards as it was."""
    training = model.training
    device = next(model.parameters()).device.type
    # Not inference_mode: RT-DETR keeps its anchors for the next training step.
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def _chunks(indices: range, size: int) -> list[range]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _boxes(outputs, processor, dataset: CocoImages, indices: range, sizes: list) -> list[dict]:
    """COCO's results of a batch, the best of each image."""
    entries = []
    results = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=torch.tensor(sizes))
    for index, (height, width), result in zip(indices, sizes, results, strict=True):
        best = result["scores"].float().argsort(descending=True, stable=True)[:MOST]
        corners = result["boxes"][best].double().cpu().clamp(min=0)
        corners = corners.minimum(corners.new_tensor([width, height, width, height]))
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        rows = zip(boxes.tolist(), result["scores"][best].tolist(), result["labels"][best].tolist())
        image_id = dataset.records[index]["id"]
        entries += [
            {"image_id": image_id, "category_id": dataset.category_ids[label], "score": score, "bbox": box}
            for box, score, label in rows
        ]
    return entries


def _masks(outputs, processor, dataset: CocoImages, indices: range, sizes: list) -> list[dict]:
    """The same with masks."""
    entries = []
    results = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
    )
    for index, result in zip(indices, results, strict=True):
        segments = sorted(result["segments_info"], key=lambda segment: -segment["score"])[:MOST]
        for segment in segments:
            mask = result["segmentation"][segment["id"]].cpu().numpy().astype(np.uint8)
            code = coco_mask.encode(np.asfortranarray(mask))
            entry = {
                "image_id": dataset.records[index]["id"],
                "category_id": dataset.category_ids[segment["label_id"]],
                "score": segment["score"],
                "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
            }
            entries.append(entry)
    return entries


def _label_maps(outputs, processor, dataset: LabelMapImages, indices: range, sizes: list, folder: Path) -> list:
    """Writes the label maps of a batch, called like those of the ground truth."""
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for index, labels in zip(indices, maps, strict=True):
        path = folder / dataset.pairs[index][1].relative_to(dataset.annotations)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            Image.fromarray(labels.cpu().numpy().astype(np.uint8)).save(temporary, "PNG")
    return []
