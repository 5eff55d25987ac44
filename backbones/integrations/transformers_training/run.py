"""A whole run: data, model, training, scores."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from backbones.integrations.frameworks import needed
from backbones.integrations.transformers_training import heads
from backbones.integrations.transformers_training.arguments import DataArguments, ModelArguments, RunArguments
from backbones.integrations.transformers_training.augmentation import build_augmentation
from backbones.integrations.transformers_training.data import CocoImages, LabelledImages, LabelMapImages
from backbones.integrations.transformers_training.deformable import standing_in
from backbones.integrations.transformers_training.losses import dividing_by_all_objects
from backbones.integrations.transformers_training.scoring import main_scores, predict_and_score
from backbones.integrations.transformers_training.trainer import (
    LOG,
    BeginEpoch,
    FollowThreads,
    LearningTrainer,
    ScoreSometimes,
    StopOnSignal,
    WriteLog,
)
from backbones.resume import STATUS_INTERRUPTED
from defocus_eval.evaluate import to_markdown
from defocus_eval.files import write_text

with needed("transformers"):
    from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel, PrinterCallback, set_seed
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger("backbones")

# Classes in the printed table; scores.json holds all.
SHOWN = 20


def run(data: DataArguments, model: ModelArguments, arguments: RunArguments) -> int:
    """Trains and scores, or scores alone.

    Returns:
        The exit status: 75 where a signal ended the training.

    Raises:
        ValueError: What is asked for does not fit together; the message says what and the cure.
        FileNotFoundError: A file is not there.
        CheckpointError: A checkpoint cannot be read or does not fit.
    """
    folder = Path(arguments.output_dir)
    whole = str(folder) if arguments.score_only else model.model
    head = model.head if whole is None else AutoConfig.from_pretrained(whole).model_type
    task = heads.find_task(head, data.semantic)
    val = read_data(data, task, training=False)
    with standing_in(), dividing_by_all_objects():
        if arguments.score_only:
            net = heads.load_model(whole, task, val.names).to(arguments.device)
            score(net, AutoImageProcessor.from_pretrained(whole), val, task, arguments)
            return 0
        checkpoint = last_checkpoint(folder, arguments.resume)
        train = read_data(data, task, training=True, seed=arguments.seed)
        check_classes(train, val)
        set_seed(arguments.seed)
        net = _start(head, task, whole, model, train.names)
        heads.check_size(head, net, data.size)
        processor = heads.build_processor(head, task, data.size, model.processor, data.ignore_label)
        status = _train(net, processor, train, val, task, checkpoint, model, arguments)
    return status


def read_data(data: DataArguments, task: str, training: bool, seed: int = 0) -> LabelledImages:
    """The images to train or to score on.

    Args:
        data: Where they are.
        task: As of `heads.find_task`.
        training: Whether they are to be trained on: augmented, and of masks those of the training set.
        seed: Of the augmentation.

    Raises:
        ValueError: The files do not fit each other, or a folder of images is not named.
        FileNotFoundError: An image is not where it should be.
    """
    annotations = data.train_annotations if training else data.val_annotations
    images = data.train_images if training else data.val_images
    padding_label = data.ignore_label if task == "semantic" else 0
    augmentation = build_augmentation(data.augmentation, data.size, padding_label) if training else None
    if task != "semantic":
        return CocoImages(annotations, images, task == "masks" and training, training, augmentation, seed)
    if images is None:
        name = "train_images" if training else "val_images"
        raise ValueError(f"{name} is not given: label maps need the folder of their images")
    return LabelMapImages(annotations, images, data.classes, data.ignore_label, augmentation, seed)


def check_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raises ValueError if what is learned is not what is scored."""
    pairs = [
        list(zip(dataset.category_ids, dataset.names)) if isinstance(dataset, CocoImages) else dataset.names
        for dataset in (train, val)
    ]
    if pairs[0] != pairs[1]:
        raise ValueError(
            f"{train.annotations} and {val.annotations} have other classes, or in another order: {pairs[0]} and "
            f"{pairs[1]}. Labels are numbered in this order, so both must be equal"
        )


def last_checkpoint(folder: Path, resume: bool) -> str | None:
    """The newest checkpoint in a folder that was written to its end; None where there is none to go on from.

    Raises:
        ValueError: There is one and it is not to be resumed: a new run would mix with it.
    """
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        # What Trainer writes last.
        if number.isdigit() and (path / "trainer_state.json").is_file():
            found[int(number)] = path
        else:
            logger.warning("%s was not written to its end and is left out", path)
    if not found:
        return None
    if not resume:
        raise ValueError(
            f"{folder} holds {found[max(found)].name} of an earlier run: add --resume to go on from there, or name "
            "another output_dir"
        )
    return str(found[max(found)])


def _start(head: str, task: str, whole: str | None, model: ModelArguments, names: list[str]) -> PreTrainedModel:
    """The model that training starts from."""
    if whole is not None:
        net = heads.load_model(whole, task, names)
    else:
        net = heads.build_model(head, task, model.backbone, model.head_options, names)
    if model.init is not None:
        heads.load_backbone(net, model.init)
    return net


def _train(
    net: PreTrainedModel,
    processor,
    train: LabelledImages,
    val: LabelledImages,
    task: str,
    checkpoint: str | None,
    model: ModelArguments,
    arguments: RunArguments,
) -> int:
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    log, stop = WriteLog(folder / LOG), StopOnSignal()
    callbacks = [BeginEpoch(train), stop, log]
    if FollowThreads.wanted(arguments.device):
        # First, so that it times the step alone.
        callbacks.insert(0, FollowThreads())
    scored = partial(predict_and_score, processor=processor, dataset=val, task=task, folder=folder)
    scored = partial(scored, batch_size=arguments.eval_batch_size, bf16=arguments.bf16)
    if arguments.score_every:
        callbacks.append(ScoreSometimes(arguments.score_every, scored, log))
    trainer = LearningTrainer(
        net,
        arguments,
        backbone_rate=arguments.backbone_rate,
        layer_decay=arguments.layer_decay,
        train_dataset=train,
        data_collator=partial(heads.COLLATE[task], processor),
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_fsdp_enabled and arguments.score_every:
        raise ValueError("score_every is not for FSDP, whose processes wait for each other at each step: leave it at 0")
    logger.info(
        "%s: %.2f M parameters, %d classes; %d images to train on, %d to score",
        type(net).__name__,
        sum(p.numel() for p in net.parameters()) / 1e6,
        len(train.names),
        len(train),
        len(val),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.received:
        logger.warning("Stopped by a signal; %s holds what --resume goes on from", folder)
        return STATUS_INTERRUPTED
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:
        # Its parts lie in several processes, which predict unequal numbers of images.
        net = type(net).from_pretrained(folder).to(arguments.device)
    result = score(net, processor, val, task, arguments)
    if result is not None:
        log.write({"step": trainer.state.global_step, **main_scores(result)})
    return 0


def score(
    net: PreTrainedModel, processor, val: LabelledImages, task: str, arguments: RunArguments
) -> dict[str, Any] | None:
    """Predicts, prints the official table, and writes it to scores.json; the scores in the first process."""
    folder = Path(arguments.output_dir)
    result = predict_and_score(net, processor, val, task, folder, arguments.eval_batch_size, arguments.bf16)
    if result is not None:
        print(to_markdown(result, SHOWN))
        write_text(folder / "scores.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result
