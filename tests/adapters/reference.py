"""The InteractionAdapter written out in float64: image coordinates in pixels, sampling by tents, order by loops.

Plain functions of weights by their names in `state_dict`. Of the package only the backbone's blocks are called, which
are none of the adapter's business.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def interaction(model, image: Tensor, heads: int, points: int, num_outs: int) -> list[Tensor]:
    """The pyramid, from stride 4 on, of a backbone of 16-pixel patches with one exchange for each of its blocks."""
    w, net = dict(model.adapter.named_parameters()), model.net
    weights = dict(net.named_parameters())
    height, width = net.section or (1, 1)
    rows, columns = (-(-side // 16) for side in image.shape[-2:])
    padded_rows, padded_columns = -(-rows // height) * height, -(-columns // width) * width
    places = reading_order(padded_rows, padded_columns, net.section)
    on_image = [i for i, (row, column) in enumerate(places) if row < rows and column < columns]
    # The tokens that lie on the image, row by row.
    on_image.sort(key=lambda i: places[i])

    pixels = F.pad(image, (0, 16 * padded_columns - image.shape[-1], 0, 16 * padded_rows - image.shape[-2]))
    patches = torch.stack([pixels[..., 16 * r : 16 * r + 16, 16 * c : 16 * c + 16] for r, c in places], 1)
    sequence = torch.einsum("blchw,dchw->bld", patches, weights["patch_embed.projection.weight"])
    sequence = sequence + weights["patch_embed.projection.bias"]
    sequence = torch.cat((sequence, weights["cls_token"].expand(len(image), -1, -1)), 1)

    # The prior sees the image padded to strides of 32.
    prior_size = (-(-image.shape[-2] // 32) * 32, -(-image.shape[-1] // 32) * 32)
    finest, *maps = spatial_prior(
        w, F.pad(image, (0, prior_size[1] - image.shape[-1], 0, prior_size[0] - image.shape[-2]))
    )
    shapes = [m.shape[-2:] for m in maps]
    prior = torch.cat([m.flatten(2).mT + w["level_embed"][i] for i, m in enumerate(maps)], 1)

    # Centres in pixels, x before y: of the backbone's tokens, and of the prior's at strides 8, 16 and 32.
    tokens = torch.tensor([(16 * c + 8, 16 * r + 8) for r in range(rows) for c in range(columns)], dtype=image.dtype)
    cells = [
        (s * column + s / 2, s * row + s / 2)
        for s, (h, v) in zip((8, 16, 32), shapes)
        for row in range(h)
        for column in range(v)
    ]
    cells = torch.tensor(cells, dtype=image.dtype)

    for i, block in enumerate(net.blocks):
        name = f"injectors.{i}"
        query = layer_norm(w, f"{name}.query_norm", sequence[:, on_image])
        value = layer_norm(w, f"{name}.value_norm", prior)
        strides = [(8, 8), (16, 16), (32, 32)]
        told = attention(w, f"{name}.attention", query, value, shapes, tokens, strides, heads, points)
        added = torch.zeros_like(sequence)
        added[:, on_image] = w[f"{name}.gate"] * told
        sequence = block(sequence + added)

        name = f"extractors.{i}"
        query = layer_norm(w, f"{name}.query_norm", prior)
        value = layer_norm(w, f"{name}.value_norm", sequence[:, on_image])
        read = attention(w, f"{name}.attention", query, value, [(rows, columns)], cells, [(16, 16)], heads, points)
        prior = prior + read
        hidden = linear(w, f"{name}.fc1", layer_norm(w, f"{name}.ffn_norm", prior))
        mixed = []
        for part, (h, v) in zip(hidden.split([h * v for h, v in shapes], 1), shapes):
            mixed.append(depthwise(w, f"{name}.depthwise", part.mT.unflatten(2, (h, v))).flatten(2).mT)
        prior = prior + linear(w, f"{name}.fc2", gelu(torch.cat(mixed, 1)))

    normed = layer_norm({f"norm.{k}": weights[f"norm.{k}"] for k in ("weight", "bias")}, "norm", sequence)
    last = normed[:, on_image].mT.unflatten(2, (rows, columns))
    maps = [part.mT.unflatten(2, shape) for part, shape in zip(prior.split([h * v for h, v in shapes], 1), shapes)]
    doubled = F.conv_transpose2d(maps[0], w["finest.weight"], w["finest.bias"], stride=2)
    sizes = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), (-(-rows // 2), -(-columns // 2))]
    outs = []
    for i, (level, (h, v)) in enumerate(zip([finest + doubled, *maps], sizes)):
        out = level[..., :h, :v] + resize(last, h, v)
        out = layer_norm(w, f"norms.{i}", out.movedim(1, -1)).movedim(-1, 1)
        for j, padding in ((0, 0), (1, 1)):
            if f"projections.{i}.{j}.conv.weight" in w:
                out = F.conv2d(out, w[f"projections.{i}.{j}.conv.weight"], padding=padding)
                out = layer_norm(w, f"projections.{i}.{j}.norm_layer", out.movedim(1, -1)).movedim(-1, 1)
        outs.append(out)
    while len(outs) < num_outs:
        outs.append(outs[-1][..., ::2, ::2])
    return outs


def reading_order(rows: int, columns: int, section: tuple[int, int] | None) -> list[tuple[int, int]]:
    """(row, column) of each token of the padded grid in the order of the sequence."""
    height, width = section or (1, columns)
    return [
        (top + row, left + column)
        for top in range(0, rows, height)
        for left in range(0, columns, width)
        for row in range(height)
        for column in range(width)
    ]


def spatial_prior(w: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Maps at strides 4, 8, 16 and 32: two convolutions of stride 2 and one of 1, then one of stride 2 for each."""
    maps = []
    for stage, layers in enumerate((((0, 2), (1, 2), (2, 1)), ((None, 2),), ((None, 2),), ((None, 2),))):
        for layer, stride in layers:
            name = f"prior.stages.{stage}" if layer is None else f"prior.stages.{stage}.{layer}"
            x = F.conv2d(x, w[f"{name}.0.weight"], stride=stride, padding=1)
            x = gelu(layer_norm(w, f"{name}.1", x.movedim(1, -1)).movedim(-1, 1))
        projection = w[f"prior.projections.{stage}.weight"], w[f"prior.projections.{stage}.bias"]
        maps.append(F.conv2d(x, *projection))
    return maps


def attention(w, name, query, value, shapes, centres, strides, heads, points) -> Tensor:
    """Each query reads ``points`` places a head and map, an offset of one being one cell of that map."""
    value = linear(w, f"{name}.value_proj", value).unflatten(2, (heads, -1))
    offsets = linear(w, f"{name}.sampling_offsets", query).unflatten(2, (heads, len(shapes), points, 2))
    shares = linear(w, f"{name}.attention_weights", query).unflatten(2, (heads, -1))
    shares = shares.exp() / shares.exp().sum(-1, keepdim=True)
    shares = shares.unflatten(3, (len(shapes), points))
    out = 0
    for level, (part, (h, v)) in enumerate(zip(value.split([h * v for h, v in shapes], 1), shapes)):
        # In cells, the first one's centre being 0; a cell's value falls off to its neighbours' centres.
        x = centres[:, None, None, 0] / strides[level][0] + offsets[:, :, :, level, :, 0] - 0.5
        y = centres[:, None, None, 1] / strides[level][1] + offsets[:, :, :, level, :, 1] - 0.5
        tent_x = (1 - (x[..., None] - torch.arange(v)).abs()).clamp_min(0)
        tent_y = (1 - (y[..., None] - torch.arange(h)).abs()).clamp_min(0)
        cells = part.unflatten(1, (h, v))
        out = out + torch.einsum("bqhp,bqhpy,bqhpx,byxhc->bqhc", shares[:, :, :, level], tent_y, tent_x, cells)
    return linear(w, f"{name}.output_proj", out.flatten(2))


def depthwise(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A 3×3 convolution of each channel by itself, zeros around."""
    h, v = x.shape[-2:]
    around = F.pad(x, (1, 1, 1, 1))
    out = w[f"{name}.bias"][:, None, None]
    for i in range(3):
        for j in range(3):
            out = out + w[f"{name}.weight"][:, 0, i, j, None, None] * around[..., i : i + h, j : j + v]
    return out


def resize(x: Tensor, h: int, v: int) -> Tensor:
    """Bilinear between cells' centres, the outermost cells going on to the edge."""
    for axis, size in ((-2, h), (-1, v)):
        old = x.shape[axis]
        place = ((torch.arange(size, dtype=x.dtype) + 0.5) * old / size - 0.5).clamp(0, old - 1)
        tent = (1 - (place[:, None] - torch.arange(old)).abs()).clamp_min(0)
        x = torch.einsum("bcyx,sy->bcsx" if axis == -2 else "bcyx,sx->bcys", x, tent)
    return x


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2
