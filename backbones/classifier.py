"""The image classifier that pre-trains a backbone: two heads, one loss, in the released layout."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.defocus import FAMILIES


class DefocusClassifier(nn.Module):
    """A backbone with one head on the class token and an auxiliary one on the mean of the image tokens.

    The auxiliary head makes every token worth something to the loss, not only those that the last one looks at. Each
    family has its own: `DefocusMambaClassifier` is a `DefocusMamba`, and so on, with the names and the norm (eps 1e-6)
    of the released classifiers: the backbone's own at the top, the patch embedding as ``patch_embed.proj``, then
    ``head`` and ``head2``.

    Args:
        *args: As of the family.
        num_classes: Outputs of each head; 0 for none, `forward` then gives the class token's features.
        head: "linear", or "mlp" for Linear, Tanh, Linear with three times the width in between (as in the large
            models).
        auxiliary_loss: Whether the auxiliary head counts in the loss. Without, it keeps its place in the state dict and
            is not trainable.
        **backbone: As of the family, which rejects unknown ones.

    Raises:
        ValueError: An unknown ``head``, a negative number of classes, ``out_indices``.
    """

    projection_name = "proj"
    norm_eps = 1e-6
    # Of the family, which each subclass is too.
    embed_dims: int
    forward_sequence: Callable[[Tensor], Tensor]

    def __init__(
        self, *args: Any, num_classes: int = 1000, head: str = "linear", auxiliary_loss: bool = True, **backbone: Any
    ):
        if head not in ("linear", "mlp"):
            raise ValueError(f"head must be 'linear' or 'mlp', got {head!r}")
        if "out_indices" in backbone:
            raise ValueError("a classifier has no maps, and so no out_indices: build the backbone alone")
        super().__init__(*args, **backbone)
        self.head_kind = head
        self.auxiliary_loss = auxiliary_loss
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces both heads by new ones.

        Args:
            num_classes: Outputs of each; 0 for none, the features pass.

        Raises:
            ValueError: A negative number.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no heads) or more, got {num_classes}")
        self.num_classes = num_classes
        self.head, self.head2 = (classification_head(self.embed_dims, num_classes, self.head_kind) for _ in range(2))
        self.head2.requires_grad_(self.auxiliary_loss)

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the final norm, the class token last: `(b, l, embed_dims)`."""
        return self.forward_sequence(x)

    def forward_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits by the class token and by the mean of the image tokens, each `(b, num_classes)`."""
        return self.head(tokens[:, -1]), self.head2(tokens[:, :-1].mean(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, num_classes)` by the class token, of images `(b, c, H, W)`."""
        return self.head(self.forward_features(x)[:, -1])

    def loss(self, x: Tensor, target: Tensor, criterion: Callable = F.cross_entropy) -> Tensor:
        """The mean of both heads' losses, or without ``auxiliary_loss`` that of the class token's head.

        Args:
            x: Images, `(b, c, H, W)`.
            target: What ``criterion`` takes beside logits: classes `(b,)`, or probabilities `(b, num_classes)`.
            criterion: Maps logits and target to a scalar.

        Returns:
            A scalar.
        """
        return self.loss_of_features(self.forward_features(x), target, criterion)

    def loss_of_features(self, tokens: Tensor, target: Tensor, criterion: Callable = F.cross_entropy) -> Tensor:
        """`loss` from what `forward_features` gives, `(b, l, embed_dims)`, the class token last: a scalar."""
        if not self.auxiliary_loss:
            return criterion(self.head(tokens[:, -1]), target)
        main, auxiliary = self.forward_heads(tokens)
        return (criterion(main, target) + criterion(auxiliary, target)) / 2


def classification_head(dims: int, classes: int, kind: str) -> nn.Module:
    """A head with its initial values.

    Args:
        dims: Width of the features.
        classes: Outputs; 0 for none, the features pass.
        kind: "linear", or "mlp" for Linear, Tanh, Linear with three times the width in between.
    """
    if classes == 0:
        return nn.Identity()
    if kind == "linear":
        head: nn.Module = nn.Linear(dims, classes)
    else:
        head = nn.Sequential(nn.Linear(dims, 3 * dims), nn.Tanh(), nn.Linear(3 * dims, classes))
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return head


# Family to classifier: `DefocusMambaClassifier` and so on.
CLASSIFIERS: dict[str, type[DefocusClassifier]] = {}
for _family in FAMILIES.values():
    _name = f"{_family.__name__}Classifier"
    _members = {"__module__": __name__, "__doc__": f"`{_family.__name__}` as a `DefocusClassifier`."}
    CLASSIFIERS[_family.__name__] = globals()[_name] = type(_name, (DefocusClassifier, _family), _members)
