"""The image classifier that pre-trains a backbone: two heads, one loss, in the released layout."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.defocus import DefocusBackbone


class DefocusClassifier(nn.Module):
    """A backbone with one head on the class token and an auxiliary one on the mean of the image tokens.

    The auxiliary head makes every token worth something to the loss, not only those that the last one looks at. Its
    state dict has the names of the released classifiers: the backbone's own at the top (the patch embedding as
    ``patch_embed.proj``), then ``head`` and ``head2``.

    Args:
        backbone: A De-focus backbone; its final norm gets the classifiers' eps, 1e-6.
        num_classes: Outputs of each head; 0 for none, `forward` then gives the class token's features.
        head: "linear", or "mlp" for Linear, Tanh, Linear with three times the width in between (as in the large
            models).

    Raises:
        ValueError: An unknown ``head``, a negative number of classes.
    """

    def __init__(self, backbone: DefocusBackbone, num_classes: int = 1000, head: str = "linear"):
        super().__init__()
        if head not in ("linear", "mlp"):
            raise ValueError(f"head must be 'linear' or 'mlp', got {head!r}")
        self.backbone = backbone
        self.backbone.norm.eps = 1e-6
        self.head_kind = head
        self.reset_classifier(num_classes)
        self._register_state_dict_hook(_to_released_names)
        self.register_load_state_dict_pre_hook(_from_released_names)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces both heads by new ones."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no heads) or more, got {num_classes}")
        self.num_classes = num_classes
        self.head, self.head2 = (_head(self.backbone.embed_dims, num_classes, self.head_kind) for _ in range(2))

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the final norm, the class token last: `(b, l, embed_dims)`."""
        return self.backbone.forward_sequence(x)

    def forward_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits by the class token and by the mean of the image tokens, each `(b, num_classes)`."""
        return self.head(tokens[:, -1]), self.head2(tokens[:, :-1].mean(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, num_classes)` by the class token, of images `(b, c, H, W)`."""
        return self.head(self.forward_features(x)[:, -1])

    def loss(self, x: Tensor, target: Tensor, criterion: Callable = F.cross_entropy) -> Tensor:
        """The mean of both heads' losses.

        Args:
            x: Images, `(b, c, H, W)`.
            target: What ``criterion`` takes beside logits: classes `(b,)`, or probabilities `(b, num_classes)`.
            criterion: Maps logits and target to a scalar.
        """
        main, auxiliary = self.forward_heads(self.forward_features(x))
        return (criterion(main, target) + criterion(auxiliary, target)) / 2


def _head(dims: int, classes: int, kind: str) -> nn.Module:
    if classes == 0:
        return nn.Identity()
    if kind == "linear":
        head = nn.Linear(dims, classes)
    else:
        head = nn.Sequential(nn.Linear(dims, 3 * dims), nn.Tanh(), nn.Linear(3 * dims, classes))
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return head


def _to_released_names(module, state_dict, prefix, _):
    for name in [name for name in state_dict if name.startswith(f"{prefix}backbone.")]:
        released = prefix + name.removeprefix(f"{prefix}backbone.").replace(
            "patch_embed.projection.", "patch_embed.proj."
        )
        state_dict[released] = state_dict.pop(name)


def _from_released_names(module, state_dict, prefix, *_):
    for name in [name for name in state_dict if name.startswith(prefix)]:
        short = name.removeprefix(prefix)
        if not short.startswith(("head.", "head2.", "backbone.")):
            ours = short.replace("patch_embed.proj.", "patch_embed.projection.")
            state_dict[f"{prefix}backbone.{ours}"] = state_dict.pop(name)
