"""Trains a tiny De-focus DINO on drawn shapes with mmdet's own tools, scores it, and draws what it sees.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import argparse
import os
import sys
from pathlib import Path

import mmdet
from mmengine.config import Config
from steps import ROOT, draw_shapes, fastest_precision, mmcv_environment, run_step

CONFIG = "mmdet_configs/dino/dino-4scale_defocus-{}-tiny_1xb2-4e_shapes.py"
FAMILIES = ("mamba", "vit", "retnet")
TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="mamba", help="token mixer of the backbone")
    config_file = CONFIG.format(parser.parse_args().family)
    os.chdir(ROOT)
    work_dir = Path("work_dirs/demo") / Path(config_file).stem
    config = Config.fromfile(config_file)
    data = Path(config.data_root)
    environment = mmcv_environment()

    draw_shapes(data)

    final = work_dir / f"epoch_{config.train_cfg.max_epochs}.pth"
    train = [sys.executable, TOOLS / "train.py", config_file, "--work-dir", work_dir, "--resume", *fastest_precision()]
    run_step("Training with mmdet's tools/train.py", train, environment, unless=final)

    predictions = work_dir / "predictions"
    test = [sys.executable, TOOLS / "test.py", config_file, final, "--work-dir", work_dir / "test"]
    test += ["--cfg-options", f"test_evaluator.outfile_prefix={predictions}"]
    run_step("Scoring the checkpoint with mmdet's tools/test.py", test, environment)

    show = [sys.executable, "tools/show_results.py", "--annotations", data / "annotations/instances_val.json"]
    show += ["--images", data / "val", "--predictions", f"{predictions}.bbox.json", "--out", work_dir]
    # Scores of so short a training are modest.
    show += ["--score-threshold", "0.25", "--log", *sorted(work_dir.glob("*/vis_data/scalars.json"))]
    run_step("Drawing predictions and curves", show)
    print(f"\nLook at {work_dir}/predictions.png and {work_dir}/curves.png")


if __name__ == "__main__":
    main()
