"""Draws what a segmentor found beside what is there, and how its training went.

    OUT/predictions.png   for some images, ground truth on the left and the prediction on the right
    OUT/curves.png        with --log: loss and mIoU over iterations

Example:
    defocus show-segmentation --images data/shapes/val --annotations data/shapes/semantic/val \\
        --predictions work_dirs/predictions --classes background circle square \\
        --log work_dirs/*/vis_data/scalars.json --out work_dirs
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from defocus_eval.drawing import DPI, TITLE_STYLE, draw_curves, draw_label_map, label_color, read_image
from defocus_eval.logs import read_logs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="their label maps, as PNG")
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="what test.py --out wrote")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME", help="names of labels 0, 1, ...")
    parser.add_argument("--log", type=Path, nargs="*", default=[], metavar="JSON", help="scalars.json of the run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--max-images", type=int, default=12, help="images drawn (default: %(default)s)")
    args = parser.parse_args(arguments)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        figure = draw_predictions(args.images, args.annotations, args.predictions, args.classes, args.max_images)
        figure.savefig(args.out / "predictions.png", dpi=DPI)
        print(f"wrote {args.out / 'predictions.png'}")
        if args.log:
            draw_curves(read_logs(args.log)).savefig(args.out / "curves.png", dpi=DPI)
            print(f"wrote {args.out / 'curves.png'}")
    except ValueError as error:
        parser.error(str(error))
    return 0


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
    cure = "--images and --annotations must hold every prediction's file name"
    for number, path in enumerate(chosen):
        image = next(iter(sorted(images.glob(f"{path.stem}.*"))), images / f"{path.stem}.jpg")
        # Grey: the image's own colours would mix with those of the labels.
        picture = read_image(image, cure, mode="L")
        for axes, file, title in (
            (panels[2 * number], annotations / path.name, f"{path.stem}, ground truth"),
            (panels[2 * number + 1], path, "prediction"),
        ):
            labels = read_image(file, cure, mode=None)
            if labels.shape != picture.shape:
                raise ValueError(f"{file} has shape {labels.shape}, its image {picture.shape}: they must be equal")
            draw_label_map(axes, picture, labels)
            axes.set_title(title, **TITLE_STYLE)
    handles = [Patch(color=tuple(label_color(label)), label=name) for label, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 10), frameon=False, fontsize=8)
    return figure
