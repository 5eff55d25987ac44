"""Small data sets and predictions of each kind of board, made on the spot."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from defocus_eval.boards import Request, board_named

# Width and height of the images, by id.
SIZES = {7: (40, 30), 9: (36, 28), 12: (50, 20)}
# Ids with gaps, as COCO's.
CATEGORIES = {1: "person", 3: "car", 18: "dog"}
FRAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")


@dataclass
class Case:
    """A board's data: ground truth, predictions, and a folder for packages."""

    folder: Path
    images: Path
    predictions: Path

    @property
    def out(self):
        return self.folder / "out"

    def request(self, board, **changes):
        """A request for the board, whose number of images and their size are those of the drawn set."""
        board = board_named(board)
        size = board.size and Image.open(next(self.images.rglob("*.png"))).size
        settings = dict(method="Drawn", external_data="none")
        board = replace(board, images=3, size=size)
        return Request(board, self.predictions, self.images, **{**settings, **changes})

    def change(self, change, path=None):
        """Changes the content of a JSON in place."""

        def make(content):
            change(content)
            return content

        return self.rewrite(make, path)

    def rewrite(self, make, path=None):
        """Makes the content of a JSON anew from what it was."""
        path = path or self.predictions
        path.write_text(json.dumps(make(json.loads(path.read_text()))))
        return self


def box_mask(box, size):
    x, y, width, height = (round(number) for number in box)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def to_rle(mask):
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def detections(folder, masks=False, lvis=False):
    """Three images, two objects each, three predictions each in mmdet's words, one of them wrong."""
    folder.mkdir(exist_ok=True)
    images, annotations, found = [], [], []
    for image_id, size in SIZES.items():
        images.append({"id": image_id, "file_name": f"{image_id:012}.jpg", "width": size[0], "height": size[1]})
        if lvis:
            images[-1] |= {"neg_category_ids": [18], "not_exhaustive_category_ids": []}
        for category_id, box in ((1, [2, 3, 20, 12]), (3, [10, 5, 18, 14])):
            code = to_rle(box_mask(box, size))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": float(box[2] * box[3]),
                    "iscrowd": 0,
                    "segmentation": code,
                }
            )
        for rank, (category_id, box) in enumerate(
            ((1, [3.4, 3, 19, 12.25]), (3, [10, 6.125, 17.5, 13]), (18, [20.5, 8, 9, 9]))
        ):
            score = float(np.float32(0.95 - 0.2 * rank - 0.01 * image_id))
            entry = {"image_id": image_id, "bbox": box, "score": score, "category_id": category_id}
            if masks:
                entry["segmentation"] = to_rle(box_mask(box, size))
            found.append(entry)
    frequency = {"frequency": "f"} if lvis else {}
    categories = [{"id": key, "name": name, **frequency} for key, name in CATEGORIES.items()]
    truth = folder / "instances_val.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    predictions = folder / ("val.segm.json" if masks else "val.bbox.json")
    predictions.write_text(json.dumps(found))
    return Case(folder, truth, predictions)


def panoptic(folder):
    """Three images of a thing on stuff, as mmdet writes them: `val.panoptic.json` and `val.panoptic/`."""
    images, truths, found = [], [], []
    for image_id, size in SIZES.items():
        name = f"{image_id:012}"
        images.append({"id": image_id, "file_name": f"{name}.jpg", "width": size[0], "height": size[1]})
        for path, records, shift, keys in (
            (folder / "panoptic_val", truths, 0, {"iscrowd": 0}),
            (folder / "val.panoptic", found, 1, {"isthing": 1}),
        ):
            ids = np.full((size[1], size[0]), 70000, np.int64)
            ids[5 : 15 + shift, 4 : 16 + shift] = 258
            ids[:2] = 0
            save(to_colours(ids), path / f"{name}.png")
            segments = [
                {"id": key, "category_id": category, "area": int((ids == key).sum()), "bbox": [0, 0, 1, 1], **keys}
                for key, category in ((258, 1), (70000, 200))
            ]
            records.append({"segments_info": segments, "image_id": image_id, "file_name": f"{name}.png"})
    categories = [{"id": 1, "name": "person", "isthing": 1}, {"id": 200, "name": "grass", "isthing": 0}]
    truth = folder / "panoptic_val.json"
    truth.write_text(json.dumps({"images": images, "annotations": truths, "categories": categories}))
    predictions = folder / "val.panoptic.json"
    predictions.write_text(json.dumps({"annotations": found, "categories": categories}))
    return Case(folder, truth, predictions)


def to_colours(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def label_maps(folder, names, labels, suffix="", growth=0):
    """A map of stripes an image in `truth/`, and one with moved stripes in `pred/`; each higher by ``growth``."""
    for number, name in enumerate(names):
        stripes = np.repeat(np.array(labels, np.uint8), 6)
        truth = np.tile(stripes, (20 + growth * number, 1))
        save(truth, folder / "truth" / f"{name}{suffix}.png")
        save(np.roll(truth, 2 + number, 1), folder / "pred" / f"{name}.png")
    return Case(folder, folder / "truth", folder / "pred")


def ade20k(folder):
    return label_maps(folder, [f"ADE_val_{i:08}" for i in (1, 2, 3)], [1, 4, 13, 150], growth=2)


def cityscapes(folder):
    return label_maps(folder, FRAMES, [7, 11, 26, 33], "_gtFine_labelIds")


def cityscapes_instances(folder):
    """A car and a person an image; the second text file is empty but for a wrong bicycle."""
    for number, frame in enumerate(FRAMES):
        objects = np.full((30, 40), 7, np.uint16)
        objects[4:16, 3:15], objects[8:28, 20:34] = 26000, 24001
        save((objects % 1000 + (objects >= 1000) * 24).astype(np.uint8), folder / f"truth/{frame}_gtFine_labelIds.png")
        save(objects, folder / f"truth/{frame}_gtFine_instanceIds.png")
        lines = []
        masks = [(26, objects == 26000, 0.9), (24, np.roll(objects == 24001, number + 1, 0), 0.625)]
        if number == 1:
            masks = [(33, objects == 7, 0.5)]
        for label, mask, score in masks:
            name = f"{frame}_{label}.png"
            save(mask.astype(np.uint8) * 255, folder / "pred" / name)
            lines.append(f"{name} {label} {score}\n")
        (folder / "pred" / f"{frame}_pred.txt").write_text("".join(lines))
    return Case(folder, folder / "truth", folder / "pred")


MAKERS = {
    "coco-test-dev": detections,
    "coco-test-challenge": detections,
    "coco-val": lambda folder: detections(folder, masks=True),
    "coco-panoptic": panoptic,
    "lvis": lambda folder: detections(folder, masks=True, lvis=True),
    "lvis-fixed": lambda folder: detections(folder, masks=True, lvis=True),
    "objects365": detections,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "cityscapes-instances": cityscapes_instances,
}
