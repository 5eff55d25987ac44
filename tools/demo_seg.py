"""Trains a tiny De-focus UPerNet on drawn shapes with mmseg's own tools, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import os
import shutil
from pathlib import Path

import mmseg
from mmengine.config import Config
from steps import ROOT, draw_shapes, report, show, train_and_test

CONFIG = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"
TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"


def main() -> None:
    os.chdir(ROOT)
    work_dir = Path("work_dirs/demo_seg") / Path(CONFIG).stem
    config = Config.fromfile(CONFIG)
    data = Path(config.data_root)
    draw_shapes(data)

    final = work_dir / f"iter_{config.train_cfg.max_iters}.pth"
    predictions = work_dir / "predictions"
    shutil.rmtree(predictions, ignore_errors=True)
    train_and_test("mmseg", TOOLS, CONFIG, work_dir, final, ["--out", predictions])

    scored = ["--annotations", data / "semantic/val", "--predictions", predictions, "--classes", *config.classes]
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    show("show_segmentation.py", [*scored, "--images", data / "val"], work_dir, logs)
    report(scored, data / "val", work_dir, logs, CONFIG, final)


if __name__ == "__main__":
    main()
