"""Draws what a segmentor found beside what is there, and how its training went.

    OUT/predictions.png   for some images, ground truth on the left and the prediction on the right
    OUT/curves.png        with --log: loss and mIoU over iterations

Example:
    python tools/show_segmentation.py --images data/shapes/val --annotations data/shapes/semantic/val \
        --predictions work_dirs/predictions --classes background circle square --log work_dirs/*/vis_data/scalars.json \
        --out work_dirs
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from show_results import DPI, _draw_losses

COLORS = np.array([(0.35, 0.35, 0.35), *colormaps["tab10"].colors, *colormaps["tab20"].colors[1::2]])
# A label's share of its pixels: colours must be told apart, and the image still be seen through them.
LABEL_OPACITY = 0.65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="their label maps, as PNG")
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="what test.py --out wrote")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME", help="names of labels 0, 1, ...")
    parser.add_argument("--log", type=Path, nargs="*", default=[], metavar="JSON", help="scalars.json of the run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--max-images", type=int, default=12, help="images drawn (default: %(default)s)")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        figure = draw_predictions(args.images, args.annotations, args.predictions, args.classes, args.max_images)
        figure.savefig(args.out / "predictions.png", dpi=DPI)
        print(f"wrote {args.out / 'predictions.png'}")
        if args.log:
            draw_curves(*read_logs(args.log)).savefig(args.out / "curves.png", dpi=DPI)
            print(f"wrote {args.out / 'curves.png'}")
    except ValueError as error:
        parser.error(str(error))


def draw_predictions(
    images: Path, annotations: Path, predictions: Path, classes: Sequence[str], max_images: int
) -> Figure:
    """Pairs of panels, evenly spread over the predictions.

    Raises:
        ValueError: There are no predictions, or a file of theirs is missing or of another size.
    """
    found = sorted(predictions.glob("*.png"))
    if not found:
        raise ValueError(f"{predictions} holds no PNG files; give the folder that mmseg's test.py --out wrote")
    count = min(max_images, len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]
    pairs = min(3, count)
    rows = math.ceil(count / pairs)
    figure = Figure((4.6 * pairs, 2.4 * rows + 0.5), layout="constrained", facecolor="white")
    panels = np.ravel(figure.subplots(rows, 2 * pairs, squeeze=False))
    for axes in panels:
        axes.axis("off")
    for number, path in enumerate(chosen):
        # Grey: the image's own colours would mix with those of the labels.
        picture = _read(next(iter(sorted(images.glob(f"{path.stem}.*"))), images / f"{path.stem}.jpg")).convert("L")
        truth = annotations / path.name
        for axes, labels, title in (
            (panels[2 * number], truth, f"{path.stem}, ground truth"),
            (panels[2 * number + 1], path, "prediction"),
        ):
            _draw_overlay(axes, np.asarray(picture), np.asarray(_read(labels)), labels, title)
    handles = [Patch(color=_color(label), label=name) for label, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 10), frameon=False, fontsize=8)
    return figure


def _read(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error}); --images and --annotations must hold every prediction's file name"
        ) from error


def _color(label: int) -> np.ndarray:
    return COLORS[label % len(COLORS)]


def _draw_overlay(axes: Axes, picture: np.ndarray, labels: np.ndarray, path: Path, title: str) -> None:
    if labels.shape != picture.shape:
        raise ValueError(f"{path} has shape {labels.shape}, its image {picture.shape}: they must be equal")
    # Label 0 and what is ignored get no colour.
    opacity = np.where((labels > 0) & (labels < 255), LABEL_OPACITY, 0.0)[..., None]
    axes.imshow(picture[..., None] / 255 * (1 - opacity) + COLORS[labels.astype(int) % len(COLORS)] * opacity)
    axes.set_title(title, fontsize=8.5, loc="left", color="#333333")


def read_logs(paths: Sequence[Path]) -> tuple[dict[int, float], dict[int, float]]:
    """Loss and mIoU by iteration from the ``scalars.json`` of a run and of those that resumed it.

    Raises:
        ValueError: They hold no losses.
    """
    losses, scores = {}, {}
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                # A run that was killed may leave half a line.
                continue
            if "loss" in record:
                losses[record["step"]] = record["loss"]
            elif "mIoU" in record:
                scores[record["step"]] = record["mIoU"] / 100
    if not losses:
        raise ValueError(f"{', '.join(map(str, paths))}: no losses; give the vis_data/scalars.json of an mmseg run")
    return dict(sorted(losses.items())), dict(sorted(scores.items()))


def draw_curves(losses: dict[int, float], scores: dict[int, float]) -> Figure:
    """Loss on the left, mIoU on the right."""
    figure = Figure((10.8, 3.9), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    _draw_losses(left, losses)
    right.plot(list(scores), list(scores.values()), marker="o", markersize=4, linewidth=2)
    right.set(title="validation", xlabel="iteration", ylabel="mIoU", ylim=(0, 1))
    return figure


if __name__ == "__main__":
    main()
