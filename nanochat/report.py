"""One page about a trained model, as Markdown and as HTML, from what its stages have left behind."""

from __future__ import annotations

import base64
import html
import json
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from nanochat.checkpoint_manager import read_record, saved_steps
from nanochat.common import UserError, typed
from nanochat.run_log import read_metrics


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head, which may be empty."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG, and in words what it shows."""

    file: Path
    words: str


@dataclass(frozen=True)
class AsItStands:
    """Text whose every blank counts."""

    text: str


Block = Text | Table | Picture | AsItStands


@dataclass(frozen=True)
class Section:
    """A title and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The page in Markdown; pictures are named as files of the same folder."""
    pieces = [f"# {title}"]
    for section in sections:
        pieces.append(f"## {section.title}")
        pieces += map(_markdown, section.blocks)
    return "\n\n".join(pieces) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        return _plain(block.text)
    if isinstance(block, Picture):
        return f"![{_plain(block.words)}]({block.file.name})"
    if isinstance(block, AsItStands):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return f"{fence}text\n{block.text.rstrip()}\n{fence}"
    columns = len(block.head) or max(map(len, block.rows), default=1)
    head = block.head or ("",) * columns
    rows = [head, ("---",) * columns, *block.rows]
    return "\n".join(
        f"| {' | '.join(cell if row is rows[1] else _plain(cell) for cell in row)} |" for row in rows
    )


def _plain(text: str) -> str:
    """Text of one line in which Markdown sees no marks."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 50rem; font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #8888; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1.2rem 0.25rem 0; }
tr { border-bottom: 1px solid #8884; }
td:first-child { white-space: nowrap; }
img { max-width: 100%; height: auto; background: #fff; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #888; padding-left: 1rem; }
"""


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The page in HTML: one file, pictures within it, nothing loaded from elsewhere, no script."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<section><h2>{html.escape(section.title)}</h2>")
        body += [*map(_html, section.blocks), "</section>"]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, AsItStands):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.file.read_bytes()).decode()
        return f'<p><img src="data:image/png;base64,{data}" alt="{html.escape(block.words)}"></p>'
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in block.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in block.rows
    )
    top = f"<thead><tr>{head}</tr></thead>\n" if block.head else ""
    return f'<div class="scroll" tabindex="0"><table>{top}<tbody>\n{rows}</tbody></table></div>'


def commit(folder: Path) -> str:
    """The commit of the code in a folder, and whether files differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("log", "-1", "--format=%h of %cs: %s") + (", and changes since" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown: this is no git repository"


def tell_of_the_place(code: Path, machine: str) -> list[Block]:
    """Code, machine and versions."""
    rows = [
        ("code", commit(code)),
        ("machine of this report", machine),
        ("python", platform.python_version()),
    ]
    for name in ("torch", "tokenizers", "tiktoken"):
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not there"))
    return [Table((), tuple(rows))]


def read_meta(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run says of itself, beside its weights.

    Raises FileNotFoundError where there is no checkpoint, Damaged where it cannot be trusted.
    """
    steps = saved_steps(folder)
    if not steps:
        raise FileNotFoundError(f"{folder} has no checkpoint")
    return dict(read_record(folder, steps[-1])["meta"]) | {"step": steps[-1]}


UNKNOWN = "unknown"


def known(number: float | None) -> str:
    """A number as it is read, or that there is none: 0 would say something."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def tell_of_training(folder: Path) -> list[Block]:
    """Data, model, and what training took."""
    meta = read_meta(folder)
    shape, config = meta.get("model", {}), meta.get("config", {})
    batch, seconds = config.get("total_batch_size"), meta.get("progress", {}).get("seconds")
    tokens = meta["step"] * batch if batch else None
    pace = f", {tokens / seconds:,.0f} tokens a second" if tokens and seconds else ""
    rows = [
        ("corpus", str(config.get("data", UNKNOWN))),
        ("tokenizer", f"{known(shape.get('vocab_size'))} tokens, {str(meta.get('tokenizer', UNKNOWN))[:12]}"),
        ("whose model", str(meta.get("gpt", {}).get("name", UNKNOWN))),
        ("shape", ", ".join(f"{name} {value:,}" for name, value in shape.items()) or UNKNOWN),
        ("parameters", known(meta.get("parameters"))),
        ("steps", f"{meta['step']:,} of {known(batch)} tokens: {known(tokens)} tokens"),
        ("seconds", known(seconds) + pace),
        ("seed", str(config.get("seed", UNKNOWN))),
    ]
    return [Table((), tuple(rows))]


def tell_of_the_curve(folder: Path) -> list[Block]:
    """How the loss fell."""
    records = read_metrics(folder)
    losses = [record for record in records if "loss" in record]
    scores = [record for record in records if "val_bpb" in record]
    said = []
    if losses:
        said.append(
            f"loss {losses[0]['loss']:.4f} at the first step and {losses[-1]['loss']:.4f} at the last"
        )
    if scores:
        best = min(scores, key=lambda record: record["val_bpb"])
        said.append(f"validation {scores[-1]['val_bpb']:.4f} bits per byte at the end")
        said.append(f"{best['val_bpb']:.4f} at its best, at step {best['step']:,}")
    words = "; ".join(said) or "nothing has been logged"
    blocks: list[Block] = [Text(words[0].upper() + words[1:] + ".")]
    if (folder / "loss.png").exists():
        blocks.append(Picture(folder / "loss.png", f"Loss and validation over the steps: {words}."))
    return blocks


SAMPLE = 1500  # characters of the samples that are shown: the last ones


def tell_of_samples(folder: Path) -> list[Block]:
    """What the model wrote last."""
    text = (folder / "samples.txt").read_text(encoding="utf-8", errors="replace").strip()
    cut = (
        Text(f"The last {SAMPLE:,} of {len(text):,} characters.")
        if len(text) > SAMPLE
        else Text("All of it.")
    )
    return [cut, AsItStands(text[-SAMPLE:])]


@dataclass(frozen=True)
class CoreRow:
    """What the page shows of a task of scripts.base_eval."""

    name: str
    accuracy: float  # a share of 1
    chance: float  # a share of 1
    items: int


@dataclass(frozen=True)
class ChatRow:
    """What the page shows of a task of scripts.chat_eval."""

    task: str
    asked: int
    right: int
    baseline: float  # questions that the baseline has right


@dataclass(frozen=True)
class CoreScore:
    """What the page shows of all tasks of scripts.base_eval together."""

    title: str
    score: float
    stderr: float


Row = TypeVar("Row")


def chosen(kind: type[Row], said: object, where: Path) -> Row:
    """The fields of `kind` from what a file says, which may say more. Raises UserError if they do not fit."""
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    known = {name: said[name] for name in names if name in said} if isinstance(said, dict) else said
    return typed(kind, known, str(where))


def newest_record(folder: Path, pattern: str, kind: type[Row]) -> tuple[Path, object, list[Row]]:
    """The JSON that was written last: its path, all of it, and its tasks.

    Raises FileNotFoundError where there is none, ValueError for what is no JSON, UserError for other types.
    """
    paths = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise FileNotFoundError(folder / pattern)
    said = json.loads(paths[-1].read_text(encoding="utf-8"))
    tasks = said.get("tasks") if isinstance(said, dict) else None
    if not isinstance(tasks, list):
        raise UserError(f"{paths[-1]} has no list of tasks")
    return paths[-1], said, [chosen(kind, task, paths[-1]) for task in tasks]


def tell_of_core(folder: Path) -> list[Block]:
    """The newest record of scripts.base_eval."""
    path, record, tasks = newest_record(folder, "core*.json", CoreRow)
    whole = chosen(CoreScore, record, path)
    rows = [(task.name, f"{task.accuracy:.1%}", f"{task.chance:.1%}", f"{task.items:,}") for task in tasks]
    said = f"{whole.title}: {whole.score:.4f} ± {whole.stderr:.4f}. 0 is a guess, 1 is all right."
    return [Text(said), Table(("task", "right", "a guess", "questions"), tuple(rows))]


def tell_of_tasks(folder: Path) -> list[Block]:
    """The newest record of scripts.chat_eval."""
    rows = []
    for task in newest_record(folder, "chat*.json", ChatRow)[2]:
        shares = [f"{part / task.asked:.1%}" if task.asked else "-" for part in (task.right, task.baseline)]
        rows.append((task.task, *shares, f"{task.asked:,}"))
    return [Table(("task", "right", "baseline", "questions"), tuple(rows))]


Teller = Callable[[Path], list[Block]]

# For each section: its title, who tells it, and what makes it when it is missing.
STAGES: tuple[tuple[str, Teller, str], ...] = (
    ("training", tell_of_training, "make train"),
    ("curves", tell_of_the_curve, "make train"),
    ("CORE", tell_of_core, "python -m scripts.base_eval --run={run}"),
    ("tasks", tell_of_tasks, "python -m scripts.chat_eval --run={run} --out={folder}/chat-eval.json"),
    ("samples", tell_of_samples, "python -m scripts.sample --run={run}"),
)


def told(teller: Callable[[], list[Block]], how: str) -> tuple[Block, ...]:
    """What the teller says, or a line that says why it cannot and what would help."""
    try:
        return tuple(teller())
    except FileNotFoundError:
        return (Text(f"Not there yet: {how}"),)
    except Exception as error:
        return (Text(f"It could not be read ({type(error).__name__}: {error}). To make it again: {how}"),)


def sections_of(folders: Sequence[Path], code: Path, machine: str) -> list[Section]:
    """The whole page; folders are those of runs, the earliest stage first."""
    sections = [
        Section("Where this comes from", told(lambda: tell_of_the_place(code, machine), "make report"))
    ]
    for folder in folders:
        for title, teller, how in STAGES:
            blocks = told(partial(teller, folder), how.format(run=folder.name, folder=folder))
            sections.append(Section(f"{folder.name}: {title}", blocks))
    return sections
