"""Trains a tiny De-focus Mask R-CNN on drawn shapes with Detectron2, scores it, and draws what it sees.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import importlib.util
import os
import sys
from pathlib import Path

from steps import ROOT, draw_shapes, run_step

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

    show = [sys.executable, "tools/show_results.py", "--annotations", config.data.test_json]
    show += ["--images", config.data.test_images, "--predictions", predictions, "--out", work_dir]
    show += ["--score-threshold", "0.5", "--log", work_dir / "metrics.json"]
    run_step("Drawing predictions and curves", show)
    print(f"\nLook at {work_dir}/predictions.png and {work_dir}/curves.png")


if __name__ == "__main__":
    main()
