"""Trains a head of transformers on a backbone, with its Trainer, and scores it by the official rules.

    defocus train-transformers RECIPE.yaml --learning_rate 1e-4 --resume

A recipe holds what could stand on the command line, which replaces it; transformers_recipes/ has some. Data are COCO
json files (boxes, masks) or folders of label maps; every option of transformers' TrainingArguments is one here. What is
left in output_dir: model and image processor (for `transformers.pipeline(task, model=output_dir)`), checkpoints, the
predictions (for `defocus evaluate`), scores.json and log.jsonl.

Several processes, or FSDP, are accelerate's to start:

    accelerate launch --num_processes 8 -m backbones train-transformers RECIPE.yaml

A run that goes on with --resume ends with the weights of an unbroken one. Told to stop by SIGTERM or SIGUSR1, it saves
a checkpoint and ends with status 75.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from backbones.checkpoints import CheckpointError
from backbones.integrations.transformers_training.arguments import parse
from backbones.integrations.transformers_training.run import run
from defocus_eval.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for what does not fit together and 75 after a signal."""
    words = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger = logging.getLogger("backbones")
    logger.setLevel(logging.INFO)
    try:
        data, model, run_arguments = parse(words, __doc__)
        if run_arguments.process_index:
            logger.setLevel(logging.WARNING)
        return run(data, model, run_arguments)
    except (ValueError, FileNotFoundError, CheckpointError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
