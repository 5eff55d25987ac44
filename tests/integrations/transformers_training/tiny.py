"""Small data sets and nets for the tests of training with transformers."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

BACKBONE = {
    "model_type": "defocus_mamba",
    "arch": {"embed_dims": 32, "inner_dims": 64, "depth": 2, "dt_rank": 4},
    "patch_size": 8,
    "adapter": {"type": "SimpleFPN", "out_channels": 32, "start_level": 2, "num_outs": 3},
}
REAL_TIME = {
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "num_queries": 8,
    "num_denoising": 8,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "hidden_expansion": 0.5,
}
# Nothing random in the model, no batch norm.
DEFORMABLE = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 8,
    "num_feature_levels": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "dropout": 0.0,
}
MASK2FORMER = {
    "hidden_dim": 32,
    "feature_size": 32,
    "mask_feature_size": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "num_attention_heads": 4,
    "num_queries": 6,
    "train_num_points": 64,
}
# The file's ids are neither in a row nor from 0 or 1.
CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
COLOURS = {7: (250, 20, 20), 3: (20, 20, 250)}


def draw(folder: Path, boxes: dict[str, list[tuple]], size: tuple[int, int] = (48, 64)) -> Path:
    """Images of rectangles, with a COCO file that has their boxes and masks.

    Args:
        folder: Where to.
        boxes: (category id, x, y, width, height) of each rectangle by file name; later ones lie above.
        size: (height, width).
    """
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, (name, rectangles) in enumerate(boxes.items(), 11):
        pixels = np.full((*size, 3), 128, np.uint8)
        for category_id, x, y, w, h in rectangles:
            pixels[y : y + h, x : x + w] = COLOURS[category_id]
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotation |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [corners]}
            annotations.append(annotation)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return path


def draw_some(folder: Path, count: int) -> Path:
    """As `draw`, with rectangles by chance."""
    rng = np.random.default_rng(0)
    boxes = {}
    for number in range(count):
        corners = rng.integers(0, 24, (2, 2)).tolist()
        sides = rng.integers(12, 24, (2, 2)).tolist()
        boxes[f"{number}.png"] = [(c, *p, *s) for c, p, s in zip((7, 3), corners, sides)]
    return draw(folder, boxes)
