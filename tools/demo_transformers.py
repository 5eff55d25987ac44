"""Trains a tiny De-focus detector on drawn shapes with transformers' Trainer, scores it, draws it, and writes a page.

Everything is left in work_dirs/. A second run reuses what is there; an interrupted one resumes.
"""

import os
import sys
from pathlib import Path

import yaml
from steps import ROOT, Demo, Step, training_environment

RECIPE = "transformers_recipes/deimv2_defocus_mamba_tiny_shapes.yaml"


def main() -> None:
    """Runs the demo."""
    os.chdir(ROOT)
    recipe = yaml.safe_load(Path(RECIPE).read_text())
    annotations, work_dir = Path(recipe["val_annotations"]), Path(recipe["output_dir"])
    demo = Demo(
        config=RECIPE,
        data=annotations.parent.parent,
        images=Path(recipe["val_images"]),
        annotations=annotations,
        work_dir=work_dir,
        final=work_dir / "model.safetensors",
        predictions=work_dir / "predictions.bbox.json",
        log="log.jsonl",
        threshold=0.4,
    )
    train = [sys.executable, "tools/train_transformers.py", RECIPE, "--resume"]
    # The scores are what it writes last.
    scores = work_dir / "scores.json"
    demo.run([Step("Training and scoring with transformers", train, training_environment(), unless=scores)])
    print(f'A pipeline of its own: transformers.pipeline("object-detection", model="{work_dir}")')


if __name__ == "__main__":
    main()
