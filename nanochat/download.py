"""Bring a large file here, whole: resumed when interrupted, tried again, verified before it gets its name."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanochat.common import UserError

if TYPE_CHECKING:
    import requests

Found = TypeVar("Found")

PATIENCE = 1.0  # seconds: the first of the growing waits between attempts; tests shorten it
ATTEMPTS = 5
CHUNK = 2**16  # bytes; what a cut connection can lose of what has arrived


def open_session() -> requests.Session:
    """A session that tries again after failed connections and after 429, 500, 502, 503 and 504."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=ATTEMPTS,
        connect=2,
        backoff_factor=PATIENCE,
        status_forcelist=(429, 500, 502, 503, 504),
        respect_retry_after_header=True,
        raise_on_status=False,
    )
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # a compressed body could not be resumed by byte number
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _checksum(response: requests.Response) -> str | None:
    """The SHA-256 that the server promised for the whole file, if it did."""
    for answer in (*response.history, response):
        for header in ("X-Linked-ETag", "ETag"):
            value = answer.headers.get(header, "").removeprefix("W/").strip('"').lower()
            if re.fullmatch(r"[0-9a-f]{64}", value):
                return value
    return None


class Broken(Exception):
    """An answer that ended early or cannot be used; another attempt may succeed."""


def _receive(session: requests.Session, url: str, part: Path, stop: threading.Event, bar: Any) -> str | None:
    """Append to `part` until it is whole; return the promised SHA-256, if any.

    Raises Broken if the connection broke or the length is wrong; UserError if the server refuses.
    """
    import requests

    have = part.stat().st_size if part.exists() else 0
    try:
        headers = {"Range": f"bytes={have}-"} if have else {}
        with session.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == 416:
                if answer.headers.get("Content-Range") != f"bytes */{have}":
                    part.unlink()
                    raise Broken(f"the {have:,} bytes received before are not the start of it")
                return _checksum(answer)
            if answer.status_code not in (200, 206):
                raise UserError(f"{url}: the server answers {answer.status_code} {answer.reason}")
            if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            ):
                part.unlink()
                raise Broken(f"asked from byte {have:,}, answered {answer.headers.get('Content-Range')!r}")
            if answer.status_code == 200:
                have = 0
            length = answer.headers.get("Content-Length")
            if bar is not None:
                bar.total = (bar.total or 0) + int(length or 0)
            with open(part, "ab" if have else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
                    if stop.is_set():
                        raise Broken("stopped")
                received = file.tell() - have
                file.flush()
                os.fsync(file.fileno())
            if length is not None and received != int(length):
                raise Broken(f"the connection ended after {received:,} of {int(length):,} bytes")
            return _checksum(answer)
    except requests.exceptions.RequestException as error:
        raise Broken(str(error)) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, promised: str | None) -> str:
    """The SHA-256 of what arrived. Raises Broken if another one was promised."""
    digest = file_sha256(path)
    if promised is not None and digest != promised:
        raise Broken(f"its SHA-256 is {digest}, the server promised {promised}")
    return digest


def fetch(
    session: requests.Session,
    url: str,
    target: Path,
    verify: Callable[[Path, str | None], Found],
    otherwise: str,
    stop: threading.Event | None = None,
    bar: Any = None,
) -> Found:
    """Download `url` to `target`, resuming, verifying, retrying; returns what `verify` made of it.

    `verify` is given what arrived and the SHA-256 that was promised, if any, and raises Broken to refuse it.
    `otherwise` says what else can be done. Raises UserError when nothing helps, or `stop` is set.
    """
    stop = stop or threading.Event()
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    futile = wrong = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            promised = _receive(session, url, part, stop, bar)
        except Broken as error:
            futile = 0 if part.exists() and part.stat().st_size > before else futile + 1
            if stop.is_set() or futile == ATTEMPTS or _unreachable(error):
                host, reason = url.split("/")[2], str(error).split("(Caused by ")[-1][:200]
                raise UserError(
                    f"cannot download {url} ({reason}): check the way to {host} and repeat the command, "
                    f"which resumes; {otherwise}"
                ) from error
            stop.wait(PATIENCE * 2**futile)
            continue
        except UserError as error:
            raise UserError(f"{error}; {otherwise}") from error
        try:
            found = verify(part, promised)
        except Broken as error:
            part.unlink()
            wrong += 1
            if wrong == 2:
                raise UserError(
                    f"{url} arrived damaged twice: {error}; try again later, or {otherwise}"
                ) from error
            continue
        part.replace(target)
        return found


def _unreachable(error: BaseException) -> bool:
    """Whether no connection could be made at all, after the session's own attempts."""
    import requests

    return isinstance(error.__cause__, requests.exceptions.ConnectionError) and "Max retries" in str(error)
