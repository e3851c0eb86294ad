"""The site as a reader meets it: a real browser, no network, wide and narrow, light and dark, by keyboard."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.book.conftest import PROJECT, PYTHON, Project
from tests.book.machine import program

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
PATIENCE = 60_000  # milliseconds: much for a browser, little for a busy machine
CHAPTER = "20-weight-initialization.html"  # it has formulas, tables, a picture, a step of the learner
FILE = "files/nanochat/muon.py.html"
ALIKE = (
    "files/",
    "records/",
    "reference/",
)  # pages of one make: of each kind the first is looked at, and FILE
KINDS = ["index.html", CHAPTER, FILE, "fragments.html", "questions.html", "records.html", "symbols.html"]

environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


@dataclass
class Site:
    """The built site, served on this machine."""

    folder: Path
    address: str

    def pages(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.html"))

    def looked_at(self) -> list[str]:
        """Every page, but of those that are made alike only the first."""
        pages = [page for page in self.pages() if page != "404.html"]
        firsts = [next((page for page in pages if page.startswith(kind)), FILE) for kind in ALIKE]
        return [page for page in pages if not page.startswith(ALIKE) or page in (*firsts, FILE)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [PYTHON, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Site(folder, f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = program("chromium")
    with sync_playwright() as playwright:
        # As root, Chromium runs only without its sandbox. It reads pages of this machine, and no others.
        browser = playwright.chromium.launch(
            executable_path=path,
            chromium_sandbox=os.geteuid() != 0,
            args=["--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


@dataclass
class Reader:
    """A page in the browser, and everything that went wrong with it."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)

    def leave_out_the_search(self) -> None:
        """Each page reads the index of all pages when it opens: much work, where many are only looked at."""
        config = {"lang": ["en"], "separator": "[ ]+", "pipeline": [], "fields": {"title": {"boost": 1}}}
        index = {"config": config, "docs": []}
        self.page.route("**/search_index.json", lambda route: route.fulfill(json=index))

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)


def reader(context: BrowserContext, address: str) -> Reader:
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)  # a loaded machine takes longer than a page of mathematics does
    found = Reader(context.new_page(), address)

    def complain(text: str) -> None:
        found.complaints.append(f"{found.page.url}: {text}")

    found.page.on("console", lambda m: complain(m.text) if m.type in ("error", "warning") else None)
    found.page.on("pageerror", lambda error: complain(str(error)))
    # What a page still asks for while one leaves it is aborted, and nobody misses it.
    aborted = "net::ERR_ABORTED"
    found.page.on(
        "requestfailed", lambda r: None if r.failure == aborted else complain(f"{r.url}: {r.failure}")
    )
    found.page.on("response", lambda r: complain(f"{r.url}: {r.status}") if r.status >= 400 else None)
    found.page.on(
        "request",
        lambda r: None if r.url.startswith((address, "data:", "blob:")) else complain(f"asks for {r.url}"),
    )
    return found


@pytest.fixture
def reading(browser: Browser, site: Site) -> Iterator[Reader]:
    """A reader at a desk."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")  # type: ignore[arg-type]
    found = reader(context, site.address)
    yield found
    context.close()
    assert not found.complaints


class Addresses(HTMLParser):
    """Ids of a page, and the addresses that it leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.leads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id":
                self.ids[value or ""] += 1
            elif key in ("href", "src") and value is not None:
                self.leads.add(value)


def test_every_link_leads_to_a_page_and_a_place(site: Site) -> None:
    pages = {name: Addresses((site.folder / name).read_text(encoding="utf-8")) for name in site.pages()}
    broken = []
    for name, page in pages.items():
        broken += [f"{name}: the id '{id}' stands {n} times" for id, n in page.ids.items() if n > 1]
        for lead in page.leads:
            parts = urlsplit(urljoin(f"http://book/{name}", lead))
            if parts.netloc != "book":
                continue
            path = unquote(parts.path).lstrip("/")
            path += "index.html" if not path or path.endswith("/") else ""
            anchor = unquote(parts.fragment)
            if not (site.folder / path).is_file() or (
                anchor and path in pages and anchor not in pages[path].ids
            ):
                broken.append(f"{name}: {lead}")
    assert not broken
    assert len(pages) > 60


# What is wider than the window: the page itself, or a box with code that neither fits nor scrolls.
TOO_WIDE = """() => {
  const found = [], root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} wide`);
  const boxes = ".md-content :is(pre, pre > code, .whole-file, .formula, table, img)";
  const scrolls = (box) => /auto|scroll/.test(getComputedStyle(box).overflowX);
  for (const box of document.querySelectorAll(boxes)) {
    const right = box.getBoundingClientRect().right;
    if (!box.clientWidth || (box.scrollWidth <= box.clientWidth + 1 && right <= width + 1)) continue;
    let at = box;
    while (at && !at.matches("article") && !scrolls(at)) at = at.parentElement;
    if (!at || at.matches("article")) found.push(`${box.tagName}: ${box.textContent.slice(0, 60)}`);
  }
  return found;
}"""


def test_nothing_is_wider_than_a_desk_or_a_phone(reading: Reader, site: Site) -> None:
    too_wide = []
    reading.leave_out_the_search()
    for path in site.looked_at():
        reading.open(path)
        for size in (DESKTOP, PHONE):
            reading.page.set_viewport_size(size)  # type: ignore[arg-type]
            too_wide += [f"{path} at {size['width']}: {what}" for what in reading.page.evaluate(TOO_WIDE)]
        reading.page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
    assert not too_wide


AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
WORST = """async () => (await axe.run({resultTypes: ["violations"]})).violations
  .filter((fault) => fault.impact === "serious" || fault.impact === "critical")
  .map(({id, nodes: [node, ...more]}) =>
    `${id}, ${1 + more.length} times: ${node.html.slice(0, 120)} ${node.failureSummary}`)"""


@pytest.mark.parametrize(("scheme", "named"), [("light", "default"), ("dark", "slate")])
def test_axe_finds_nothing_serious(browser: Browser, site: Site, scheme: str, named: str) -> None:
    context = browser.new_context(viewport=DESKTOP, color_scheme=scheme)  # type: ignore[arg-type]
    found = reader(context, site.address)
    faults = []
    found.leave_out_the_search()
    for path in KINDS:
        found.open(path)
        assert found.page.evaluate("document.body.dataset.mdColorScheme") == named
        found.page.evaluate(AXE)
        faults += [f"{path}: {fault}" for fault in found.page.evaluate(WORST)]
    context.close()
    assert not faults
    assert not found.complaints


def test_axe_finds_nothing_serious_on_a_phone(browser: Browser, site: Site) -> None:
    """Boxes that fit on a desk scroll here, and must be reached."""
    context = browser.new_context(viewport=PHONE, color_scheme="light")  # type: ignore[arg-type]
    found = reader(context, site.address)
    found.open(CHAPTER)
    found.page.evaluate(AXE)
    faults = found.page.evaluate(WORST)
    context.close()
    assert not faults


def test_the_reader_chooses_the_theme(reading: Reader) -> None:
    reading.open("index.html")
    body = reading.page.locator("body")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = reading.page.evaluate(ground)
    reading.page.locator(".md-header label[for^=__palette]:visible").click()
    expect(body).to_have_attribute("data-md-color-scheme", "slate")
    reading.open(CHAPTER)  # the choice is kept
    expect(body).to_have_attribute("data-md-color-scheme", "slate")
    assert reading.page.evaluate(ground) != before


def test_pictures_follow_the_theme(browser: Browser, site: Site) -> None:
    shown = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport=DESKTOP, color_scheme=scheme)  # type: ignore[arg-type]
        found = reader(context, site.address)
        found.open(CHAPTER)
        names = found.page.evaluate(
            "[...document.querySelectorAll('.md-content img')].filter((i) => i.checkVisibility())"
            ".map((i) => (i.currentSrc || i.src).split('/').pop().split('#')[0])"
        )
        assert names
        shown.add((scheme, any(".dark." in name for name in names), all(".dark." in name for name in names)))
        context.close()
    assert shown == {("light", False, False), ("dark", True, True)}


def test_the_search_finds_a_fragment_by_its_title(reading: Reader) -> None:
    reading.open("index.html")
    reading.page.keyboard.press("/")
    field = reading.page.locator(".md-search__input")
    expect(field).to_be_focused()
    reading.page.keyboard.type("Attend within the causal mask")
    result = reading.page.locator(".md-search-result__link[href*='#fragment-attend-within-the-causal-mask']")
    result.first.click()
    fragment = reading.page.locator("#fragment-attend-within-the-causal-mask")
    expect(fragment).to_be_in_viewport()
    expect(fragment.get_by_text("scaled_dot_product_attention").first).to_be_visible()


def test_the_keyboard_reaches_the_content(reading: Reader) -> None:
    reading.open(CHAPTER)
    page = reading.page
    page.keyboard.press("Tab")
    skip = page.locator(".md-skip")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.md-content') !== null")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "nobody can see where the keyboard is"
    for _ in range(60):  # a summary opens by keyboard
        if page.evaluate("document.activeElement.matches('summary')"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")


def test_three_clicks_from_home_to_the_fragment_that_scales_attention(reading: Reader) -> None:
    """A new reader's walk: the chapter, the section, the code."""
    page = reading.page
    reading.open("index.html")
    page.locator(".md-content").get_by_role("link", name=re.compile("forward pass")).first.click()
    expect(page).to_have_url(re.compile("30-the-forward-pass"))
    contents = page.get_by_role("navigation", name="Table of contents")
    contents.get_by_role("link", name=re.compile("Look back, and only back")).first.click()
    fragment = page.locator("#fragment-attention-forward")
    code = fragment.get_by_role("link", name="Attend within the causal mask")
    expect(code).not_to_be_visible()  # it is a learner's step: no answer above the fold
    fragment.locator("details.answer > summary").click()
    expect(code).to_be_visible()


def test_the_contents_lead_to_why_attention_is_scaled(reading: Reader) -> None:
    page = reading.page
    reading.open("index.html")
    page.locator(".md-content").get_by_role("link", name=re.compile("forward pass")).first.click()
    contents = page.get_by_role("navigation", name="Table of contents")
    contents.get_by_role("link", name=re.compile("^Why scale attention by")).first.click()
    expect(page.get_by_role("heading", name=re.compile("^Why scale attention by"))).to_be_in_viewport()


@pytest.fixture
def served(project: Project) -> Iterator[Project]:
    """The small project with the site's settings and tools, being written while it is served."""
    forget = shutil.ignore_patterns("__pycache__", "reference.py")
    shutil.copytree(PROJECT / "tools", project.root / "tools", ignore=forget)
    shutil.copytree(PROJECT / "lit/assets", project.root / "lit/assets")
    shutil.copy(PROJECT / "mkdocs.yml", project.root)
    project.write("lit/index.md", "# Home\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (project.root / "results").mkdir()
    log = (project.root / "serve.log").open("w")
    server = subprocess.Popen(
        [PYTHON, "-m", "mkdocs", "serve", "-a", f"127.0.0.1:{port}"],
        cwd=project.root,
        env=environment,
        stdout=log,
        stderr=log,
    )
    project.write("address.ignored", f"http://127.0.0.1:{port}/")
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None, project.read("serve.log")
        time.sleep(0.1)
    yield project
    server.terminate()
    server.wait()
    log.close()


def test_serving_shows_a_mistake_in_the_page_and_recovers(browser: Browser, served: Project) -> None:
    context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    found = reader(context, served.read("address.ignored"))
    found.open("10-first.html")
    page = found.page
    expect(page.locator("#fragment-beta")).to_be_visible()
    good = served.read("lit/10-first.md")

    served.change("lit/10-first.md", "<<gamma>>", "<<delta>>")
    box = page.locator(".admonition.failure")
    expect(box.first).to_contain_text("no block is named #delta", timeout=PATIENCE)
    expect(box.first).to_contain_text("lit/10-first.md:18")
    expect(page.locator("#fragment-beta")).to_be_visible()  # the last good book is still there

    served.write("lit/10-first.md", good.replace("Some prose.", "Some other prose."))
    expect(page.get_by_text("Some other prose.")).to_be_visible(timeout=PATIENCE)
    expect(box).to_have_count(0)
    context.close()
