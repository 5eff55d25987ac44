"""Trains a tiny De-focus DINO on drawn shapes with mmdet's own tools, scores it, and draws what it sees.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import mmdet
from mmengine.config import Config

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "mmdet_configs/dino/dino-4scale_defocus-{}-tiny_1xb4-3e_shapes.py"
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
    environment = _device_environment()

    _run("Drawing the data", [sys.executable, "tools/make_shapes.py", data, "--train", "2000", "--size", "160"])

    final = work_dir / f"epoch_{config.train_cfg.max_epochs}.pth"
    if final.exists():
        print(f"\n== Training: done before, {final} is there (make clean-demo starts afresh)")
    else:
        train = [sys.executable, TOOLS / "train.py", config_file, "--work-dir", work_dir, "--resume"]
        _run("Training with mmdet's tools/train.py", train, environment)

    predictions = work_dir / "predictions"
    test = [sys.executable, TOOLS / "test.py", config_file, final, "--work-dir", work_dir / "test"]
    test += ["--cfg-options", f"test_evaluator.outfile_prefix={predictions}"]
    _run("Scoring the checkpoint with mmdet's tools/test.py", test, environment)

    show = [sys.executable, "tools/show_results.py", "--annotations", data / "annotations/instances_val.json"]
    show += ["--images", data / "val", "--predictions", f"{predictions}.bbox.json", "--out", work_dir]
    # Scores of so short a training are modest.
    show += ["--score-threshold", "0.25"]
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    for log in logs:
        show += ["--log", log]
    _run("Drawing predictions and curves", show)
    print(f"\nLook at {work_dir}/predictions.png and {work_dir}/curves.png")


def _device_environment() -> dict[str, str]:
    """The environment of training and testing: on the GPU if there is one and mmcv was built for it."""
    import torch
    from mmcv.ops import get_compiling_cuda_version

    environment = dict(os.environ)
    if torch.cuda.is_available() and get_compiling_cuda_version() == "not available":
        print("Notice: mmcv was built without CUDA (no nvcc when it was set up), so this runs on the CPU")
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _run(title: str, command: list, environment: dict[str, str] | None = None) -> None:
    command = [str(part) for part in command]
    shown = ["python", *command[1:]]
    print(f"\n== {title}\n   {shlex.join(shown)}", flush=True)
    start = time.monotonic()
    try:
        code = subprocess.run(command, env=environment).returncode
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")
    if code != 0:
        sys.exit(f"{title} failed (exit status {code}); the same command goes on from here once that is mended.")
    print(f"== {title}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
