"""Headless Chromium for tests of pages."""

import shutil

CHROMEDRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Each takes a `--window-size` and a `--user-data-dir` of its own."""
