"""Sets drawn on the spot: objects, detections of them, segments, label maps."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

CATEGORIES = {2: "kite", 5: "tile", 9: "stain"}


def to_rle(mask):
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def diamond(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return abs(columns + 0.5 - x) + abs(rows + 0.5 - y) <= radius


def draw_instances(rng, images=12, crowds=0.1):
    """COCO instances: diamonds, whose boxes have twice their area, so that sizes of masks and of boxes differ."""
    records, annotations = [], []
    for number in range(images):
        height, width = int(rng.integers(90, 130)), int(rng.integers(90, 130))
        # Ids with gaps, not in order.
        image_id = int(1000 - 7 * number)
        records.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        for _ in range(rng.integers(0, 7)):
            mask = diamond(height, width, *rng.uniform(10, 80, 2), rng.uniform(4, 70))
            code = to_rle(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(list(CATEGORIES))),
                    "bbox": coco_mask.toBbox(code).tolist(),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < crowds),
                    "segmentation": code,
                }
            )
    categories = [{"id": category_id, "name": name} for category_id, name in CATEGORIES.items()]
    return {"images": records, "annotations": annotations, "categories": categories}


def draw_detections(rng, truth, each=3, digits=2):
    """Results as mmdet writes masks: moved objects, some of another class, with scores that tie."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = []
    for annotation in truth["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        for _ in range(rng.integers(0, each + 1)):
            most = 3 if rng.random() < 0.8 else 30
            moved = np.roll(mask, rng.integers(-most, most + 1, 2), (0, 1))
            category_id = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(list(CATEGORIES)))
            found.append(result(annotation["image_id"], moved, rng.random(), category_id, digits))
    for image_id, (height, width) in sizes.items():
        mask = diamond(height, width, *rng.uniform(10, 80, 2), rng.uniform(4, 40))
        found.append(result(image_id, mask, rng.random(), int(rng.choice(list(CATEGORIES))), digits))
    return [found[index] for index in rng.permutation(len(found))]


def result(image_id, mask, score, category_id, digits=2):
    code = to_rle(mask)
    box = coco_mask.toBbox(code).tolist()
    score = round(float(score), digits)
    return {"image_id": image_id, "bbox": box, "score": score, "category_id": category_id, "segmentation": code}


def without(entries, key):
    return [{name: value for name, value in entry.items() if name != key} for entry in entries]


def make_lvis(rng, truth):
    """The same with classes that were looked for, and not everywhere; without crowds, which LVIS has not."""
    present = {}
    for annotation in truth["annotations"]:
        present.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    images = []
    for image in truth["images"]:
        there = sorted(present.get(image["id"], ()))
        absent = [category_id for category_id in CATEGORIES if category_id not in there]
        negative = [category_id for category_id in absent if rng.random() < 0.5]
        partly = [category_id for category_id in there if rng.random() < 0.3]
        images.append({**image, "neg_category_ids": negative, "not_exhaustive_category_ids": partly})
    categories = [{**category, "frequency": key} for category, key in zip(truth["categories"], "rcf")]
    annotations = without([annotation for annotation in truth["annotations"] if not annotation["iscrowd"]], "iscrowd")
    return {"images": images, "annotations": annotations, "categories": categories}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def blocks(rng, values, height=40, width=50, count=30):
    """A map of overlapping blocks of the values."""
    labels = np.full((height, width), values[0])
    for _ in range(count):
        top, left = rng.integers(0, height), rng.integers(0, width)
        labels[top : top + rng.integers(3, 20), left : left + rng.integers(3, 25)] = rng.choice(values)
    return labels
