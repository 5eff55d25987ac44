"""The page itself, of gradio's components."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np

from backbones.integrations.app.looking import RECIPES, Look, draw_maps, look, map_runs
from backbones.integrations.app.predictions import Opened, describe, draw
from backbones.integrations.app.sources import Source
from backbones.integrations.frameworks import needed

# Before gradio is imported: it would ask a server for its newest version and report that it was started.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
with needed("gradio"):
    import gradio as gr

TITLE = "De-focus networks"
# One network at a time computes: it takes all cores.
_QUEUE = "network"


class Networks:
    """The networks that a page offers, of which the last one used stays open.

    Args:
        sources: Name to what it is.
        device: Where to compute.
    """

    def __init__(self, sources: Mapping[str, Source], device: str = "cpu"):
        self.sources = dict(sources)
        self.device = device
        self._last: tuple[str, Opened] | None = None

    def open(self, name: str) -> Opened:
        """The network of that name.

        Raises:
            ValueError: It cannot be opened; the message says why.
        """
        if self._last is None or self._last[0] != name:
            # Not two at once in memory.
            self._last = None
            self._last = name, self.sources[name].open(self.device)
        return self._last[1]


def build_page(networks: Networks) -> gr.Blocks:
    """The page of these networks; ``launch(**LAUNCH)`` serves it."""
    names = list(networks.sources)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nAn image, what a trained network finds in it, and where it looks.")
        looked = gr.State()
        with gr.Row():
            with gr.Column():
                name = gr.Dropdown(names, value=names[0], label="Checkpoint", elem_id="checkpoint")
                image = gr.Image(sources=["upload", "webcam", "clipboard"], label="Image", elem_id="image")
                button = gr.Button("Look", variant="primary", elem_id="look")
            with gr.Column():
                found = gr.Image(
                    label="What it finds", show_label=False, interactive=False, format="png", elem_id="found"
                )
                said = gr.Markdown(elem_id="said")
                score = gr.Slider(0, 1, 0.4, step=0.01, label="Lowest score", elem_id="score")
        with gr.Row():
            with gr.Column(scale=1):
                recipe = gr.Dropdown(list(RECIPES), value=next(iter(RECIPES)), label="Map", elem_id="recipe")
                layer = gr.Slider(0, 1, 0, step=1, label="Layer, from 0 on", elem_id="layer")
            maps = gr.Image(
                label="Where it looks", show_label=False, interactive=False, format="png", elem_id="maps", scale=3
            )
        ran = button.click(
            functools.partial(_look, networks),
            [name, image, score, layer, looked],
            [looked, found, said, layer, maps],
            concurrency_id=_QUEUE,
        )
        ran.success(_show_maps, [looked, recipe, layer], maps, concurrency_id=_QUEUE)
        score.release(_show_objects, [looked, score], [found, said])
        for choice in (recipe.input, layer.release):
            choice(_show_maps, [looked, recipe, layer], maps, concurrency_id=_QUEUE)
    return page


# System fonts: the page is to need no other server.
LAUNCH = {
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "footer_links": [],
    "show_error": True,
}


def _in_words(function: Callable) -> Callable:
    """What a user can mend is shown by its words, without the stack in the terminal."""

    @functools.wraps(function)
    def wrapped(*arguments, **settings):
        try:
            return function(*arguments, **settings)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return wrapped


@_in_words
def _look(
    networks: Networks, name: str, pixels: np.ndarray | None, score: float, layer: int, before: Look | None
) -> tuple:
    if pixels is None:
        raise ValueError("There is no image: give a file, or take a frame of the camera")
    found = look(name, networks.open(name), pixels)
    last = max(found.depth - 1, 0)
    # As of the paper's maps, the last but one, until a user has chosen.
    layer = max(last - 1, 0) if before is None or before.depth != found.depth else layer
    return found, *_show_objects(found, score), gr.Slider(maximum=max(last, 1), value=layer), None


@_in_words
def _show_objects(looked: Look | None, score: float) -> tuple[np.ndarray | None, str]:
    if looked is None:
        return None, ""
    return draw(looked.pixels, looked.prediction, score), describe(looked.prediction, score)


@_in_words
def _show_maps(
    looked: Look | None,
    recipe: str,
    layer: int,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  as gradio finds it
) -> np.ndarray | None:
    if looked is None:
        return None
    layer = min(layer, looked.depth - 1)
    total, done = map_runs(looked, layer), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress((done, total), desc="Maps", unit="layers")

    return draw_maps(looked, recipe, layer, tick)
