"""What `defocus train-detectron2` runs: lazy and YAML configs, on GPUs or without, on one process or several."""

import argparse
import difflib
import inspect
import logging
import multiprocessing
import os
import re
import signal
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import distributed, nn
from torch.multiprocessing import ProcessExitedException

from backbones.integrations.detectron2 import ThreadCountHook, register_coco_json
from backbones.integrations.detectron2.resume import ResumeHook, WholeFileCheckpointer
from backbones.resume import STOP_SIGNALS
from backbones.thread_count import may_choose_threads

logger = logging.getLogger("detectron2")


def main(arguments: argparse.Namespace) -> None:
    """What each process runs.

    Args:
        arguments: Those of Detectron2's own parser, and ``dataset``: (name, JSON, folder of images) of each.

    Raises:
        ValueError: The config cannot be trained here, or has nothing that an override names; the message says what.
    """
    for name, json_file, image_root in arguments.dataset:
        register_coco_json(json_file, image_root, name)
    if Path(arguments.config_file).suffix in (".yaml", ".yml"):
        config = get_cfg()
        config.merge_from_file(arguments.config_file)
        config.merge_from_list(arguments.opts)
        _run_yaml(config, arguments)
    else:
        config = LazyConfig.load(arguments.config_file)
        check_overrides(config, arguments.opts)
        config = LazyConfig.apply_overrides(config, arguments.opts)
        _run_lazy(config, arguments)


def check_overrides(config: DictConfig, overrides: list[str]) -> None:
    """Refuses to set what the config does not have, which Detectron2 would add without a word.

    An argument of a callable that the config leaves at its default counts as there; ``+key=value`` adds any other key.

    Raises:
        ValueError: The key does nothing; the message names those that come near it.
    """
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r} is not of the form key=value")
        if name.startswith("+"):
            continue
        node, path = config, []
        for part in filter(None, re.split(r"[.\[\]]", name.lstrip("~"))):
            if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, DictConfig) and part in node:
                # Without resolving what is interpolated.
                node = node._get_node(part)
            elif isinstance(node, DictConfig) and part in _arguments(node, part):
                break
            else:
                known = [*map(str, node), *_arguments(node, "")] if isinstance(node, DictConfig) else []
                near = ", ".join(map(repr, difflib.get_close_matches(part, known)))
                raise ValueError(
                    f"{name!r} is nothing that this config has: {'.'.join(path) or 'the config'} has no {part!r}"
                    f"{f', but {near}' if near else ''}. Write +{override} to add it all the same"
                )
            path.append(part)


def _arguments(node: DictConfig, name: str) -> list[str]:
    """Names that the callable of a lazy call takes; ``name`` among them if it takes, or refuses by itself, any."""
    target = node.get("_target_")
    if isinstance(target, str):
        target = locate(target)
    try:
        parameters = inspect.signature(target).parameters.values() if callable(target) else ()
    except ValueError:  # builtins have no signature
        return []
    return [name if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters]


def _run_lazy(config: DictConfig, arguments: argparse.Namespace) -> None:
    if OmegaConf.select(config, "train.model_ema.enabled"):
        raise ValueError(
            "train.model_ema.enabled=True: this program keeps no moving average. detrex' tools/train_net.py does; here "
            "say train.model_ema.enabled=False"
        )
    notices = [] if torch.cuda.is_available() else _move_to_cpu(config)
    default_setup(config, arguments)
    for notice in notices:
        logger.warning(notice)
    model = instantiate(config.model).to(config.train.device)
    if arguments.eval_only:
        model = create_ddp_model(model, **config.train.ddp)
        DetectionCheckpointer(model).load(config.train.init_checkpoint)
        _evaluate(config, model)
        return

    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    clip = OmegaConf.select(config, "train.clip_grad")
    if clip is not None and clip.enabled:
        _clip_gradients(optimizer, **clip.params)
    model = create_ddp_model(model, **config.train.ddp)
    kind = AMPTrainer if config.train.amp.enabled else SimpleTrainer
    trainer = kind(model, None, optimizer)
    checkpointer = WholeFileCheckpointer(model, config.train.output_dir, trainer=trainer)
    seed = OmegaConf.select(config, "train.seed", default=-1)
    resume = ResumeHook(checkpointer, lambda: instantiate(config.dataloader.train), seed)
    # First, so that it times the step alone.
    if may_choose_threads(config.train.device, comm.get_world_size()):
        trainer.register_hooks([ThreadCountHook()])
    trainer.register_hooks([hooks.IterationTimer(), hooks.LRScheduler(scheduler=instantiate(config.lr_multiplier))])
    if comm.is_main_process():
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, **config.train.checkpointer)])
    trainer.register_hooks([resume])
    # Before the writers, which then write the scores too.
    trainer.register_hooks([hooks.EvalHook(config.train.eval_period, lambda: _evaluate(config, model))])
    if comm.is_main_process():
        writers = default_writers(config.train.output_dir, config.train.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=config.train.log_period)])
    checkpointer.resume_or_load(config.train.init_checkpoint, resume=arguments.resume)
    resumed = arguments.resume and checkpointer.has_checkpoint()
    trainer.train(trainer.iter + 1 if resumed else 0, config.train.max_iter)


def _move_to_cpu(config: DictConfig) -> list[str]:
    """Takes from a config what needs a GPU; returns what to tell the user."""
    notices = []
    if config.train.device != "cpu":
        notices.append(f"train.device is {config.train.device!r} and there is no GPU: running on the CPU")
        config.train.device = "cpu"
    if "device" in config.model:
        config.model.device = "cpu"
    if config.train.amp.enabled:
        notices.append("train.amp.enabled is left out: Detectron2's mixed precision runs on CUDA alone")
        config.train.amp.enabled = False
    # DDP refuses the device ids that Detectron2 hands it by default.
    config.train.ddp.device_ids = None
    return notices


def _clip_gradients(optimizer: torch.optim.Optimizer, **settings) -> None:
    """Clips the norm of all gradients before each step, as ``train.clip_grad`` of detrex' configs says."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(parameters, **settings))


def _evaluate(config: DictConfig, model: nn.Module) -> dict:
    """Scores on the test set; {} for a config without evaluator."""
    if "evaluator" not in config.dataloader:
        return {}
    results = inference_on_dataset(model, instantiate(config.dataloader.test), instantiate(config.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


class YamlTrainer(DefaultTrainer):
    """Detectron2's trainer for YAML configs, with COCO's scores, for runs that are interrupted."""

    def build_hooks(self) -> list[hooks.HookBase]:
        """Detectron2's, and the one that resumes."""
        self.checkpointer = WholeFileCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        found = super().build_hooks()
        evaluation = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook))
        found.insert(evaluation, ResumeHook(self.checkpointer, lambda: self.data_loader, self.cfg.SEED))
        return found

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        """The evaluator of a data set in COCO's format.

        Raises:
            ValueError: The data set is of another kind.
        """
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        if kind != "coco":
            raise ValueError(f"{dataset_name} is to be scored as {kind!r}; use Detectron2's own tools/train_net.py")
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference"))


def _run_yaml(config: CfgNode, arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        if comm.get_world_size() > 1:
            raise ValueError("YAML configs train in one process where there is no GPU; lazy configs in several")
        config.MODEL.DEVICE = "cpu"
        config.SOLVER.AMP.ENABLED = False
    config.freeze()
    default_setup(config, arguments)
    if arguments.eval_only:
        model = YamlTrainer.build_model(config)
        checkpointer = DetectionCheckpointer(model, save_dir=config.OUTPUT_DIR)
        checkpointer.resume_or_load(config.MODEL.WEIGHTS, resume=arguments.resume)
        YamlTrainer.test(config, model)
        return
    trainer = YamlTrainer(config)
    trainer.resume_or_load(resume=arguments.resume)
    trainer.train()


def start(arguments: argparse.Namespace) -> None:
    """Runs `main` in the process that torchrun started, or in as many as ``--num-gpus`` says.

    Raises:
        SystemExit: With the status of the processes, if that is not 0.
    """
    if distributed.is_torchelastic_launched():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        main(arguments)
        return
    if arguments.num_gpus * arguments.num_machines > 1:
        for number in STOP_SIGNALS:
            signal.signal(number, _pass_on)
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except ProcessExitedException as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _pass_on(number: int, _frame) -> None:
    children = multiprocessing.active_children()
    if not children:
        sys.exit(128 + number)
    for child in children:
        os.kill(child.pid, number)


def _data_set(text: str) -> tuple[str, str, str]:
    name, equals, files = text.partition("=")
    json_file, colon, image_root = files.rpartition(":")
    if not (name and equals and json_file and colon and image_root):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=ANNOTATIONS.json:IMAGE_FOLDER")
    return name, json_file, image_root


def run(words: Sequence[str] | None, description: str) -> int:
    """Trains or scores as the words of a command line say; returns its exit status.

    Args:
        words: The command line, by default this process's own.
        description: What ``--help`` says beside the flags.
    """
    parser = default_argument_parser(epilog=description)
    parser.add_argument(
        "--dataset",
        type=_data_set,
        action="append",
        default=[],
        metavar="NAME=JSON:FOLDER",
        help="a COCO json that a YAML config names; may be given several times",
    )
    start(parser.parse_args(words))
    return 0
