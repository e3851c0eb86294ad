"""The report: whole, with stages missing, with files that are damaged, and with hostile samples."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.report import AsItStands, Section, Table, Text, as_html, as_markdown, sections_of
from scripts.report import main
from tests.programs import answer

META = {
    "config": {"data": "sotu", "total_batch_size": 4096, "seed": 42},
    "model": {"sequence_len": 256, "vocab_size": 8192, "n_layer": 2},
    "tokenizer": "0123456789abcdef",
    "parameters": 5767168,
    "progress": {"seconds": 200.0},
}
HOSTILE = "<script>alert(1)</script> ```` | # [x](javascript:1) &amp;"


class Tags(HTMLParser):
    """The elements of a page, and its attributes that load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with everything in it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    folder = tmp_path / "base_checkpoints" / "d2"
    folder.mkdir(parents=True)
    save_checkpoint(folder, 100, torch.nn.Linear(1, 1), [], META)
    lines = [
        {"step": 0, "loss": 9.0107},
        {"step": 50, "val_bpb": 1.6},
        {"step": 100, "loss": 4.5, "val_bpb": 1.7},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "samples.txt").write_text("x" * 5000 + HOSTILE)
    core = {"name": "copa", "accuracy": 0.55, "chance": 0.5, "items": 100}
    record = {"title": "a subset", "score": 0.1234, "stderr": 0.01, "tasks": [core]}
    (folder / "core.json").write_text(json.dumps(record))
    (folder / "core-2.json").write_text(json.dumps(record | {"score": 0.2345}))
    os.utime(folder / "core.json", (1, 1))
    task = {"task": "arithmetic", "asked": 200, "right": 190, "baseline": 4, "failures": []}
    (folder / "chat-eval.json").write_text(json.dumps({"tasks": [task]}))
    return folder


def made(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    """What the program writes: Markdown and HTML."""
    out = tmp_path / "out"
    done = answer(main, f"--out={out}", *arguments)
    assert done.returncode == 0, done.stderr
    return (out / "report.md").read_text(), (out / "report.html").read_text()


def test_everything_that_was_left_is_told(run: Path, tmp_path: Path) -> None:
    markdown, page = made(tmp_path)
    told = (
        "5,767,168",
        "409,600 tokens",
        "2,048 tokens a second",
        "9.0107",
        "1.7000 bits per byte at the end",
    )
    for words in (*told, "1.6000 at its best, at step 50", "0.2345 ± 0.0100", "95.0%", "2.0%", "55.0%"):
        assert words in page
        assert words in markdown.replace("\\", "")
    assert "0.1234" not in page
    assert (tmp_path / "out" / "report-d2.png").read_bytes() == (run / "loss.png").read_bytes()
    assert "![Loss and validation" in markdown


def test_the_page_is_whole_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    markdown, page = made(tmp_path)
    tags = Tags(page)
    assert "script" not in tags.tags
    assert [load.partition(",")[0] for load in tags.loads] == ["data:image/png;base64"]
    assert HOSTILE in markdown
    assert markdown.count("`````") == 2  # a fence that the text cannot close


@pytest.mark.parametrize("missing", ["core", "chat", "samples", "metrics", "loss", "meta"])
def test_a_page_with_a_stage_missing_is_readable(run: Path, tmp_path: Path, missing: str) -> None:
    whole, _ = made(tmp_path)
    for path in run.glob(f"{missing}*"):
        if missing != "meta":
            path.unlink()
        else:
            path.write_text("{")
    markdown, page = made(tmp_path)
    assert markdown.count("\n## ") == whole.count("\n## ")
    help_is_given = {"core": "scripts.base_eval", "chat": "scripts.chat_eval", "samples": "scripts.sample"}
    if missing in help_is_given:
        assert f"Not there yet: python -m {help_is_given[missing]}" in page
    if missing == "meta":
        assert "It could not be read (Damaged: " in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("core.json", [], "core.json has no list of tasks"),
        (
            "core.json",
            {"title": "CORE", "score": "much", "stderr": 0.0, "tasks": []},
            "score is 'much', wanted float",
        ),
        (
            "core.json",
            {"title": "CORE", "score": 0.1, "stderr": 0.0, "tasks": [3]},
            "core.json is 3, wanted an object",
        ),
        ("chat-eval.json", {"tasks": {"letters": {"right": 0.5}}}, "chat-eval.json has no list of tasks"),
        ("chat-eval.json", {"tasks": [{"task": "letters", "asked": 3, "right": 2}]}, "does not say baseline"),
    ],
)
def test_what_a_record_cannot_say_is_told(
    run: Path, tmp_path: Path, name: str, content: object, words: str
) -> None:
    (run / name).write_text(json.dumps(content))
    (run / "core-2.json").unlink()
    markdown, _ = made(tmp_path)
    assert words in markdown.replace("\\", "")


def test_a_changed_checkpoint_is_not_believed(run: Path, tmp_path: Path) -> None:
    path = run / "meta_000100.json"
    path.write_text(path.read_text().replace("5767168", "5767169"))
    markdown, _ = made(tmp_path)
    assert "was changed after it was written" in markdown.replace("\\", "")
    assert "5,767,169" not in markdown


def test_several_runs_are_told_in_their_order(run: Path, tmp_path: Path) -> None:
    later = run.with_name("d2-chat")
    later.mkdir()
    save_checkpoint(later, 9, torch.nn.Linear(1, 1), [], META)
    markdown, _ = made(tmp_path, "--runs=d2,d2-chat")
    assert markdown.startswith("# Report on d2, d2-chat\n")
    assert markdown.index("## d2: training") < markdown.index("## d2-chat: training")


def test_what_is_not_known_is_not_said_to_be_0(run: Path, tmp_path: Path) -> None:
    save_checkpoint(run, 100, torch.nn.Linear(1, 1), [], {"model": {"n_layer": 2}})
    markdown, _ = made(tmp_path)
    assert "| parameters | unknown |" in markdown
    assert "| seconds | unknown |" in markdown
    assert "| steps | 100 of unknown tokens: unknown tokens |" in markdown


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    sections = sections_of([tmp_path / "nothing"], tmp_path, "a machine")
    assert [section.title for section in sections][1] == "nothing: training"
    assert "no git repository" in as_markdown("t", sections)


def test_cells_and_titles_are_text() -> None:
    section = Section("<b>", (Text("a\nb *c*"), Table(("h|",), (("<i>",),)), AsItStands("``")))
    assert (
        as_markdown("t", [section])
        == "# t\n\n## <b>\n\na b \\*c\\*\n\n| h\\| |\n| --- |\n| \\<i\\> |\n\n```text\n``\n```\n"
    )
    assert {"b", "i"}.isdisjoint(Tags(as_html("<b>", [section])).tags)
