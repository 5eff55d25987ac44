"""Times the operations, a block, or a whole backbone, and prints a table of ratios to paste.

All that is compared runs in one process, in turns, so that a machine that slows down slows all of it; a figure is the
median of the repeats. Memory is the peak above what was there before a run. Below a table stand the ratios that
docs/performance.md promises.

  scan        backends of the De-focus scan: forward, and forward with backward
  block       a Mamba block against its two matrix products alone, bf16 autocast against fp32, and on a GPU against the
              released way where mamba-ssm is installed
  sweep       a block's forward as the sequence grows
  attention   De-focus attention against torch's scaled_dot_product_attention
  retention   De-focus retention as the sequence grows
  deformable  backends of deformable attention in the sizes of DINO's encoder on an image of 800 × 1,066
  backbone    a whole backbone, images per second
  peers       our backbones beside timm's ViT-B, Swin-B, ConvNeXt-B and ResNet-50: forward, and a training step
  adapter     training steps of a Mamba backbone through each adapter, and their parameters
  export      exported backbones in their runtimes beside PyTorch, each in a process of its own: forward, peak of memory

Example:
    defocus benchmark block --length 4705 --repeats 7
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from backbones.benchmark import blocks, exports, models, operations
from backbones.benchmark.clock import machine
from backbones.defocus import FAMILIES

COMMANDS = {
    "scan": operations.scan,
    "block": blocks.block,
    "sweep": blocks.sweep,
    "attention": operations.attention,
    "retention": operations.retention_growth,
    "deformable": operations.deformable,
    "backbone": models.backbone,
    "peers": models.peers,
    "adapter": models.adapter,
    "export": exports.exports,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=4705, help="tokens (default: 4705, an image of 1,100 pixels)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], help="of sweeps")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--arch", default="base")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--formats", nargs="+", default=["onnx"], choices=list(exports.TITLES), help="of exports")
    parser.add_argument("--plot", type=Path, help="picture of a sweep")
    options = parser.parse_args(arguments)
    print(f"{machine(options.device)}\n")
    COMMANDS[options.what](options)
    return 0
