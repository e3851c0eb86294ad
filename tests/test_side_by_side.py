"""Programs that run at the same time in one base folder: real processes, made to meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.common import UserError, one_at_a_time
from scripts import base_train
from tests.programs import run_main
from tests.tiny_run import flags, own_base, records, tiny_config

ROOT = Path(__file__).parent.parent
ENDED = "wait until it has ended, or end it"


def start(program: str, *arguments: object, **environment: object) -> subprocess.Popen[str]:
    """A Python process with this program; its output is what it prints."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """All that a process prints, after it has ended well."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return out


HOLD = """
import sys
from pathlib import Path
from nanochat.common import one_at_a_time

with one_at_a_time(Path(sys.argv[1]), "holds it"):
    print("held")
    sys.stdin.readline()
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock until a line is written to it, or the block ends."""
    process = start(HOLD, lock)
    assert process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".thing.lock"
    with holder(lock) as first, pytest.raises(UserError) as caught:  # noqa: SIM117
        with one_at_a_time(lock, "holds it", wait=False):
            pytest.fail("two at a time")
    assert str(caught.value).startswith(f"process {first.pid} on ")
    assert str(caught.value).endswith(f" holds it: {ENDED}")


def test_a_second_process_waits_and_says_for_whom(tmp_path: Path) -> None:
    lock = tmp_path / ".thing.lock"
    with holder(lock) as first:
        second = start(HOLD, lock)
        assert second.stdout
        assert second.stdin
        assert second.stdout.readline().startswith(f"waiting: process {first.pid} on ")
        assert first.stdin
        first.stdin.write("\n")
        first.stdin.flush()
        assert second.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {second.pid} on "), one_at_a_time(lock, "is", False):
            pytest.fail("two at a time")
        second.communicate("\n")
    with one_at_a_time(lock, "is", wait=False):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".thing.lock"
    with holder(lock) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        with one_at_a_time(lock, "is", wait=False):
            assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match=r"cannot write .*NANOCHAT_BASE_DIR"),
        one_at_a_time(tmp_path / "file" / ".thing.lock", "is"),
    ):
        pytest.fail("a lock in a file")


# What makes the thing says so, and goes on after a line on its standard input.
MAKE = """
import sys
from pathlib import Path
from nanochat import dataset, tokenizer

def slowly(real):
    def made(*arguments):
        print("making")
        sys.stdin.readline()
        return real(*arguments)
    return made

if sys.argv[1] == "corpus":
    dataset._write_new_corpus = slowly(dataset._write_new_corpus)
    print(dataset.prepare_folder(Path(sys.argv[2]), "tiny").text_sha256)
else:
    tokenizer.first_characters = slowly(tokenizer.first_characters)
    print(tokenizer.prepare_tokenizer("tiny", 280).fingerprint())
"""


def test_a_corpus_and_a_tokenizer_are_made_once(tmp_path: Path) -> None:
    """The second process waits while the first makes it, and takes what the first has made."""
    base, texts = tmp_path / "base", tmp_path / "texts"
    texts.mkdir()
    for number in range(5):
        (texts / f"{number}.txt").write_text(f"four score and seven years {number} ago our fathers " * 20)
    for what in ("corpus", "tokenizer"):
        first = start(MAKE, what, texts, NANOCHAT_BASE_DIR=base)
        assert any(line == "making\n" for line in first.stdout or ())
        second = start(MAKE, what, texts, NANOCHAT_BASE_DIR=base)
        assert second.stdout
        assert second.stdout.readline().startswith(f"waiting: process {first.pid} on ")
        one, _ = first.communicate("\n")
        assert said(second) == one, "the second made something itself"


# A training run that, at its second step, says so and goes on after a line on its standard input.
TRAIN = """
import sys
from nanochat import step
from nanochat.common import run_program
from scripts import base_train

real = step.muon_momentum

def slowly(step):
    if step == 1:
        print("training")
        sys.stdin.readline()
    return real(step)

step.muon_momentum = slowly
sys.argv = ["base_train", *sys.argv[1:]]
run_program(base_train.main)
"""


def test_no_two_processes_train_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with own_base(tmp_path):
        ours = tiny_config(num_iterations=2, save_every=1)
        first = start(TRAIN, *flags(ours))
        assert any(line == "training\n" for line in first.stdout or ())
        assert run_main(base_train.main, *flags(replace(ours, resume="d1"))) == 2
        refusal = capsys.readouterr().err
        assert refusal.startswith(f"error: process {first.pid} on ")
        assert refusal.endswith(f" trains in {tmp_path / 'base_checkpoints' / 'd1'}: {ENDED}\n")
        assert run_main(base_train.main, *flags(ours)) == 0  # a fresh run goes beside it
        first.communicate("\n")
        assert first.returncode == 0
        assert run_main(base_train.main, *flags(replace(ours, resume="d1", num_iterations=3))) == 0
        for tag, steps in (("d1", [0, 1, 2]), ("d1-2", [0, 1])):
            losses = [record for record in records(tmp_path / "base_checkpoints" / tag) if "loss" in record]
            assert [record["step"] for record in losses] == steps
