"""Trains a tiny De-focus Mask R-CNN on drawn shapes with Detectron2, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import importlib.util
import os
import sys
from pathlib import Path

from steps import ROOT, Demo, Step

CONFIG = "detectron2_projects/rcnn/configs/shapes/mask_rcnn_defocus_mamba_tiny.py"


def main() -> None:
    """Runs the demo; ends with what to do where Detectron2 is not installed."""
    if importlib.util.find_spec("detectron2") is None:
        sys.exit(
            "detectron2 is not installed. It comes from its source, and takes some minutes to compile:\n"
            "  git clone https://github.com/facebookresearch/detectron2\n"
            f"  {sys.executable} -m pip install --no-build-isolation ./detectron2"
        )
    from detectron2.config import LazyConfig

    os.chdir(ROOT)
    config = LazyConfig.load(CONFIG)
    work_dir = Path(config.train.output_dir)
    demo = Demo(
        config=CONFIG,
        data=Path(config.data.root),
        images=Path(config.data.test_images),
        annotations=Path(config.data.test_json),
        work_dir=work_dir,
        final=work_dir / "model_final.pth",
        predictions=work_dir / "inference/coco_instances_results.json",
        log="metrics.json",
        threshold=0.5,
    )
    train = [sys.executable, "tools/train_detectron2.py", "--config-file", CONFIG]
    scoring = [*train, "--eval-only", f"train.init_checkpoint={demo.final}"]
    demo.run(
        [
            # Detectron2 scores at the end of the training.
            Step("Training and scoring with Detectron2", [*train, "--resume"], unless=demo.final),
            Step("Scoring with Detectron2", scoring, unless=demo.predictions, newer_than=demo.final),
        ]
    )


if __name__ == "__main__":
    main()
