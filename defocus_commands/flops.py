"""Counts FLOPs, parameters and activation memory of a model on one image, and lists what was not counted.

The model is a config of mmdet, mmseg or Detectron2, or a name of timm. It runs on shapes alone: nothing is computed, so
a large detector at 1,024 pixels takes seconds and no memory. docs/flops.md says what is counted, and how.

Example:
    defocus flops defocus_mamba_base --size 224
    defocus flops mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-12e_coco.py --size 800 1280 \\
        --json out.json
    defocus flops mmseg_configs/upernet/upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py --size 512 \\
        --options model.backbone.adapter.type=SimpleFPN
    defocus flops --table docs/flops.md
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from backbones.flops import measure
from backbones.flops.table import entries, kept_row, row, update_tables
from backbones.flops.text import describe_measurement
from backbones.integrations.flops import find_subject
from defocus_eval.files import write_text

# Of the checkout, if this is one.
ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="config file, or name of timm")
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help="side of the image, or its height and width")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="settings that differ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--table", type=Path, metavar="MD", help="fill a document's tables of all configs instead")
    args = parser.parse_args(arguments)
    if args.table:
        if args.model or args.size or args.json or args.options:
            parser.error("--table goes alone: it knows its models and sizes")
        if not (ROOT / "mmdet_configs").is_dir():
            parser.error("--table fills a checkout's documents: run tools/flops.py there")
        write_tables(args.table)
        return 0
    if not args.model or not args.size:
        parser.error("give a model and --size N, or --table MD")
    if len(args.size) > 2 or min(args.size) < 1:
        parser.error(f"--size takes a side or a height and a width, in pixels, got {' '.join(map(str, args.size))}")
    size = (args.size[0], args.size[-1])
    try:
        found = measure(find_subject(args.model, size, args.options))
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"{args.model}: {error}")
    print(describe_measurement(args.model, size, found))
    if args.json:
        content = dict(model=args.model, size=size) | found.as_dict()
        write_text(args.json, json.dumps(content, indent=2) + "\n")
        print(f"wrote {args.json}")
    return 0


def write_tables(document: Path) -> None:
    """Measures everything and rewrites the marked blocks; rows of what cannot be measured here stay as they were."""
    text = document.read_text()
    root = os.path.relpath(ROOT, document.resolve().parent)
    root = "" if root == "." else f"{root}/"
    rows, todo = [], entries()
    for i, entry in enumerate(todo, 1):
        print(f"{i}/{len(todo)} {entry.name}", flush=True)
        try:
            line: str | None = row(entry, measure(find_subject(entry.name, entry.size, entry.options)), root)
        except (ValueError, ImportError, OSError) as error:
            line = kept_row(entry, text, root)
            print(f"  {'kept as it was' if line else 'left out'}: {error}")
        if line:
            rows.append((entry, line))
    write_text(document, update_tables(text, rows))
    print(f"wrote {document}")
