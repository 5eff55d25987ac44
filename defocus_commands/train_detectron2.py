"""Trains a Detectron2 config, or scores one with --eval-only, where Detectron2's own scripts are not at hand.

The pip package lacks them. This takes their flags, lazy configs (.py) and YAML configs, and runs without a GPU too.

    defocus train-detectron2 --config-file CONFIG.py train.output_dir=work_dirs/run
    defocus train-detectron2 --config-file CONFIG.py --resume train.output_dir=work_dirs/run
    defocus train-detectron2 --config-file CONFIG.py --eval-only train.init_checkpoint=FILE
    defocus train-detectron2 --config-file CONFIG.yaml --dataset blood_train=blood/train.json:blood/train \\
        DATASETS.TRAIN '("blood_train",)'

--num-gpus is the number of processes, also on a machine without GPUs, where they talk through gloo. A run that goes on
with --resume ends with the weights of an unbroken one. Told to stop by SIGTERM or SIGUSR1, it saves and ends with
status 75. Under torchrun it begins again by itself:

    torchrun --nproc-per-node 8 --max-restarts 3 -m backbones train-detectron2 --resume --config-file CONFIG.py
"""

from collections.abc import Sequence

from backbones.integrations.detectron2.train import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return run(arguments, __doc__)
