"""Trains a tiny De-focus DINO on drawn shapes with mmdet's own tools, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import argparse
import os
from pathlib import Path

import mmdet
from mmengine.config import Config
from steps import ROOT, Demo, openmmlab_steps

CONFIG = "mmdet_configs/dino/dino-4scale_defocus-{}-tiny_1xb2-4e_shapes.py"
FAMILIES = ("mamba", "vit", "retnet")


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="mamba", help="token mixer of the backbone")
    config_file = CONFIG.format(parser.parse_args().family)
    os.chdir(ROOT)
    config = Config.fromfile(config_file)
    data, work_dir = Path(config.data_root), Path("work_dirs/demo") / Path(config_file).stem
    demo = Demo(
        config=config_file,
        data=data,
        images=data / "val",
        annotations=data / "annotations/instances_val.json",
        work_dir=work_dir,
        final=work_dir / f"epoch_{config.train_cfg.max_epochs}.pth",
        predictions=work_dir / "predictions.bbox.json",
        log="*/vis_data/scalars.json",
        # Scores of so short a training are modest.
        threshold=0.25,
    )
    options = ["--cfg-options", f"test_evaluator.outfile_prefix={work_dir / 'predictions'}"]
    demo.run(openmmlab_steps(mmdet, demo, options))


if __name__ == "__main__":
    main()
