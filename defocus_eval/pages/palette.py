"""Colours of categories, the same in every picture of a page."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

Color = tuple[int, int, int]

# Told apart on images, in light and in dark.
_FIRST = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207), (255, 152, 150),
)  # fmt: skip
BACKGROUNDS = ("background", "_background_")
BACKGROUND: Color = (90, 90, 90)


def category_colors(categories: Mapping[int, str]) -> dict[int, Color]:
    """Red, green and blue, 0 to 255, by category id; no two are equal up to some thousand categories."""
    colors, used = {}, {BACKGROUND}
    number = 0
    for category_id, name in categories.items():
        if name.lower() in BACKGROUNDS:
            colors[category_id] = BACKGROUND
            continue
        color = _color(number)
        while color in used:
            number += 1
            color = _color(number)
        used.add(color)
        colors[category_id] = color
        number += 1
    return colors


def _color(number: int) -> Color:
    if number < len(_FIRST):
        return _FIRST[number]
    # The golden angle: each hue falls far from those before it.
    hue = number * 0.618034 % 1
    lightness, saturation = 0.42 + 0.09 * (number % 4), 0.55 + 0.15 * (number // 4 % 3)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
