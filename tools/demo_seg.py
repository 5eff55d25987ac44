"""Trains a tiny De-focus UPerNet on drawn shapes with mmseg's own tools, scores it, and draws what it sees.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import os
import shutil
import sys
from pathlib import Path

import mmseg
from mmengine.config import Config
from steps import ROOT, draw_shapes, fastest_precision, mmcv_environment, run_step

CONFIG = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"
TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"


def main() -> None:
    os.chdir(ROOT)
    work_dir = Path("work_dirs/demo_seg") / Path(CONFIG).stem
    config = Config.fromfile(CONFIG)
    data = Path(config.data_root)
    environment = mmcv_environment()

    draw_shapes(data)

    final = work_dir / f"iter_{config.train_cfg.max_iters}.pth"
    train = [sys.executable, TOOLS / "train.py", CONFIG, "--work-dir", work_dir, "--resume", *fastest_precision()]
    run_step("Training with mmseg's tools/train.py", train, environment, unless=final)

    predictions = work_dir / "predictions"
    shutil.rmtree(predictions, ignore_errors=True)
    test = [sys.executable, TOOLS / "test.py", CONFIG, final, "--work-dir", work_dir / "test", "--out", predictions]
    run_step("Scoring the checkpoint with mmseg's tools/test.py", test, environment)

    show = [sys.executable, "tools/show_segmentation.py", "--images", data / "val"]
    show += ["--annotations", data / "semantic/val", "--predictions", predictions, "--out", work_dir]
    show += ["--classes", *config.classes, "--log", *sorted(work_dir.glob("*/vis_data/scalars.json"))]
    run_step("Drawing predictions and curves", show)
    print(f"\nLook at {work_dir}/predictions.png and {work_dir}/curves.png")


if __name__ == "__main__":
    main()
