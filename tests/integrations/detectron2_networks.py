"""Small networks of Detectron2's with our backbones."""

from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid

from backbones.integrations import detectron2 as integration
from backbones.layers.norms import LayerNorm2d

ARCHS = {
    "DefocusMamba": dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4),
    "DefocusViT": dict(embed_dims=64, depth=2, num_heads=2),
    "DefocusRetNet": dict(embed_dims=64, depth=2, num_heads=2, value_dims=64, ffn_dims=64),
}
FAMILIES = list(ARCHS)


def lazy_pyramid(family="DefocusMamba", **changes):
    settings = dict(arch=ARCHS[family], **changes)
    return L(SimpleFeaturePyramid)(
        net=L(getattr(integration, family))(**settings),
        in_feature="last_feat",
        out_channels=32,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        # Detectron2's own has another epsilon than the released pyramid.
        norm=LayerNorm2d,
    )
