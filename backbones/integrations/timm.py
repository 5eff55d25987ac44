"""Registers every size of every family into timm: ``timm.create_model('defocus_mamba_base')`` and the like."""

import sys
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.checkpoints import (
    backbone_from_checkpoint,
    classifier_heads,
    find_backbones,
    to_classifier,
    weights_of,
)
from backbones.checkpoints.read import harmless_classes
from backbones.classifier import CLASSIFIERS, DefocusClassifier
from backbones.integrations.frameworks import needed, timm_names

with needed("timm"):
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import (
        build_model_with_cfg,
        create_model,
        generate_default_cfgs,
        get_pretrained_cfg,
        register_model,
    )
    from timm.models._features import feature_take_indices

_RELEASE = "https://github.com/OpenGVLab/De-focus-Attention-Networks/releases/download/v1.0/"
_WEIGHTS = {
    "defocus_mamba_base": dict(url=_RELEASE + "defocus_mamba_base_cls.pth"),
    "defocus_mamba_large": dict(url=_RELEASE + "defocus_mamba_large_cls_1k.pth", input_size=(3, 384, 384)),
}
_SETTINGS = {"defocus_mamba_large": dict(head="mlp")}
# The released weights were pre-trained at 192 pixels and tuned at 384.
_PRETRAINED_SETTINGS = {"defocus_mamba_large": dict(rope_scale=4.0, delta_scale=2.0)}

# timm reads what it downloads with torch.load's default. This lets the plain data pass that the released files and
# timm's own hold beside their weights, such as the arguments of the script.
torch.serialization.add_safe_globals(harmless_classes())


class TimmDefocus(DefocusClassifier):
    """A De-focus classifier that answers what timm asks of its models.

    In training it gives one set of logits that trains both heads under any loss on log-probabilities: the mean of the
    two heads' log-probabilities. Their cross entropy is the mean of the two heads' own less a term that is zero where
    they agree. In evaluation, and without ``auxiliary_loss``, it gives the class token's logits.

    Args:
        *args: As of the family.
        num_classes: Outputs, 0 for features.
        in_chans: Channels of the image.
        drop_rate: Dropout before the heads.
        global_pool: "token" only: the class token is what the heads were made for; "" gives all tokens.
        **classifier: As of `DefocusClassifier` and the family, which reject unknown ones.

    Raises:
        ValueError: Another ``global_pool``, or an argument of the classifier outside its range.
    """

    def __init__(
        self,
        *args,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "token",
        **classifier,
    ):
        if global_pool not in ("token", ""):
            raise ValueError(f"global_pool must be 'token' or '' (no pooling, all tokens), got {global_pool!r}")
        super().__init__(*args, in_channels=in_chans, num_classes=num_classes, **classifier)
        self.num_features = self.head_hidden_size = self.embed_dim = self.embed_dims
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [
            dict(num_chs=self.num_features, reduction=self.patch_size, module=f"blocks.{i}")
            for i in range(len(self.blocks))
        ]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with ``pre_logits`` what the first head is given, from `forward_features`.

        Args:
            x: All tokens, `(b, l, embed_dims)`, the class token last.
            pre_logits: Whether the class token's features are wanted.

        Returns:
            `(b, num_classes)` or `(b, embed_dims)`; without pooling ``x`` itself.
        """
        if self.global_pool == "":
            return x
        x = self.head_drop(x)
        if pre_logits or self.num_classes == 0:
            return x[:, -1]
        if not (self.training and self.auxiliary_loss):
            return self.head(x[:, -1])
        return torch.stack([F.log_softmax(logits, -1) for logits in self.forward_heads(x)]).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, num_classes)` of images `(b, in_chans, H, W)`."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after the blocks of ``indices``, and unless ``intermediates_only`` the final tokens before them.

        Args:
            x: Images, `(b, in_chans, H, W)`.
            indices: Blocks; an int for the last so many, None for all.
            norm: Apply the final norm to every map; without it only the last block's map has passed it.
            stop_early: Do not run the blocks after the last one asked for.
            output_fmt: "NCHW" only.
            intermediates_only: Return the maps alone.

        Returns:
            Maps `(b, embed_dims, rows, columns)`, and the tokens `(b, l, embed_dims)`, or with ``stop_early`` the last
            map in their place.

        Raises:
            ValueError: Another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        last = len(self.blocks) - 1
        taken, _ = feature_take_indices(last + 1, indices)
        # One pass gives maps and tokens: with stochastic depth a second one would be of another network.
        whole = not (intermediates_only or stop_early)
        steps = sorted({*taken, last} if whole else {*taken})
        sequence, grid = self.tokenize(x)
        features = dict(zip(steps, self.run_to(sequence, steps), strict=True))
        maps = {i: grid.to_map(features[i]) for i in taken}
        if norm:
            for i in maps.keys() - {last}:
                maps[i] = self.norm(maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        intermediates = [maps[i] for i in taken]
        if intermediates_only:
            return intermediates
        return features[last] if whole else maps[max(taken)], intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the heads, which maps do not need; blocks after the last map are not run, and no longer trainable.

        Returns:
            The indices, none negative.
        """
        if prune_head:
            self.reset_classifier(0)
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.freeze_after(last)
        if not prune_norm:
            self.norm.requires_grad_(True)
        return taken

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs):
        """As torch's, of a detector, a segmentor or a plain backbone too, whose names are not a classifier's.

        timm's ``checkpoint_path`` hands over what is in a file.
        """
        return super().load_state_dict(_classifier_names(state_dict), *args, **kwargs)

    def get_classifier(self) -> nn.Module:
        """The head on the class token."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces both heads; ``global_pool`` changes too where it is given.

        Raises:
            ValueError: A negative number of classes.
        """
        if global_pool is not None:
            self.global_pool = global_pool
        super().reset_classifier(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward, or not."""
        self.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns of parameters' names by group, for timm's layer-wise learning-rate decay."""
        return dict(
            stem=r"^(?:cls_token|patch_embed)",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        )


def checkpoint_filter_fn(state_dict: dict, model: nn.Module) -> dict[str, Tensor]:
    """The weights in a checkpoint, its moving average where it has one; of a detector the backbone alone."""
    return _classifier_names(weights_of(state_dict)[0])


def _classifier_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The backbone in the weights of any model, named as in a classifier; a classifier's with its heads."""
    if f"patch_embed.{TimmDefocus.projection_name}.weight" in weights or not find_backbones(weights):
        return weights
    backbone, _ = backbone_from_checkpoint(weights)
    if classifier_heads(weights):
        return to_classifier(weights)[0]
    theirs, ours = "patch_embed.projection.", f"patch_embed.{TimmDefocus.projection_name}."
    return {ours + name.removeprefix(theirs) if name.startswith(theirs) else name: backbone[name] for name in backbone}


# Family to timm's model: `TimmDefocusMamba` and so on.
MODELS: dict[str, type[TimmDefocus]] = {}
for _family, _classifier in CLASSIFIERS.items():
    _members = {"__module__": __name__, "__doc__": f"`{_family}` as a `TimmDefocus`."}
    MODELS[_family] = globals()[f"Timm{_family}"] = type(f"Timm{_family}", (TimmDefocus, _classifier), _members)


def _entry_point(name: str, family: str, arch: str):
    def create(pretrained: bool = False, **kwargs):
        settings = dict(arch=arch, **_SETTINGS.get(name, {}))
        if pretrained:
            settings |= _PRETRAINED_SETTINGS.get(name, {})
        return build_model_with_cfg(
            MODELS[family],
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=(-1,), feature_cls="getter"),
            **(settings | kwargs),
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{family}, {arch}."
    return create


default_cfgs = generate_default_cfgs(
    {
        name: dict(
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=None,
            fixed_input_size=False,
            crop_pct=0.9,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv="patch_embed.proj",
            # The last layer of each head, which has the classes.
            classifier=("head.2", "head2.2") if "head" in _SETTINGS.get(name, {}) else ("head", "head2"),
        )
        | _WEIGHTS.get(name, {})
        for name, _, _ in timm_names()
    }
)
for _variant in timm_names():
    setattr(sys.modules[__name__], _variant[0], register_model(_entry_point(*_variant)))


def size_settings(name: str, size: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """What `timm.create_model` has to be told of the (height, width) of the images; not all models want to know."""
    form = get_pretrained_cfg(name)
    return {"img_size": tuple(size)} if form is not None and form.fixed_input_size else {}


def create_peer(name: str, image_size: int) -> nn.Module:
    """A backbone of timm without weights and without a head, to compare ours with.

    Args:
        name: As timm knows it.
        image_size: Side of the images in pixels.
    """
    return create_model(name, num_classes=0, **size_settings(name, (image_size, image_size)))
