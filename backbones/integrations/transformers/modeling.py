"""Backbones, models and classifiers that transformers' heads, Trainer and pipelines take as their own."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import IMAGE_PROCESSOR_NAME, TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from backbones.adapters import Adapter
from backbones.classifier import DefocusClassifier, classification_head
from backbones.defocus import FAMILIES, DefocusBackbone
from backbones.integrations.transformers.config import ADAPTERS, CONFIGS, DefocusConfig
from backbones.integrations.transformers.processing import image_processor


class DefocusPreTrainedModel(PreTrainedModel):
    """What backbone, model and classifier have in common: names, initial values, what may not be split.

    A backbone keeps its parameters under ``net.`` and ``adapter.``, a model under ``net.``, a classifier under
    ``defocus.net.``, ``head.`` and ``head2.``. Each loads the folder of any other, as far as they have the same.
    """

    config: DefocusConfig
    base_model_prefix = "defocus"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.base_model.net.patch_embed

    def no_weight_decay(self) -> set[str]:
        """As `DefocusBackbone.no_weight_decay`; of adapter and heads all vectors."""
        before = "" if self.base_model is self else f"{self.base_model_prefix}."
        names = {f"{before}net.{name}" for name in self.base_model.net.no_weight_decay()}
        others = ((name, p) for name, p in self.named_parameters() if not name.startswith(f"{before}net."))
        return names | {name for name, p in others if p.ndim == 1}

    def get_layer_id(self, name: str) -> int:
        """As `DefocusBackbone.get_layer_id`; adapter and heads belong with the final norm."""
        net = self.base_model.net
        before, found, inner = name.rpartition("net.")
        of_net = bool(found) and before in ("", f"{self.base_model_prefix}.")
        return net.get_layer_id(inner) if of_net else len(net.blocks) + 1

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """As transformers' own, and an image processor of ImageNet's pixels where the folder has none."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process and not (Path(save_directory) / IMAGE_PROCESSOR_NAME).exists():
            size = self.config.image_size if isinstance(self, TransformersClassifier) else None
            image_processor(size).save_pretrained(save_directory)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Of classes outside its package transformers passes over modules without parameters of their own, as blocks
        # are.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Gives what no checkpoint has filled the values that the core's constructors give."""
        if _is_filled(module):
            return
        if isinstance(module, DefocusBackbone):
            module.reset_parameters()
        elif isinstance(module, self.config.family.block):
            _fill(module, build_block(self.config))
        elif isinstance(module, Adapter):
            _fill(module, build_adapter(self.config, self.net))


class _WithNet(DefocusPreTrainedModel):
    """A model that holds the plain backbone itself."""

    def __init__(self, config: DefocusConfig, out_indices: tuple[int, ...]):
        super().__init__(config)
        net = NETS[config.family.__name__](out_indices=out_indices, **config.backbone_arguments)
        # Filters are made in fp32 whatever the default; ``from_pretrained(dtype=...)`` means all of a model.
        self.net = net.to(torch.get_default_dtype())


class TransformersBackbone(BackboneMixin, _WithNet):
    """Maps of one stride, or with an adapter a pyramid, for transformers' heads.

    ``feature_maps`` are those of ``config.out_features``, finest or shallowest first; the last block's map has passed
    the final norm. What runs for none of them is not trainable. ``hidden_states`` are sequences: the embedded tokens,
    then what each block that ran gave, in fp32 and before the final norm, the class token last.

    Args:
        config: As of the family.

    Raises:
        ValueError: The config does not fit itself; the message says what would.
    """

    has_attentions = False

    def __init__(self, config: DefocusConfig):
        blocks = _blocks_of(config, config.out_features) if config.adapter is None else config.adapter_blocks
        super().__init__(config, blocks or (0,))
        if config.adapter is None:
            self.num_features = [config.hidden_size] * len(self.stage_names)
        else:
            self.adapter = build_adapter(config, self.net)
            self.num_features = list(self.adapter.out_channels)
        self.post_init()

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Maps of images `(b, num_channels, H, W)` of any size.

        Args:
            pixel_values: The images.
            **kwargs: ``output_hidden_states``, ``return_dict``, and what transformers hands to all models.
        """
        if self.config.adapter is not None:
            maps = dict(zip(self.stage_names, self.adapter.adapt(self.net, pixel_values), strict=True))
            return BackboneOutput(feature_maps=tuple(maps[name] for name in self.out_features))
        sequence, grid = self.net.tokenize(pixel_values)
        blocks = _blocks_of(self.config, self.out_features)
        features = list(self.net.run_to(sequence, blocks))
        if self.stage_names[0] in self.out_features:
            features.insert(0, sequence.to(self.net.norm.weight.dtype))
        return BackboneOutput(feature_maps=tuple(grid.to_map(tokens) for tokens in features))

    def train(self, mode: bool = True):
        """As `torch.nn.Module.train`, but what is frozen stays in eval mode, and what does not run untrainable."""
        super().train(mode)
        # Loading makes every parameter trainable, and ends with this.
        self.net.freeze_after(self.net.out_indices[-1])
        return self


class TransformersModel(_WithNet):
    """All tokens after the final norm, the class token last: ``last_hidden_state`` `(b, l, hidden_size)`.

    They stand in scan order, those of padding among them. ``pooler_output`` is the class token's.

    Args:
        config: As of the family.
    """

    def __init__(self, config: DefocusConfig):
        super().__init__(config, (-1,))
        # As in the released classifiers; backbones have that of the released detectors.
        self.net.norm.eps = DefocusClassifier.norm_eps
        self.post_init()

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """Tokens of images `(b, num_channels, H, W)` of any size."""
        tokens = self.net.forward_sequence(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, -1])


class TransformersClassifier(DefocusPreTrainedModel):
    """A `DefocusClassifier`: logits by the class token, and an auxiliary head that counts in the loss alone.

    Args:
        config: As of the family, with ``num_labels`` or ``id2label``, ``head`` and ``auxiliary_loss``.
    """

    def __init__(self, config: DefocusConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.defocus = MODELS[config.family.__name__](config)
        self.head, self.head2 = (
            classification_head(config.hidden_size, config.num_labels, config.head) for _ in range(2)
        )
        self.head2.requires_grad_(config.auxiliary_loss)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """Logits `(b, num_labels)` of images `(b, num_channels, H, W)` of any size.

        Args:
            pixel_values: The images.
            labels: Classes `(b,)`, or what else ``config.problem_type`` asks for. With them there is a loss, the mean
                of both heads'; without ``auxiliary_loss`` that of the class token's head.
            **kwargs: ``output_hidden_states``, ``return_dict``, and what transformers hands to all models.
        """
        outputs = self.defocus(pixel_values, **kwargs)
        tokens = outputs.last_hidden_state
        logits, loss = self.head(tokens[:, -1]), None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
            if self.config.auxiliary_loss:
                auxiliary = self.head2(tokens[:, :-1].mean(1))
                loss = (loss + self.loss_function(labels, auxiliary, self.config, **kwargs)) / 2
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def train(self, mode: bool = True):
        """As `torch.nn.Module.train`; without ``auxiliary_loss`` its head stays untrainable."""
        super().train(mode)
        self.head2.requires_grad_(self.config.auxiliary_loss)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            for head in (self.head, self.head2):
                _fill(head, classification_head(self.config.hidden_size, self.config.num_labels, self.config.head))


def _checkpointed(family: str) -> type[DefocusBackbone]:
    """A family whose blocks are layers as transformers checkpoints them, by its own switch and arguments."""
    plain = FAMILIES[family].block
    layer = type(
        plain.__name__, (GradientCheckpointingLayer, plain), {"__module__": __name__, "__doc__": plain.__doc__}
    )
    globals()[plain.__name__] = layer
    return type(
        family, (FAMILIES[family],), {"__module__": __name__, "__doc__": FAMILIES[family].__doc__, "block": layer}
    )


def build_block(config: DefocusConfig) -> nn.Module:
    """A block of the family with its initial values."""
    mixer = {name: getattr(config, name) for name in config.mixer_arguments}
    return config.family.block(config.sizes, 0.0, config.rope_scale, config.delta_scale, **mixer)


def build_adapter(config: DefocusConfig, net: DefocusBackbone) -> Adapter:
    """The adapter that ``config`` names for ``net``, with its initial values."""
    return ADAPTERS[config.adapter["type"]].fit(net, **config.adapter_settings)


def _blocks_of(config: DefocusConfig, features: list[str]) -> tuple[int, ...]:
    """The blocks behind stages of a plain backbone, counted from 0; the stem is behind none."""
    stages = (config.stage_names.index(name) for name in features)
    return tuple(stage - 1 for stage in stages if stage > 0)


def _is_filled(module: nn.Module) -> bool:
    """Whether transformers has loaded or made all values of a module."""
    return all(getattr(value, "_is_hf_initialized", False) for value in (*module.parameters(), *module.buffers()))


def _fill(module: nn.Module, fresh: nn.Module) -> None:
    """Gives what has not been loaded into ``module`` the values of ``fresh``."""
    own = (*module.parameters(), *module.buffers())
    for value, initial in zip(own, (*fresh.parameters(), *fresh.buffers()), strict=True):
        if not getattr(value, "_is_hf_initialized", False):
            value.copy_(initial)


def _kinds(base: type, suffix: str) -> dict[str, type]:
    """A class of each family, under the name by which transformers and pickle find it."""
    kinds = {}
    for family, config in CONFIGS.items():
        block = FAMILIES[family].block
        members = {
            "__module__": __name__,
            "__doc__": f"`{family}` as a `{base.__name__}`.",
            "config_class": config,
            "_no_split_modules": [block.__name__],
            "_can_record_outputs": {"hidden_states": block},
        }
        kinds[family] = globals()[f"{family}{suffix}"] = type(f"{family}{suffix}", (base,), members)
    return kinds


NETS = {family: _checkpointed(family) for family in CONFIGS}
BACKBONES = _kinds(TransformersBackbone, "Backbone")
MODELS = _kinds(TransformersModel, "Model")
CLASSIFIERS = _kinds(TransformersClassifier, "ForImageClassification")
