"""Opens a page: an image or a frame of the camera, what a trained network finds in it, and where it looks.

    defocus app work_dirs/demo_hf
    defocus app work_dirs/demo_hf CONFIG.py:epoch_12.pth LAZY_CONFIG.py:model_final.pth --port 7861

Each network is a folder that transformers saved, or a config of mmdet, mmseg or Detectron2 (a lazy one) with its
checkpoint, and needs its framework; the page chooses among them. It needs gradio: docs/app.md says how it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from backbones.integrations.app.sources import Source
from backbones.integrations.frameworks import FrameworkError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="FOLDER|CONFIG:CHECKPOINT", help="what the page offers")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: this one alone)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    try:
        sources = {word: Source.read(word) for word in options.networks}
        from backbones.integrations.app.page import LAUNCH, Networks, build_page

        page = build_page(Networks(sources, options.device))
    except (FrameworkError, ValueError, OSError) as error:
        parser.error(str(error))
    page.launch(server_name=options.host, server_port=options.port, **LAUNCH)
    return 0
