"""Programs that no Python package brings. Without one its tests are skipped and say so; in CI they fail."""

import os
import shutil

import pytest

# What the tests call, and the Debian packages that have it.
PACKAGES = {
    "git": "git",
    "chromium": "chromium",
    "epubcheck": "epubcheck",
    "pdftotext": "poppler-utils",
    "pdffonts": "poppler-utils",
}
OTHER_NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome", "chrome")}


def program(name: str) -> str:
    """The path of a program."""
    for known in OTHER_NAMES.get(name, (name,)):
        if path := shutil.which(known):
            return path
    message = f"there is no {name} here. On Debian: apt-get install {PACKAGES[name]}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
