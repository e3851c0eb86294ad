"""What MkDocs loads: `hooks: [tools/weave/hook.py]` in mkdocs.yml. It hands every event on to `site`.

MkDocs loads this file once, even if `make serve` runs for a day. `site` and all tools are loaded again when
one of them has changed, so that who works on the tools sees at once what they do.
"""

import importlib
import sys
from pathlib import Path
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

FOLDERS = ("tools", "scripts", "nanochat")  # scripts make tables of records; nanochat has the learner's steps

stamp = 0.0
serving = False
last_good: Any = None  # the last book that could be tangled, for as long as somebody is writing


def site() -> Any:
    """The module that does the work."""
    return importlib.import_module("tools.weave.site")


def forget_changed_tools() -> None:
    """Let the next import find the tools as they are now."""
    global stamp
    times = [path.stat().st_mtime for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    newest = max(times, default=0.0)
    if newest != stamp:
        for name in [name for name in sys.modules if name.split(".")[0] in FOLDERS]:
            del sys.modules[name]
    stamp = newest


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Remember whether somebody is writing: then no mistake ends the program."""
    global serving
    serving = command == "serve"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the book."""
    global last_good
    forget_changed_tools()
    last_good = site().read_book(config, serving, last_good)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what nobody writes."""
    site().add_pages(files, config)
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str:
    """The page's Markdown, with marks for what is not Markdown."""
    return str(site().markdown_of(page))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's HTML, with what the marks stand for."""
    return str(site().finish(html, page))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The whole file, with a name for what the theme leaves without one."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


@event_priority(-100)  # after the search has written its index
def on_post_build(config: MkDocsConfig) -> None:
    """Complete the index of the search."""
    site().complete_search(config)
