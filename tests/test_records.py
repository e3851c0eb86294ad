"""nanochat.records: a record is whole or refused in one line, and no folder is deleted but our own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat.common import UserError, base_dir
from nanochat.flags import flag
from nanochat.records import another_base, command_of, describe_machine, moment, read_record, write_record


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    record = {"format": 1, "text": "é …", "groups": {"a": [1.5, None]}}
    write_record(tmp_path / "results" / "r.json", record)
    assert read_record(tmp_path / "results" / "r.json", ("text", "groups"), "do this") == record


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("{", "is no record (Expecting"),
        ("\xff", "is no record ('utf-8' codec"),
        ("[]", "is no record of this program (it has no 'format')"),
        ('{"format": 1}', "it has no 'text'"),
        ('{"format": 2, "text": ""}', "has format 2, and only 1 is read"),
    ],
)
def test_what_is_no_record_is_one_line_with_advice(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_record(path, ("text",), "do this")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(": do this")
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Some:
    size: int = flag(3, "how large")
    name: str = flag("", "what it is called")
    quick: bool = flag(False, "less")
    whole: bool = flag(True, "more")


def test_a_command_has_what_is_not_the_default() -> None:
    assert command_of("scripts.some", Some()) == "python -m scripts.some"
    given = Some(size=4, name="a b", quick=True, whole=False)
    assert command_of("scripts.some", given) == (
        "python -m scripts.some --size=4 '--name=a b' --quick=true --whole=false"
    )


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_another_base_is_gone_and_the_one_before_is_back(
    before: bool, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    if before:
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    (tmp_path / "trained").write_text("for weeks")

    def work() -> Path:
        with another_base("test-") as folder:
            assert base_dir() == folder != tmp_path
            (folder / "made").write_text("x")
            if fails:
                raise KeyboardInterrupt
            return folder

    if fails:
        with pytest.raises(KeyboardInterrupt):
            work()
    else:
        assert not work().exists()
    assert os.environ.get("NANOCHAT_BASE_DIR") == (str(tmp_path) if before else None)
    assert (tmp_path / "trained").read_text() == "for weeks"


def test_a_machine_says_what_computes() -> None:
    said = describe_machine("cpu")
    assert {"python", "torch", "tiktoken", "pyarrow"} <= said["versions"].keys()
    assert said["device"]
    assert said["cores"] >= 1


def test_a_moment_is_of_all_time_zones() -> None:
    assert moment(0) == "1970-01-01T00:00:00+00:00"
