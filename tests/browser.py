"""A headless browser for tests of pages: the system's Chromium, driven by Playwright."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@contextmanager
def open_browser(*arguments):
    """Gives a browser, started with ``arguments`` of Chromium; skips where there is none or nothing to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--disable-gpu", *arguments])
        yield browser
        browser.close()


class Viewer:
    """Opens each file once and notes what goes wrong in it: console messages, errors, and what it tries to load.

    Args:
        browser: What `open_browser` gave.
    """

    def __init__(self, browser):
        self.browser, self.pages, self.faults = browser, {}, []

    def open(self, path):
        """The page of a file, as earlier tests left it."""
        if path not in self.pages:
            page = self.pages[path] = self.browser.new_page(viewport={"width": 1360, "height": 900})
            page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
            page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url[:80]}"))
            page.on("request", self._note_request)
            page.goto(path.resolve().as_uri())
        return self.pages[path]

    def _note_request(self, request):
        if request.url.split(":")[0] not in ("file", "data", "blob"):
            self.faults.append(f"load: {request.url}")
