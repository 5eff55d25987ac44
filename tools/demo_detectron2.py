"""Trains a tiny De-focus Mask R-CNN on drawn shapes with Detectron2, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import importlib.util
import os
import sys
from pathlib import Path

from steps import ROOT, draw_shapes, report, run_step, show

CONFIG = "detectron2_projects/rcnn/configs/shapes/mask_rcnn_defocus_mamba_tiny.py"


def main() -> None:
    if importlib.util.find_spec("detectron2") is None:
        sys.exit(
            "detectron2 is not installed. It comes from its source, and takes some minutes to compile:\n"
            "  git clone https://github.com/facebookresearch/detectron2\n"
            f"  {sys.executable} -m pip install --no-build-isolation ./detectron2"
        )
    from detectron2.config import LazyConfig

    os.chdir(ROOT)
    config = LazyConfig.load(CONFIG)
    data, work_dir = Path(config.data.root), Path(config.train.output_dir)
    final = work_dir / "model_final.pth"

    draw_shapes(data)

    train = [sys.executable, "tools/train_detectron2.py", "--config-file", CONFIG]
    # Detectron2 scores at the end of the training.
    run_step("Training and scoring with Detectron2", [*train, "--resume"], unless=final)
    predictions = work_dir / "inference/coco_instances_results.json"
    scoring = [*train, "--eval-only", f"train.init_checkpoint={final}"]
    run_step("Scoring with Detectron2", scoring, unless=predictions, newer_than=final)

    scored = ["--annotations", config.data.test_json, "--predictions", predictions]
    images, logs = config.data.test_images, [work_dir / "metrics.json"]
    show("show_results.py", [*scored, "--images", images, "--score-threshold", "0.5"], work_dir, logs)
    report(scored, images, work_dir, logs, CONFIG, final)


if __name__ == "__main__":
    main()
