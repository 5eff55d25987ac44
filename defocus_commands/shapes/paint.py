"""What shapes and background are painted with: colours that stand out, stripes, checkers, gradients and noise."""

import cv2
import numpy as np


def draw_fill(rng: np.random.Generator, under: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Paints a window in two like colours that stand out from what lies under the shape.

    Args:
        rng: Source of randomness.
        under: What is there, `(h, w, 3)`, 0 to 255.
        coverage: How far the shape covers each pixel, `(h, w)` uint8.

    Returns:
        `(h, w, 3)` float32.
    """
    edge = under[(coverage > 0) & (coverage < 255)]
    first = rng.uniform(15, 240, (12, 3))
    direction = rng.normal(size=(12, 3))
    second = first + direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(30, 70)
    colors = np.clip(np.stack([first, second]), 0, 255).astype(np.float32)
    # JPEG keeps brightness more sharply than hue, so brightness counts twice.
    difference = colors[:, :, None] - edge
    distance = np.sqrt((difference**2).mean(-1) + difference.mean(-1) ** 2)
    contrast = np.quantile(distance, 0.2, axis=-1).min(0)
    good = np.flatnonzero(contrast > 55)
    chosen = good[0] if len(good) else contrast.argmax()

    height, width = coverage.shape
    kind = rng.choice(["flat", "gradient", "stripes", "checker", "noise"])
    if kind == "flat":
        mix = np.zeros((height, width), np.float32)
    elif kind == "noise":
        mix = _smooth_noise(rng, height, width, rng.uniform(3, 6))
    else:
        mix = _pattern(rng, kind, height, width, max(5.0, max(height, width) / rng.uniform(3, 6)))
    return _blend(colors[0, chosen], colors[1, chosen], mix)


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A background of like colours, textured or not: `(height, width, 3)` float32, 0 to 255."""
    base = rng.uniform(30, 225, 3)
    canvas = _blend(base, base + rng.normal(0, 35, 3), _pattern(rng, "gradient", height, width, 1.0))
    kind = rng.choice(["plain", "noise", "stripes", "checker", "lines"])
    long_side = max(height, width)
    if kind == "noise":
        mix = _smooth_noise(rng, height, width, rng.uniform(3, long_side / 6))
        canvas += _blend(np.zeros(3), rng.normal(0, 25, 3), mix)
    elif kind in ("stripes", "checker"):
        mix = _pattern(rng, kind, height, width, rng.uniform(8, long_side / 4))
        canvas += _blend(np.zeros(3), rng.normal(0, 14, 3), mix)
    elif kind == "lines":
        for _ in range(rng.integers(6, 16)):
            ends = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height) * 16
            color = np.clip(base + rng.normal(0, 18, 3), 0, 255)
            thickness = int(rng.integers(1, 3))
            start, end = ends.astype(int).tolist()
            cv2.line(canvas, start, end, color.tolist(), thickness, cv2.LINE_8, shift=4)
        canvas = cv2.GaussianBlur(canvas, (0, 0), 0.7)
    return np.clip(canvas, 0, 255)


def _pattern(rng: np.random.Generator, kind: str, height: int, width: int, period: float) -> np.ndarray:
    """A turned "gradient", "stripes" or "checker" from 0 to 1, `(h, w)` float32; `period` is in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    u = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if kind == "gradient":
        return (u - u.min()) / max(u.max() - u.min(), 1)
    frequency = np.float32(2 * np.pi / period)
    wave = np.sin(u * frequency + np.float32(rng.uniform(0, 2 * np.pi)))
    if kind == "checker":
        v = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
        wave = wave * np.sin(v * frequency)
    # The steep sine is a square wave with soft edges.
    return np.clip(0.5 + 2 * wave, 0, 1)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, grain: float) -> np.ndarray:
    """Noise between 0 and 1 with spots of about `grain` pixels, `(h, w)` float32."""
    grid = rng.random((max(2, round(height / grain)), max(2, round(width / grain))), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _blend(first: np.ndarray, second: np.ndarray, mix: np.ndarray) -> np.ndarray:
    first, second = first.astype(np.float32), second.astype(np.float32)
    return first + (second - first) * mix[..., None]
