"""The chat page in a real browser: streams, tool calls, stop, errors, hostile text, keys, phone, themes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.book.conftest import PROJECT
from tests.book.test_browser import AXE, DESKTOP, PATIENCE, PHONE, WORST, browser, reader

__all__ = ["browser"]  # a fixture
EVERY = WORST.replace(
    '.filter((fault) => fault.impact === "serious" || fault.impact === "critical")', ""
)  # whatever its weight
TRAINING_PYTHON = PROJECT / ".venv/bin/python"


@contextmanager
def scripted_server(pause: float, token: str = "") -> Iterator[str]:
    """The address of a server that says what its script says, a token each `pause` seconds."""
    if not TRAINING_PYTHON.exists():
        pytest.skip("the server runs in .venv, which is not here")
    command = [str(TRAINING_PYTHON), "-m", "tests.chat_fixtures", str(pause), token]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip() + "/"
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with scripted_server(0.01) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page at a desk. Nothing may go wrong, and no other host may be asked."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")  # type: ignore[arg-type]
    expect.set_options(timeout=PATIENCE)
    found = reader(context, address)
    found.open("")
    yield found.page
    context.close()
    assert not found.complaints


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def answered(page: Page) -> None:
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_an_answer_and_the_calls_of_the_tool_are_shown(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("Talk to tiny")
    ask(page, "17 * 23?")
    turn = page.locator(".turn.assistant")
    expect(turn.locator(".call")).to_have_text("asks the tool: 17*23")
    expect(turn.locator(".output")).to_have_text("the tool says: 391")
    expect(turn.locator(".text")).to_have_text("It is 391.")
    answered(page)


def test_the_conversation_is_sent_with_calls_and_settings(page: Page) -> None:
    bodies = []
    page.on("request", lambda r: bodies.append(r.post_data_json) if r.method == "POST" else None)
    ask(page, "17 * 23?")
    answered(page)
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Among the k likeliest").fill("7")
    ask(page, "again")
    expect(page.locator(".turn.assistant")).to_have_count(2)
    answered(page)
    kinds = [part["kind"] for part in bodies[1]["messages"][1]["parts"]]
    assert kinds == ["call", "output", "text"]
    assert (bodies[1]["temperature"], bodies[1]["top_k"]) == (0.3, 7)
    assert bodies[1]["messages"][2] == {"role": "user", "content": "again"}


def test_what_the_model_writes_never_becomes_elements(page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    ask(page, "attack")
    expect(page.locator(".text").last).to_have_text("<img src=x onerror=alert(1)><script>alert(2)</script>")
    answered(page)
    assert page.locator("#conversation :is(img, script, b)").count() == 0
    ask(page, "<i>I</i>")
    answered(page)
    assert page.locator("#conversation i").count() == 0


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(browser: Browser) -> None:
    with scripted_server(0.2) as url:
        context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(url)
        ask(page, "long")
        expect(page.locator(".turn.assistant .text")).to_contain_text("wo")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".note")).to_have_text("(stopped)")
        answered(page)
        length = len(page.locator(".turn.assistant .text").inner_text())
        ask(page, "long")
        expect(page.locator(".turn.assistant .text").nth(1)).to_contain_text("wo")
        page.keyboard.press("Escape")
        expect(page.locator(".note")).to_have_count(2)
        assert len(page.locator(".turn.assistant .text").first.inner_text()) == length
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator(".turn")).to_have_count(0)
        context.close()


def test_errors_are_said_and_the_question_is_kept(browser: Browser) -> None:
    with scripted_server(0.0, token="secret") as url:
        context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(url)
        expect(page.get_by_role("alert")).to_contain_text("token is missing or wrong")
        ask(page, "hello")
        expect(page.get_by_role("alert")).to_contain_text("No answer: the token is missing or wrong")
        expect(page.get_by_label("Your message")).to_have_value("hello")
        expect(page.locator(".turn")).to_have_count(0)
        page.get_by_label("Token, if").fill("secret")
        page.get_by_label("Your message").press("Enter")
        expect(page.locator(".turn.assistant .text")).to_have_text("You said: hello")
        expect(page.get_by_role("alert")).to_be_hidden()
        context.close()


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user p")).to_have_text("one\ntwo")
    answered(page)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"new", "conversation", "question", "send", "SUMMARY"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(
    browser: Browser, address: str, scheme: str, size: dict[str, int], tmp_path: Path
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    found = reader(context, address)
    # The page's own policy forbids what axe is; it is put in as the browser's, before the page.
    context.add_init_script(AXE)
    found.open("")
    ask(found.page, "17 * 23?")
    answered(found.page)
    found.page.get_by_text("Settings").click()
    faults = found.page.evaluate(EVERY)
    wide = found.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    ground = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    found.page.screenshot(path=tmp_path / "page.png")
    context.close()
    assert not faults
    assert not wide
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert not found.complaints
