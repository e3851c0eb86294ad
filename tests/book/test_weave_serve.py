"""`make serve` follows every save, also those that break something."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.book.conftest import PYTHON
from tests.book.test_weave_site import small_site

PATIENCE = 90  # seconds; a build takes two of an idle core


class Server:
    """The small book, served."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process = subprocess.Popen(
            [PYTHON, "-m", "mkdocs", "serve", "--quiet", f"--dev-addr={self.address}"],
            cwd=root,
            env={"PATH": os.environ["PATH"], "HOME": str(root), "NO_MKDOCS_2_WARNING": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def page(self, name: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.address}/{name}", timeout=PATIENCE) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            return ""

    def shows(self, name: str, text: str, shown: bool = True) -> bool:
        """Whether a page comes to show, or no longer to show, a text."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            page = self.page(name)
            if page and (text in page) == shown:
                return True
            time.sleep(0.2)
        return False

    def change(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))


@pytest.fixture
def server(template: Path, tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "project"
    small_site(template, root)
    served = Server(root)
    yield served
    served.process.terminate()
    served.process.wait(PATIENCE)


def test_serving_shows_each_save_and_outlives_what_is_wrong_with_it(server: Server) -> None:
    assert server.shows("10-first.html", "⟨Gamma⟩")
    assert "livereload" in server.page("10-first.html")

    server.change("lit/10-first.md", "<<gamma>>", "<<gama>>")
    assert server.shows("10-first.html", "lit/10-first.md:18")
    assert server.shows("20-second.html", "no block is named #gama")

    server.change("tools/weave/chapter.py", "used in ", "used in the ")  # the tools are followed as well
    server.change("lit/10-first.md", "<<gama>>", "<<gamma>>")
    assert server.shows("10-first.html", "lit/10-first.md:18", shown=False)
    assert server.shows("10-first.html", "used in the <a")
