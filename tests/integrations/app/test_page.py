"""The page in a browser: an image goes in, boxes and maps come out, and mistakes are words."""

import io
import re
from urllib.request import urlopen

import numpy as np
import pytest

pytest.importorskip("gradio", minversion="6.0.0", reason="gradio 6 is not installed")
pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")
from PIL import Image

from backbones.integrations.app.page import LAUNCH, Networks, build_page
from backbones.integrations.app.sources import Source
from tests.browser import open_browser
from tests.integrations.app.tiny import save_detector

# Of class 0 in pictures of boxes; orange is class 1.
BLUE = (31, 119, 180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    save_detector(folder / "good")
    save_detector(folder / "broken")
    (folder / "broken/preprocessor_config.json").unlink()
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(folder / "grey.png")
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    """A tab of the browser, and the page's address."""
    # A camera that shows a pattern, and no question whether it may be used.
    with open_browser("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as browser:
        page = build_page(Networks({name: Source.read(str(folder / name)) for name in ("good", "broken")}))
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **LAUNCH)
        yield browser.new_page(viewport={"width": 1360, "height": 1000}), address
        page.close()


@pytest.fixture
def tab(opened):
    """The page as a user first sees it; what went wrong in it is asked for at the end."""
    tab, address = opened
    faults = []
    tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
    tab.on("request", lambda request: faults.append(request.url) if _elsewhere(request.url, address) else None)
    tab.goto(address)
    yield tab
    assert faults == []


def _elsewhere(url, address):
    return url.startswith("http") and not url.startswith(address)


def pixels_of(tab, name):
    """The picture that an image of the page shows."""
    tab.wait_for_selector(f"#{name} img", timeout=60_000)
    with urlopen(tab.locator(f"#{name} img").first.get_attribute("src")) as file:
        return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))


def upload(tab, folder):
    tab.locator("#image input[type=file]").set_input_files(folder / "grey.png")
    tab.wait_for_selector("#image img")


def look(tab):
    tab.get_by_role("button", name="Look").click()


def set_slider(tab, name, value):
    field = tab.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")
    field.blur()


def test_from_an_image_to_boxes_and_a_map(tab, folder):
    look(tab)
    tab.get_by_text("There is no image: give a file, or take a frame of the camera").wait_for()
    upload(tab, folder)
    look(tab)
    said = tab.get_by_text(re.compile(r"\d+ objects of score ≥ 0.40"))
    said.wait_for(timeout=60_000)
    # Every query of the tiny detector is sure of its box.
    assert "8 objects" in said.inner_text()
    found = pixels_of(tab, "found")
    frames = (abs(found.astype(int) - BLUE).sum(-1) < 40) | (abs(found.astype(int) - (255, 127, 14)).sum(-1) < 40)
    assert frames.sum() > 100
    first = pixels_of(tab, "maps")
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 100
    # A higher score leaves none, without a further look.
    set_slider(tab, "score", 1)
    tab.get_by_text(re.compile(r"0 objects of score ≥ 1.00; the best has 0\.\d\d")).wait_for()
    # Another map is another picture.
    before = tab.locator("#maps img").first.get_attribute("src")
    tab.locator("#recipe input").click()
    tab.get_by_role("option", name="scan order", exact=True).click()
    tab.wait_for_function("old => document.querySelector('#maps img')?.src != old", arg=before)
    assert pixels_of(tab, "maps").shape != first.shape


def test_a_frame_of_the_camera(tab):
    tab.get_by_label("Capture from camera").click()
    tab.get_by_text("Click to Access Webcam").click()
    tab.get_by_label("capture photo").click()
    tab.wait_for_selector("#image img")
    look(tab)
    # The pattern is of 640 by 480 pixels, and of several colours.
    found = pixels_of(tab, "found")
    assert found.shape[1] / found.shape[0] == pytest.approx(4 / 3, rel=0.02)
    assert len(np.unique(found.reshape(-1, 3) // 32, axis=0)) > 8


def test_what_cannot_be_opened_is_said(tab, folder):
    tab.locator("#checkpoint input").click()
    tab.get_by_role("option", name="broken").click()
    upload(tab, folder)
    look(tab)
    tab.get_by_text(re.compile("broken has no image processor")).wait_for()
    assert "Traceback" not in tab.content()
