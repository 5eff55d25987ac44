"""Draws a small synthetic data set for detection and for instance, semantic and panoptic segmentation.

Each image shows 2 to 7 shapes of six classes on a textured background. Colour, texture, size and rotation are
drawn independently of the class, so that only the outline tells the classes apart. Annotations describe what
is visible: where shapes overlap, the pixel belongs to the upper one.

    OUT/settings.json                          what the set was drawn with; written last
    OUT/{train,val}/000001.jpg                 images; the long side is --size, the short one 0.7 to 1.0 of it
    OUT/annotations/instances_{train,val}.json COCO instances; polygons that follow the pixel edges exactly
    OUT/annotations/panoptic_{train,val}.json  COCO panoptic; the shapes are things, the background is stuff
    OUT/panoptic/{train,val}/000001.png        segment ids as red + 256·green + 256²·blue
    OUT/semantic/{train,val}/000001.png        one byte a pixel: 0 background, 1 to 6 the shapes (for mmseg)

Category ids are 1 to 6 in the order of `scene.SHAPES`; in the panoptic file the background follows as 7, because
mmdet wants things before stuff. Image k of a split depends on (seed, split, k, size) alone: a larger set
begins with the images of a smaller one.

Example:
    defocus make-shapes data/shapes --train 1500 --val 150 --size 192
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from defocus_commands.shapes.data_set import make_shapes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="folder to make; an equal set that is there is kept")
    parser.add_argument("--train", type=int, default=1500, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=150, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=192, help="long side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a set drawn with other settings")
    options = parser.parse_args(arguments)
    # A killed run tidies up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        make_shapes(**vars(options))
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    return 0
