"""Trains a tiny De-focus detector on drawn shapes with transformers' Trainer, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import os
import sys
from pathlib import Path

import yaml
from steps import ROOT, draw_shapes, report, run_step, show

RECIPE = "transformers_recipes/rt_detr_v2_defocus_mamba_tiny_shapes.yaml"


def main() -> None:
    os.chdir(ROOT)
    recipe = yaml.safe_load(Path(RECIPE).read_text())
    annotations, images = Path(recipe["val_annotations"]), recipe["val_images"]
    work_dir = Path(recipe["output_dir"])
    draw_shapes(annotations.parent.parent)

    train = [sys.executable, "tools/train_transformers.py", RECIPE, "--resume"]
    # A step on a CPU asks for the same large blocks again and again: glibc is to keep them, not to return each.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), **os.environ}
    # What it writes last.
    run_step("Training and scoring with transformers", train, environment, unless=work_dir / "scores.json")

    scored = ["--annotations", annotations, "--predictions", work_dir / "predictions.bbox.json"]
    logs = [work_dir / "log.jsonl"]
    show("show_results.py", [*scored, "--images", images, "--score-threshold", "0.4"], work_dir, logs)
    report(scored, images, work_dir, logs, RECIPE, work_dir / "model.safetensors")
    print(f'A pipeline of its own: transformers.pipeline("object-detection", model="{work_dir}")')


if __name__ == "__main__":
    main()
