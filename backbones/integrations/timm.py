"""Registers every size of every family into timm: ``timm.create_model('defocus_mamba_base')`` and the like."""

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from backbones.checkpoints import weights_of
from backbones.classifier import DefocusClassifier
from backbones.defocus import FAMILIES, DefocusBackbone

_RELEASE = "https://github.com/OpenGVLab/De-focus-Attention-Networks/releases/download/v1.0/"
_WEIGHTS = {
    "defocus_mamba_base": dict(url=_RELEASE + "defocus_mamba_base_cls.pth"),
    # 384 pixels after pre-training at 192: the two scales of the phase and the step sizes.
    "defocus_mamba_large": dict(url=_RELEASE + "defocus_mamba_large_cls_1k.pth", input_size=(3, 384, 384)),
}
_SETTINGS = {"defocus_mamba_large": dict(head="mlp", rope_scale=4.0, delta_scale=2.0)}


class TimmDefocus(DefocusClassifier):
    """A De-focus classifier that answers what timm asks of its models.

    In training it gives one set of logits that trains both heads under any loss on log-probabilities: the mean of the
    two heads' log-probabilities. Their cross entropy is the mean of the two heads' own less a term that is zero where
    they agree. In evaluation it gives the class token's logits.

    Args:
        family: Name of the family, as "DefocusMamba".
        num_classes: Outputs, 0 for features.
        in_chans: Channels of the image.
        head: "linear" or "mlp".
        drop_rate: Dropout before the heads.
        global_pool: "token" only: the class token is what the heads were made for; "" gives all tokens.
        **backbone: As the family's own arguments, which rejects unknown ones.
    """

    def __init__(
        self,
        family: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        head: str = "linear",
        drop_rate: float = 0.0,
        global_pool: str = "token",
        **backbone,
    ):
        if global_pool not in ("token", ""):
            raise ValueError(f"global_pool must be 'token' or '' (no pooling, all tokens), got {global_pool!r}")
        super().__init__(FAMILIES[family](in_channels=in_chans, **backbone), num_classes, head)
        self.num_features = self.head_hidden_size = self.embed_dim = self.backbone.embed_dims
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [
            dict(num_chs=self.num_features, reduction=self.backbone.patch_size, module=f"backbone.blocks.{i}")
            for i in range(len(self.backbone.blocks))
        ]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with ``pre_logits`` what the first head is given, from `forward_features`."""
        if self.global_pool == "":
            return x
        x = self.head_drop(x)
        if pre_logits or self.num_classes == 0:
            return x[:, -1]
        if not self.training:
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
            x: Images.
            indices: Blocks; an int for the last so many, None for all.
            norm: Apply the final norm to every map; without it only the last block's map has passed it.
            stop_early: Do not run the blocks after the last one asked for.
            output_fmt: "NCHW" only.
            intermediates_only: Return the maps alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken, _ = feature_take_indices(len(self.backbone.blocks), indices)
        last = len(self.backbone.blocks) - 1
        maps = dict(zip(sorted(set(taken)), self.backbone.forward_maps(x, tuple(sorted(set(taken)))), strict=True))
        if norm:
            for i in maps.keys() - {last}:
                maps[i] = self.backbone.norm(maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        intermediates = [maps[i] for i in taken]
        if intermediates_only or stop_early:
            return intermediates if intermediates_only else (maps[max(taken)], intermediates)
        return self.forward_features(x), intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the heads, which maps do not need; blocks after the last map are not run in any case.

        Returns:
            The indices, none negative.
        """
        if prune_head:
            self.reset_classifier(0)
        return feature_take_indices(len(self.backbone.blocks), indices)[0]

    def get_classifier(self) -> nn.Module:
        """The head on the class token."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces both heads."""
        if global_pool is not None:
            self.global_pool = global_pool
        super().reset_classifier(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward, or not."""
        self.backbone.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that should not decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Groups for layer-wise learning-rate decay."""
        return dict(
            stem=r"^backbone\.(?:cls_token|patch_embed)",
            blocks=[(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.norm", (99999,))],
        )


def checkpoint_filter_fn(state_dict: dict, model: nn.Module) -> dict[str, Tensor]:
    """The weights in a released checkpoint, its moving average where it has one."""
    return weights_of(state_dict)[0]


def _variants():
    """(timm's name, family, arch) of every row in every family's table."""
    for name, family in FAMILIES.items():
        for arch in family.block.archs:
            yield f"defocus_{name.removeprefix('Defocus').lower()}_{arch}", family, arch


def _entry_point(name: str, family: type[DefocusBackbone], arch: str):
    def create(pretrained: bool = False, **kwargs):
        settings = dict(family=family.__name__, arch=arch, **_SETTINGS.get(name, {})) | kwargs
        return build_model_with_cfg(
            TimmDefocus,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=(-1,), feature_cls="getter"),
            **settings,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{family.__name__}, {arch}."
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
            first_conv="backbone.patch_embed.projection",
            classifier=("head", "head2"),
        )
        | _WEIGHTS.get(name, {})
        for name, _, _ in _variants()
    }
)
for _variant in _variants():
    setattr(sys.modules[__name__], _variant[0], register_model(_entry_point(*_variant)))
