"""Multi-scale deformable attention as Triton kernels, forward and backward.

Forward, and the gradients of places and weights, gather: a program takes the queries of a block for one head and goes
through their points, each tile a row of channels a query.

The gradient of the values is a scatter, many points to a pixel. It is turned into a gather, too, and so needs no atomic
sums: the points are sorted by the pixel on their upper left, in a sort that keeps the order of equal ones, and each
pixel adds up its points in that order. Two runs give the same bits. What that costs against atomic sums is the sort of
one number a point.

Sizes of the maps come from a table on the device, so that another image size compiles nothing, and nothing waits for
the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.deformable_attention.levels import level_table
from backbones.ops.dispatch import check_triton_dtypes
from backbones.ops.gpu import ceil_div, next_power_of_2
from backbones.ops.layout import rows_adjacent

# Numbers in a tile of rows and channels: four a thread.
TILE = 512
WARPS = 4
# Points that a pixel reads at once. On the coarsest map of DINO's encoder it has a thousand and more.
AT_ONCE = 4


@triton.jit
def _pixel(place, side):
    """The last pixel centre before a place along one side, and how far behind it the place is; both fp32."""
    # Beyond a pixel from the map all is zero, however far. A place that is NaN stays so.
    x = place * side.to(tl.float32) - 0.5
    x = tl.maximum(x, -2.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, side.to(tl.float32) + 1.0, propagate_nan=tl.PropagateNan.ALL)
    before = tl.floor(x)
    return before, x - before


@triton.jit
def _corner(rows, y, x, h, w, value_token, channel, mask, channel_mask):
    """Values at a pixel of each query, `(queries, channels)`, zeros beyond the edges."""
    inside = mask & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    token = y.to(tl.int32) * w + x.to(tl.int32)
    pointers = rows + token.to(tl.int64)[:, None] * value_token + channel[None, :]
    return tl.load(pointers, mask=inside[:, None] & channel_mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def _sample(locations_ptr, weights_ptr, sample, mask):
    x = tl.load(locations_ptr + 2 * sample, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(locations_ptr + 2 * sample + 1, mask=mask, other=0.0).to(tl.float32)
    return x, y, tl.load(weights_ptr + sample, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["queries", "blocks"])
def _forward_kernel(
    value_ptr, table_ptr, locations_ptr, weights_ptr, out_ptr,
    value_batch, value_token, value_head, queries, heads, width, blocks,
    MAPS: tl.constexpr, POINTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % blocks
    batch = (tl.program_id(0) // heads // blocks).to(tl.int64)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_V)
    mask, channel_mask = query < queries, channel < width
    at = (batch * queries + query) * heads + head

    out = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
    for level in range(0, MAPS):
        h, w = tl.load(table_ptr + 4 * level).to(tl.int32), tl.load(table_ptr + 4 * level + 1).to(tl.int32)
        first = tl.load(table_ptr + 4 * level + 2)
        rows = value_ptr + batch * value_batch + first * value_token + head * value_head
        for point in tl.static_range(POINTS):
            x, y, weight = _sample(locations_ptr, weights_ptr, (at * MAPS + level) * POINTS + point, mask)
            left, right_share = _pixel(x, w)
            top, lower_share = _pixel(y, h)
            upper, lower = weight * (1.0 - lower_share), weight * lower_share
            left_share = 1.0 - right_share
            corner = _corner(rows, top, left, h, w, value_token, channel, mask, channel_mask)
            out += (upper * left_share)[:, None] * corner
            corner = _corner(rows, top, left + 1, h, w, value_token, channel, mask, channel_mask)
            out += (upper * right_share)[:, None] * corner
            corner = _corner(rows, top + 1, left, h, w, value_token, channel, mask, channel_mask)
            out += (lower * left_share)[:, None] * corner
            corner = _corner(rows, top + 1, left + 1, h, w, value_token, channel, mask, channel_mask)
            out += (lower * right_share)[:, None] * corner
    out_tile = out_ptr + at[:, None] * width + channel[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=mask[:, None] & channel_mask[None, :])


@triton.jit(do_not_specialize=["queries", "blocks", "places", "nowhere"])
def _points_backward_kernel(
    grad_ptr, value_ptr, table_ptr, locations_ptr, weights_ptr, dlocations_ptr, dweights_ptr, keys_ptr,
    value_batch, value_token, value_head, queries, heads, width, blocks, places, nowhere,
    MAPS: tl.constexpr, POINTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradients of places and weights, and for each point the number of its place, ``nowhere`` beyond the edges."""
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % blocks
    batch = (tl.program_id(0) // heads // blocks).to(tl.int64)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_V)
    mask, channel_mask = query < queries, channel < width
    at = (batch * queries + query) * heads + head
    grad_tile = grad_ptr + at[:, None] * width + channel[None, :]
    grad = tl.load(grad_tile, mask=mask[:, None] & channel_mask[None, :], other=0.0).to(tl.float32)

    for level in range(0, MAPS):
        h, w = tl.load(table_ptr + 4 * level).to(tl.int32), tl.load(table_ptr + 4 * level + 1).to(tl.int32)
        first = tl.load(table_ptr + 4 * level + 2)
        first_place = (batch * heads + head) * places + tl.load(table_ptr + 4 * level + 3)
        rows = value_ptr + batch * value_batch + first * value_token + head * value_head
        for point in tl.static_range(POINTS):
            sample = (at * MAPS + level) * POINTS + point
            x, y, weight = _sample(locations_ptr, weights_ptr, sample, mask)
            left, right_share = _pixel(x, w)
            top, lower_share = _pixel(y, h)
            # The number of the place first: less is then kept while the corners are read.
            inside = (left >= -1) & (left < w) & (top >= -1) & (top < h)
            place = first_place + (top.to(tl.int32) + 1) * (w + 1) + left.to(tl.int32) + 1
            tl.store(keys_ptr + sample, tl.where(inside, place, nowhere).to(keys_ptr.dtype.element_ty), mask=mask)

            upper_share, left_share = 1.0 - lower_share, 1.0 - right_share
            corner = _corner(rows, top, left, h, w, value_token, channel, mask, channel_mask)
            upper_left = tl.sum(corner * grad, 1)
            corner = _corner(rows, top, left + 1, h, w, value_token, channel, mask, channel_mask)
            upper_right = tl.sum(corner * grad, 1)
            corner = _corner(rows, top + 1, left, h, w, value_token, channel, mask, channel_mask)
            lower_left = tl.sum(corner * grad, 1)
            corner = _corner(rows, top + 1, left + 1, h, w, value_token, channel, mask, channel_mask)
            lower_right = tl.sum(corner * grad, 1)

            upper = left_share * upper_left + right_share * upper_right
            lower = left_share * lower_left + right_share * lower_right
            to_right = upper_share * (upper_right - upper_left) + lower_share * (lower_right - lower_left)
            # Of a place that is NaN nothing is read; its gradient is to be NaN, too.
            unknown = 0.0 * (right_share + lower_share)
            dx = weight * w.to(tl.float32) * to_right + unknown
            dy = weight * h.to(tl.float32) * (lower - upper) + unknown
            dweight = upper_share * upper + lower_share * lower
            tl.store(dlocations_ptr + 2 * sample, dx.to(dlocations_ptr.dtype.element_ty), mask=mask)
            tl.store(dlocations_ptr + 2 * sample + 1, dy.to(dlocations_ptr.dtype.element_ty), mask=mask)
            tl.store(dweights_ptr + sample, dweight.to(dweights_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "groups", "blocks", "places"])
def _value_backward_kernel(
    grad_ptr, table_ptr, locations_ptr, weights_ptr, order_ptr, starts_ptr, dvalue_ptr,
    tokens, heads, width, groups, blocks, places,
    MAPS: tl.constexpr, POINTS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Each pixel adds up its points: those of the places around it, in the order of the sort."""
    # The last maps are the coarsest as a rule, with most points a pixel: those programs begin first.
    block = blocks - 1 - tl.program_id(0) // groups
    group = (tl.program_id(0) % groups).to(tl.int64)
    head, batch = group % heads, group // heads
    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_V)
    mask, channel_mask = token < tokens, channel < width

    h = tl.full([BLOCK_T], 1, tl.int64)
    w = tl.full([BLOCK_T], 1, tl.int64)
    first = tl.zeros([BLOCK_T], tl.int64)
    first_place = tl.zeros([BLOCK_T], tl.int64)
    for level in range(0, MAPS):
        begun = token >= tl.load(table_ptr + 4 * level + 2)
        h = tl.where(begun, tl.load(table_ptr + 4 * level), h)
        w = tl.where(begun, tl.load(table_ptr + 4 * level + 1), w)
        first = tl.where(begun, tl.load(table_ptr + 4 * level + 2), first)
        first_place = tl.where(begun, tl.load(table_ptr + 4 * level + 3), first_place)
    row, column = (token - first) // w, (token - first) % w

    total = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    for below in tl.static_range(2):
        # Two neighbouring places of a row: the pixel is on the right of the first one's points, on the left of the
        # second one's.
        place = group * places + first_place + (row + below) * (w + 1) + column
        start = tl.load(starts_ptr + place, mask=mask, other=0)
        end = tl.load(starts_ptr + place + 2, mask=mask, other=0)
        for i in range(0, tl.max(end - start, 0), AT_ONCE):
            # Side by side, so that their reads overlap; the sum keeps the order.
            for j in tl.static_range(AT_ONCE):
                live = start + i + j < end
                sample = tl.load(order_ptr + start + i + j, mask=live, other=0)
                x, y, weight = _sample(locations_ptr, weights_ptr, sample, live)
                share = weight * (1.0 - tl.abs(x * w.to(tl.float32) - 0.5 - column.to(tl.float32)))
                share *= 1.0 - tl.abs(y * h.to(tl.float32) - 0.5 - row.to(tl.float32))
                at = sample // (MAPS * POINTS)
                grad_tile = grad_ptr + at[:, None] * width + channel[None, :]
                grad = tl.load(grad_tile, mask=live[:, None] & channel_mask[None, :], other=0.0).to(tl.float32)
                total += tl.where(live, share, 0.0)[:, None] * grad
    dvalue_tile = dvalue_ptr + ((batch * tokens + token) * heads + head)[:, None] * width + channel[None, :]
    tl.store(dvalue_tile, total.to(dvalue_ptr.dtype.element_ty), mask=mask[:, None] & channel_mask[None, :])


def _prepare(value, sides, locations, weights):
    check_triton_dtypes(value=value, locations=locations, weights=weights)
    value = rows_adjacent(value)
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    return value, shapes, locations.contiguous(), weights.contiguous()


def _tile(width):
    """Rows and channels of a tile."""
    block_v = next_power_of_2(width)
    return max(TILE // block_v, 1), block_v


def forward(value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """See `register_deformable`.

    Raises:
        ValueError: A tensor in another dtype than fp32, bf16 and fp16.
    """
    value, shapes, locations, weights = _prepare(value, sides, locations, weights)
    (b, _, heads, width), (_, queries, _, maps, points, _) = value.shape, locations.shape
    if locations.numel() == 0 or value.numel() == 0:
        return value.new_zeros(b, queries, heads * width)
    out = value.new_empty(b, queries, heads * width)
    block_q, block_v = _tile(width)
    blocks = ceil_div(queries, block_q)
    with torch.cuda.device_of(value):
        _forward_kernel[(b * blocks * heads,)](
            value, level_table(shapes, value.device), locations, weights, out,
            *value.stride()[:3], queries, heads, width, blocks,
            MAPS=maps, POINTS=points, BLOCK_Q=block_q, BLOCK_V=block_v, num_warps=WARPS,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `register_deformable`."""
    value, shapes, locations, weights = _prepare(value, sides, locations, weights)
    (b, tokens, heads, width), (_, queries, _, maps, points, _) = value.shape, locations.shape
    if locations.numel() == 0 or value.numel() == 0:
        return value.new_zeros(value.shape), locations.new_zeros(locations.shape), weights.new_zeros(weights.shape)
    grad = grad.contiguous()
    dvalue, dlocations, dweights = (x.new_empty(x.shape) for x in (value, locations, weights))
    block, block_v = _tile(width)
    groups, places = b * heads, sum((h + 1) * (w + 1) for h, w in shapes)
    nowhere = groups * places
    keys = torch.empty(weights.numel(), dtype=torch.int32 if nowhere < 2**31 else torch.int64, device=value.device)
    table = level_table(shapes, value.device)
    with torch.cuda.device_of(value):
        blocks = ceil_div(queries, block)
        _points_backward_kernel[(b * blocks * heads,)](
            grad, value, table, locations, weights, dlocations, dweights, keys,
            *value.stride()[:3], queries, heads, width, blocks, places, nowhere,
            MAPS=maps, POINTS=points, BLOCK_Q=block, BLOCK_V=block_v, num_warps=WARPS,
        )  # fmt: skip
        keys, order = keys.sort(stable=True)
        # Where the points of each place begin; those beyond the edges are at the end, and nobody's.
        starts = torch.searchsorted(keys, torch.arange(nowhere + 1, dtype=keys.dtype, device=keys.device))
        blocks = ceil_div(tokens, block)
        _value_backward_kernel[(blocks * groups,)](
            grad, table, locations, weights, order, starts, dvalue,
            tokens, heads, width, groups, blocks, places,
            MAPS=maps, POINTS=points, AT_ONCE=AT_ONCE, BLOCK_T=block, BLOCK_V=block_v, num_warps=WARPS,
        )  # fmt: skip
    return dvalue, dlocations, dweights
