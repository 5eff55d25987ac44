"""One HTML file from the template, its style and script, and the data they show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from defocus_eval.pages.charts import Chart


def render_page(page: Mapping[str, Any], charts: Sequence[Chart], gallery: Mapping[str, Any] | None) -> str:
    """The HTML of a page.

    Args:
        page: What the template names.
        charts: All charts of the page.
        gallery: What `gallery.build_gallery` gave, or None.
    """
    # A name that the template does not find is an error, not an empty place.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    data = {"charts": {chart.key: chart.data for chart in charts}, "gallery": gallery}
    return environment.get_template("page.html").render(
        page=page, css=Markup(_read("page.css")), script=Markup(_read("page.js")), data=Markup(script_json(data))
    )


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no name in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _read(name: str) -> str:
    return resources.files("defocus_eval.pages").joinpath(name).read_text(encoding="utf-8")
