"""Trains a tiny De-focus DINO on drawn shapes with mmdet's own tools, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import argparse
import os
from pathlib import Path

import mmdet
from mmengine.config import Config
from steps import ROOT, draw_shapes, report, show, train_and_test

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
    draw_shapes(data)

    final = work_dir / f"epoch_{config.train_cfg.max_epochs}.pth"
    predictions = work_dir / "predictions"
    options = ["--cfg-options", f"test_evaluator.outfile_prefix={predictions}"]
    train_and_test("mmdet", TOOLS, config_file, work_dir, final, options)

    scored = ["--annotations", data / "annotations/instances_val.json", "--predictions", f"{predictions}.bbox.json"]
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    # Scores of so short a training are modest.
    show("show_results.py", [*scored, "--images", data / "val", "--score-threshold", "0.25"], work_dir, logs)
    report(scored, data / "val", work_dir, logs, config_file, final)


if __name__ == "__main__":
    main()
