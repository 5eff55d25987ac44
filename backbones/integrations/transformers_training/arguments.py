"""What `defocus train-transformers` is told: Trainer's own arguments and those of data, model and run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from backbones.integrations.frameworks import needed
from backbones.integrations.transformers_training.augmentation import AUGMENTATIONS
from backbones.integrations.transformers_training.heads import HEADS
from backbones.precision import choose_bf16

with needed("transformers"):
    from transformers import HfArgumentParser, TrainingArguments

logger = logging.getLogger("backbones")

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass
class DataArguments:
    """What is learned from, and scored on; each field's meaning is its help.

    Raises:
        ValueError: ``image_size`` is no size.
    """

    train_annotations: str = field(metadata={"help": "COCO json, or folder of label maps"})
    val_annotations: str = field(metadata={"help": "the same of what is scored"})
    train_images: str | None = field(
        default=None, metadata={"help": "folder of the images (default for a json: that of the json)"}
    )
    val_images: str | None = field(default=None, metadata={"help": "the same of what is scored"})
    classes: list[str] | None = field(default=None, metadata={"help": "names of the labels 0, 1, … of label maps"})
    ignore_label: int = field(default=255, metadata={"help": "label of label maps that does not count"})
    image_size: list[int] = field(
        default_factory=lambda: [640], metadata={"help": "side of the square, or height and width, that images become"}
    )
    augmentation: str = field(
        default="flip",
        metadata={"help": "; ".join(f"{name}: {what}" for name, what in AUGMENTATIONS.items())},
    )

    def __post_init__(self):
        if len(self.image_size) not in (1, 2) or min(self.image_size) < 1:
            raise ValueError(f"image_size takes a side, or height and width, in pixels, got {self.image_size}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the model sees."""
        return self.image_size[0], self.image_size[-1]

    @property
    def semantic(self) -> bool:
        """Whether the annotations are label maps."""
        return Path(self.train_annotations).is_dir()


@dataclass
class ModelArguments:
    """What learns; each field's meaning is its help.

    Raises:
        ValueError: A mapping is none, nothing says what learns, or two things do.
    """

    head: str = field(default="rt_detr_v2", metadata={"help": f"one of {', '.join(HEADS)}"})
    backbone: str = field(
        default="{}", metadata={"help": "fields of the backbone's config with its model_type, as JSON"}
    )
    head_options: str = field(default="{}", metadata={"help": "fields of the head's config that differ, as JSON"})
    processor: str = field(default="{}", metadata={"help": "arguments of the image processor that differ, as JSON"})
    init: str | None = field(
        default=None, metadata={"help": "checkpoint of the De-focus backbone, as any framework wrote it"}
    )
    model: str | None = field(
        default=None, metadata={"help": "a whole model to start from instead of head and backbone: folder or name"}
    )

    def __post_init__(self):
        for name in ("backbone", "head_options", "processor"):
            setattr(self, name, _mapping(name, getattr(self, name)))
        if self.model is None and not self.backbone:
            raise ValueError("nothing says what learns: give backbone and head, or model")
        if self.model is not None and (self.backbone or self.head_options):
            raise ValueError(
                "model is a whole model, to which backbone and head_options do nothing: give one or the other"
            )


@dataclass
class RunArguments(TrainingArguments):
    """Trainer's arguments, with ours; each field's meaning is its help.

    Raises:
        ValueError: Another ``precision``, or what Trainer refuses.
    """

    output_dir: str = field(default="work_dirs/transformers", metadata={"help": "where all is left"})
    precision: str = field(
        default="auto", metadata={"help": "auto (bf16 where it is measured to be faster), fp32 or bf16"}
    )
    resume: bool = field(
        default=False, metadata={"help": "go on from the last checkpoint in output_dir, if there is one"}
    )
    score_only: bool = field(default=False, metadata={"help": "score the model in output_dir, train nothing"})
    score_every: int = field(default=0, metadata={"help": "epochs between scores on the way; 0 for the end alone"})
    layer_decay: float = field(
        default=1.0, metadata={"help": "factor of the learning rate from a block to the one below"}
    )
    backbone_rate: float = field(default=1.0, metadata={"help": "factor of the backbone's learning rate"})
    # Trainer's, with other defaults.
    save_strategy: str = field(default="epoch", metadata={"help": "when checkpoints are saved: epoch, steps or no"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints to keep"})
    logging_steps: float = field(default=50, metadata={"help": "steps between lines of the log"})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "nothing to remove here"})
    report_to: str | None = field(default="none", metadata={"help": "tensorboard, wandb, …"})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "no bar beside the log"})

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not torch.accelerator.is_available():
            self.use_cpu, self.dataloader_pin_memory = True, False
        if self.precision != "auto":
            self.bf16 = self.precision == "bf16"
        elif not (self.bf16 or self.fp16):
            self.bf16 = _choose_bf16()
        super().__post_init__()


def _choose_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    # Processes that measured different things would train in different precisions.
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return False
    bf16, why = choose_bf16()
    logger.info(why)
    return bf16


def _mapping(name: str, value: Any) -> dict[str, Any]:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error}): {value}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must map names to values, got {value!r}")
    return value


def parse(arguments: Sequence[str], description: str) -> tuple[DataArguments, ModelArguments, RunArguments]:
    """Reads ``[RECIPE.yaml] --name value …``; what stands on the command line replaces what the recipe says.

    Raises:
        ValueError: The recipe is no mapping of names to values, or a value is out of range.
    """
    words = list(arguments)
    recipe = words.pop(0) if words and not words[0].startswith("-") else None
    parser = HfArgumentParser((DataArguments, ModelArguments, RunArguments), description=description)
    told = [] if recipe is None else _words(Path(recipe))
    return parser.parse_args_into_dataclasses([*told, *words])


def _words(recipe: Path) -> list[str]:
    """A recipe as a command line."""
    try:
        content = yaml.safe_load(recipe.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"the recipe {recipe} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {recipe} is no mapping of names to values")
    words = []
    for name, value in content.items():
        words.append(f"--{name}")
        if isinstance(value, dict):
            words.append(json.dumps(value))
        else:
            words += [str(part) for part in (value if isinstance(value, list) else [value])]
    return words
