"""Registers backbones, adapters and what trains them into mmengine, so that mmdet and mmseg configs can name them.

A config needs ``custom_imports = dict(imports=['backbones.integrations.openmmlab'])`` and nothing else. ``backbones``
alone would do, but any folder of that name that comes first on Python's path would, too, and register nothing.
"""

import contextlib
import time

import torch

from backbones import adapters, defocus
from backbones.checkpoints import load_pretrained
from backbones.checkpoints.read import harmless_classes, read_torch
from backbones.drop_path_schedule import DropPathSchedule
from backbones.integrations.deformable import standing_in
from backbones.integrations.frameworks import needed
from backbones.integrations.reference_head import widen_reference_heads
from backbones.thread_count import ThreadCount, may_choose_threads

with needed("mmengine"):
    from mmengine.dist import get_world_size
    from mmengine.hooks import Hook
    from mmengine.logging import print_log
    from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
    from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
    from mmengine.runner import autocast
    from mmengine.runner import checkpoint as mmengine_checkpoint

    from backbones.integrations import annotation_check, coco_json, resume  # noqa: F401  register hooks and a runner

# OneDL's mmengine reads a file that torch refuses a second time, after a warning, and runs what is in it, be it for
# ``load_from``, ``--resume`` or ``tools/test.py``. It keeps the first half of that.
if hasattr(mmengine_checkpoint, "_safe_torch_load"):
    mmengine_checkpoint._safe_torch_load = lambda file, map_location=None: read_torch(file, map_location)

# mmengine before 0.10.8 reads its own checkpoints with torch.load's default, which since torch 2.6 admits tensors
# and plain data only. This lets exactly the plain data that mmengine writes pass.
torch.serialization.add_safe_globals(harmless_classes())


class InitFromCheckpoint:
    """Gives a backbone mmengine's ``init_cfg``, of which only ``Pretrained`` has a meaning here."""

    init_cfg: dict | None
    is_init = False

    def init_weights(self) -> None:
        """Loads the checkpoint of ``init_cfg``; without one the constructor's values stay.

        Raises:
            ValueError: ``init_cfg`` is not ``dict(type='Pretrained', checkpoint=...)``.
            CheckpointError: The checkpoint cannot be read or does not fit.
        """
        if self.init_cfg is not None and not self.is_init:
            where = {key: self.init_cfg[key] for key in ("container", "prefix") if key in self.init_cfg}
            report = load_pretrained(self, self.init_cfg["checkpoint"], **where)
            print_log(str(report), logger="current")
        self.is_init = True


def _check_init_cfg(init_cfg):
    if init_cfg is None:
        return
    allowed = {"type", "checkpoint", "container", "prefix"}
    if init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg or set(init_cfg) - allowed:
        raise ValueError(
            "init_cfg must be dict(type='Pretrained', checkpoint=FILE), optionally with container=KEY and "
            f"prefix='backbone.', got {dict(init_cfg)}"
        )


def _with_init_cfg(family: type[defocus.DefocusBackbone]) -> type:
    """A family of backbones with mmengine's ``init_cfg``.

    That is None, or ``dict(type='Pretrained', checkpoint=FILE)``: the checkpoint of a classifier, detector, segmentor
    or backbone (its moving average if it has one; all but the backbone left out). ``container=KEY`` names the weights
    to take, ``prefix='backbone.'`` the backbone of a file with several. All other arguments are the family's own,
    which rejects unknown ones.
    """

    def __init__(self, *args, init_cfg: dict | None = None, **kwargs):
        _check_init_cfg(init_cfg)
        # Of a detector this is built first.
        widen_reference_heads()
        family.__init__(self, *args, **kwargs)
        self.init_cfg = init_cfg

    members = {"__init__": __init__, "__doc__": family.__doc__, "__module__": __name__}
    return type(family.__name__, (InitFromCheckpoint, family), members)


for _family in defocus.FAMILIES.values():
    # Under its name here, by which pickle finds it.
    globals()[_family.__name__] = _with_init_cfg(_family)
    MODELS.register_module(module=globals()[_family.__name__])
for _adapter in (adapters.SimpleFPN, adapters.TapPyramid, adapters.InteractionAdapter):
    MODELS.register_module(module=_adapter)


@MODELS.register_module()
class AdaptedBackbone(adapters.AdaptedBackbone):
    """A backbone and an adapter from their configs: images to a pyramid.

    Args:
        net: Config of the backbone.
        adapter: Config of the adapter: ``dict(type='SimpleFPN' | 'TapPyramid' | 'InteractionAdapter')`` and what
            differs from its defaults; what follows from the backbone is read from it.
    """

    def __init__(self, net: dict, adapter: dict):
        net = MODELS.build(net)
        settings = dict(adapter)
        kind = MODELS.get(settings.pop("type"))
        super().__init__(net, kind.fit(net, **settings))

    def init_weights(self) -> None:
        """Loads the checkpoint of the backbone's ``init_cfg``."""
        self.net.init_weights()


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ReducedGroupsOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's own constructor, with the parameters of equal settings in one group.

    With ``paramwise_cfg`` mmengine makes a group of each parameter. Fused and foreach optimizers run once a group, and
    the hooks and schedulers read and write all of them at each step. All arguments are mmengine's.
    """

    def add_params(self, params: list[dict], module: torch.nn.Module, prefix: str = "", **kwargs) -> None:
        """Fills ``params`` with one group for each setting that occurs, in the order of the first parameter of each."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # mmengine's constructor calls itself for each child
            return
        self.adjust(params, module)
        groups: dict[tuple, dict] = {}
        for group in params:
            settings = tuple(sorted((key, repr(value)) for key, value in group.items() if key != "params"))
            groups.setdefault(settings, {**group, "params": []})["params"] += group["params"]
        params[:] = groups.values()

    def adjust(self, params: list[dict], module: torch.nn.Module) -> None:
        """What a subclass changes in the groups of one parameter each, before they are merged."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(ReducedGroupsOptimWrapperConstructor):
    """Learning rates that fall from block to block towards the image (arXiv 2106.08254).

    ``paramwise_cfg=dict(layer_decay_rate=0.9)``: a parameter of layer i of the backbone (0 the patch embedding, depth
    + 1 the final norm) learns at lr · rate^(depth + 1 - i); heads, necks and adapters at lr. What the backbone lists
    in ``no_weight_decay()`` and every vector does not decay. All other keys of ``paramwise_cfg`` are mmengine's, and
    multiply.

    Raises:
        ValueError: ``layer_decay_rate`` is missing or not in (0, 1], or there is no De-focus backbone to decay.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        rate = (paramwise_cfg or {}).get("layer_decay_rate")
        if rate is None or not 0 < rate <= 1:
            raise ValueError(
                "LayerDecayOptimWrapperConstructor needs paramwise_cfg=dict(layer_decay_rate=RATE), 0 < RATE <= 1, "
                f"got {paramwise_cfg}"
            )
        self.layer_decay_rate = rate
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def adjust(self, params: list[dict], module: torch.nn.Module) -> None:
        """Scales the rates of the backbone's parameters.

        Raises:
            ValueError: There is no De-focus backbone in ``module``.
        """
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        # Asked once: each of the names is looked for in the whole backbone.
        backbones = {
            name: (part, part.no_weight_decay())
            for name, part in module.named_modules()
            if isinstance(part, defocus.DefocusBackbone)
        }
        if not backbones:
            raise ValueError("layer_decay_rate needs a De-focus backbone in the model, which has none")
        for group in params:
            (parameter,) = group["params"]
            self._scale(group, names[id(parameter)], parameter, backbones)

    def _scale(self, group: dict, name: str, parameter: torch.Tensor, backbones: dict) -> None:
        undecayed = parameter.ndim == 1
        for prefix, (backbone, constants) in backbones.items():
            if name.startswith(f"{prefix}."):
                local = name.removeprefix(f"{prefix}.")
                depth = len(backbone.blocks)
                factor = self.layer_decay_rate ** (depth + 1 - backbone.get_layer_id(local))
                group["lr"] = group.get("lr", self.base_lr) * factor
                undecayed |= local in constants
        if undecayed:
            group["weight_decay"] = 0.0


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Training under bf16 autocast on any device; mmengine's ``AmpOptimWrapper`` demands an accelerator.

    Gradients need no scaling, for bf16 has the range of fp32. All arguments are those of ``OptimWrapper``.
    """

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module):
        """As mmengine's, under bf16 autocast."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


@HOOKS.register_module()
class DeformableAttentionHook(Hook):
    """Runs mmcv's multi-scale deformable attention on `backbones.ops.deformable_attention` while a runner works.

    mmcv itself has a CUDA kernel for fp32 and fp16, which has to be built when it is installed. On a CPU, and in bf16,
    it falls back on a function of plain PyTorch that is several times slower (and says so in bf16). Ours stands in for
    both, equal up to rounding, and takes mmcv's kernel where `DEFOCUS_DEFORMABLE_BACKEND=mmcv` says so.
    """

    def before_run(self, runner) -> None:
        """Puts ours in the place of mmcv's."""
        from mmcv.ops import multi_scale_deform_attn

        self._in_place = contextlib.ExitStack()
        self._in_place.enter_context(standing_in(multi_scale_deform_attn))

    def after_run(self, runner) -> None:
        """Puts mmcv's back."""
        self._in_place.close()


@HOOKS.register_module()
class ThreadCountHook(Hook):
    """Finds the number of threads with which a training on a CPU is fastest, and follows it: `ThreadCount`.

    Idle on a GPU, in several processes, and where ``OMP_NUM_THREADS`` says how many threads there are to be.
    """

    def before_train(self, runner) -> None:
        """Decides whether there is anything to follow."""
        device_type = next(runner.model.parameters()).device.type
        self.thread_count = ThreadCount() if may_choose_threads(device_type, get_world_size()) else None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Starts the clock."""
        self.start = time.perf_counter()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Sets the threads of the next iteration by the time of this one, and logs a change."""
        said = self.thread_count and self.thread_count.step(time.perf_counter() - self.start)
        if said:
            runner.logger.info(said)


@HOOKS.register_module()
class DropPathScheduleHook(Hook):
    """Raises the backbone's drop path linearly from epoch to epoch, or from iteration to iteration without epochs.

    Args:
        start: Rate of the last block at the first step.
        end: The same at the last step.

    Raises:
        ValueError: A rate outside [0, 1), or no De-focus backbone in the model, before the first step.
    """

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end

    def before_train(self, runner) -> None:
        """Makes the schedule for the epochs or iterations of the run."""
        loop = runner.train_loop
        self.by_epoch = hasattr(loop, "max_epochs") and type(loop).__name__ != "IterBasedTrainLoop"
        steps = loop.max_epochs if self.by_epoch else loop.max_iters
        self.schedule = DropPathSchedule(runner.model, self.start, self.end, steps)

    def before_train_epoch(self, runner) -> None:
        """Sets the rate of an epoch."""
        if self.by_epoch:
            self.schedule.step(runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Sets the rate of an iteration, where there are no epochs."""
        if not self.by_epoch:
            self.schedule.step(runner.iter)
