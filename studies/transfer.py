"""Whether the study's classifier helps a detector at twice its resolution, and whether the rule that carries it does.

    python -m studies.transfer [--jobs N]

pre-trains a De-focus Mamba of the size of the demo's detector on the study's images, then trains that detector on the
demo's data with mmdet's own tools/train.py: from scratch and pre-trained, with `rope_scale`, `delta_scale` and the
2D-section scan or without. Everything is left in work_dirs/study/transfer; an interrupted study goes on where it was.
`--variant NAME` trains one detector.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from backbones.resolution import resolution_settings
from defocus_eval.files import write_text
from defocus_eval.logs import read_logs
from defocus_eval.markdown import table
from studies.runs import Run, RunFailed, read_result, run_missing
from studies.training import Settings, identity, make_result, write_result
from studies.variants import VARIANTS

CONFIG = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"
FOLDER = Path("work_dirs/study/transfer")
EPOCHS = 1
# The detector's images have a long side of 160 pixels.
USE = 160
PRETRAINING = Settings(
    side=80,
    steps=600,
    train_images=12_000,
    test_images=1_200,
    measured_images=4,
    batch=32,
    learning_rate=1e-3,
    patch_size=8,
    # Those of the detector's backbone.
    sizes=dict(DefocusMamba=dict(embed_dims=192, inner_dims=384, depth=6, dt_rank=12)),
)
CLASSIFIER = Run("mamba-defocus", 0)
RULE = resolution_settings(USE, PRETRAINING.side)
# Whether a detector starts from the classifier, and what it has of the rule.
DETECTORS = {
    "scratch": (False, ()),
    "scratch-rule": (False, tuple(RULE)),
    "pretrained": (True, ()),
    "pretrained-rope": (True, ("rope_scale",)),
    "pretrained-delta": (True, ("delta_scale",)),
    "pretrained-sections": (True, ("section_size",)),
    "pretrained-scales": (True, ("rope_scale", "delta_scale")),
    "pretrained-rule": (True, tuple(RULE)),
}


def overrides(detector: str, checkpoint: Path, seed: int) -> dict:
    """What a detector's training differs in from the demo's, as ``--cfg-options`` of mmdet's tools/train.py.

    Args:
        detector: A key of `DETECTORS`.
        checkpoint: The classifier's.
        seed: Of the training.
    """
    pretrained, parts = DETECTORS[detector]
    changes = {
        "randomness.seed": seed,
        "train_cfg.max_epochs": EPOCHS,
        "train_cfg.val_interval": EPOCHS,
        "param_scheduler.1.end": EPOCHS,
        "param_scheduler.1.T_max": EPOCHS,
    }
    changes |= {f"model.backbone.{part}": RULE[part] for part in parts}
    if pretrained:
        changes |= {"model.backbone.init_cfg.type": "Pretrained", "model.backbone.init_cfg.checkpoint": checkpoint}
    return changes


def main() -> None:
    """Runs the study, or with ``--variant`` one training of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="detectors at a time, of one thread each")
    parser.add_argument("--variant", choices=(*DETECTORS, CLASSIFIER.variant), help="train one network")
    parser.add_argument("--seed", type=int, default=0, help="of the one network")
    arguments = parser.parse_args()
    # Whatever is killed ends the processes that it started, like one that is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.variant == CLASSIFIER.variant:
        torch.set_num_threads(1)
        found = make_result(CLASSIFIER.variant, VARIANTS[CLASSIFIER.variant], CLASSIFIER.seed, PRETRAINING)
        write_result(*found, FOLDER)
        return
    if arguments.variant is not None:
        train_detector(Run(arguments.variant, arguments.seed))
        return
    try:
        run_transfer(arguments.jobs)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")
    except RunFailed as error:
        sys.exit(f"{error}\nThe same command goes on from here once that is mended.")


def run_transfer(jobs: int) -> None:
    """Draws the detector's data, pre-trains, trains all detectors, and writes the table; keeps what is there."""
    draw = [sys.executable, "tools/make_shapes.py", "work_dirs/shapes", "--train", "2000", "--size", "160"]
    subprocess.run(draw, check=True)
    command = [sys.executable, "-m", "studies.transfer"]
    wanted = {CLASSIFIER: identity(VARIANTS[CLASSIFIER.variant], PRETRAINING)}
    run_missing(wanted, FOLDER, command, jobs, describe=lambda result: f"accuracy {result['accuracy']:.3f}")
    wanted = {Run(name, 0): _detector_identity(name) for name in DETECTORS}
    run_missing(wanted, FOLDER, command, jobs, describe=lambda result: f"box AP {result['scores']['bbox_mAP']:.3f}")
    found = {run.variant: read_result(run, FOLDER, settings) for run, settings in wanted.items()}
    page = detectors_table(found)
    write_text(FOLDER / "results.md", page + "\n")
    print(page)


def train_detector(run: Run) -> None:
    """Trains and scores one detector, going on with what an interrupted training left, and writes its result."""
    import mmdet

    start = time.monotonic()
    work_dir = run.file(FOLDER, "")
    tool = Path(mmdet.__file__).parent / ".mim/tools/train.py"
    changes = overrides(run.variant, CLASSIFIER.file(FOLDER, ".pth"), run.seed)
    options = [f"{key}={value}" for key, value in changes.items()]
    words = [sys.executable, tool, CONFIG, "--work-dir", work_dir, "--resume", "--cfg-options", *options]
    subprocess.run([str(word) for word in words], check=True)
    scores = read_logs(sorted(work_dir.glob("*/vis_data/scalars.json"))).evaluations[-1].scores
    seconds = time.monotonic() - start
    result = dict(settings=_detector_identity(run.variant), seed=run.seed, scores=scores, seconds=seconds)
    write_text(run.file(FOLDER), json.dumps(result, indent=1) + "\n")


def _detector_identity(detector: str) -> dict:
    """All that a detector's result depends on but its seed."""
    changes = {key: str(value) for key, value in overrides(detector, Path(), 0).items()}
    return dict(config=CONFIG, changes=changes, classifier=identity(VARIANTS[CLASSIFIER.variant], PRETRAINING))


def detectors_table(results: Mapping[str, dict]) -> str:
    """Box AP of each detector, by its name in `DETECTORS`."""
    rows = []
    for name, result in results.items():
        pretrained, parts = DETECTORS[name]
        has = ["yes" if part in parts else "–" for part in RULE]
        scores = [f"{100 * result['scores'][key]:.1f}" for key in ("bbox_mAP", "bbox_mAP_50")]
        rows.append(["classifier" if pretrained else "scratch", *has, *scores])
    return table(["start", *RULE, "box AP", "box AP50"], rows)


if __name__ == "__main__":
    main()
