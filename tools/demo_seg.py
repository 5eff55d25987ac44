"""Trains a tiny De-focus UPerNet on drawn shapes with mmseg's own tools, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import os
import shutil
from pathlib import Path

import mmseg
from mmengine.config import Config
from steps import ROOT, Demo, openmmlab_steps

CONFIG = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"


def main() -> None:
    """Runs the demo."""
    os.chdir(ROOT)
    config = Config.fromfile(CONFIG)
    data, work_dir = Path(config.data_root), Path("work_dirs/demo_seg") / Path(CONFIG).stem
    demo = Demo(
        config=CONFIG,
        data=data,
        images=data / "val",
        annotations=data / "semantic/val",
        work_dir=work_dir,
        final=work_dir / f"iter_{config.train_cfg.max_iters}.pth",
        predictions=work_dir / "predictions",
        log="*/vis_data/scalars.json",
        classes=tuple(config.classes),
    )
    shutil.rmtree(demo.predictions, ignore_errors=True)
    demo.run(openmmlab_steps(mmseg, demo, ["--out", demo.predictions]))


if __name__ == "__main__":
    main()
