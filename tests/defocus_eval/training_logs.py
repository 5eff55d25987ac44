"""Lines of training logs as trainers write them."""

import json


def write_log(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def training_lines(first, last, epoch_length=None, interval=10):
    for step in range(first, last + 1, interval):
        line = {"lr": 1e-4, "loss": 100.0 / step, "time": 0.5, "iter": step, "step": step}
        yield line if epoch_length is None else {**line, "epoch": (step - 1) // epoch_length + 1}


def evaluation(step, score):
    return {"coco/bbox_mAP": score, "coco/bbox_mAP_50": 1.5 * score, "coco/bbox_mAP_l": -1.0, "step": step}
