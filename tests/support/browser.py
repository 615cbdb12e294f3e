"""A real browser, where this machine has one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PAGE_MILLISECONDS = 60_000
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
SHOTS = os.environ.get("REQUANT_SCREENSHOTS")
"""Folder to keep a picture of every page in, for a person to look at."""


@contextmanager
def browser_window() -> Iterator[Any]:
    """Open a window that knows no password and has one empty page."""
    if BROWSER is None:
        pytest.skip("no chromium on this machine: the pages cannot be looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=BROWSER_ARGUMENTS)
        context = browser.new_context(viewport={"width": 1400, "height": 2000})
        context.set_default_timeout(PAGE_MILLISECONDS)
        yield context.new_page()
        browser.close()


def keep(page: Any, name: str) -> None:
    """Keep a picture of a page, where somebody wants them."""
    if SHOTS:
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(SHOTS, f"{name}.png")))


def follow(page: Any, link: str) -> Any:
    """Click a link that opens in a tab of its own; return the tab."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=link).first.click()
    return opened.value
