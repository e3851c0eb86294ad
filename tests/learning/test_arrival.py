"""A file is imported once, as it is, before anything in it is judged."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.learning.arrival import arrive, import_watched
from nanochat.learning.hybrid import Unjudgeable, read_source
from nanochat.learning.judge import Judge, judge
from nanochat.learning.rehearsal import no_trace, rehearse_file
from nanochat.models import ROOT
from tests.learning.rewriting import BOOK

TRAINS = """
model = nn.Linear(2, 2)
for _ in range(3):
    loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    torch.optim.SGD(model.parameters()).step()
"""
AT_THE_END = {  # what stands below the model: the words that are wanted
    "import nowhere_to_be_found": "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    "from torch import nothing_of_this_name": "ImportError: cannot import name",
    "1 / 0": "ZeroDivisionError",
    "raise RuntimeError('not ready')": "RuntimeError: not ready",
    "import sys\nsys.exit(0)": "ends in SystemExit, and with it the program",
    "exit()": "ends in SystemExit, and with it the program",
    "raise SystemExit": "ends in SystemExit, and with it the program",
    "raise KeyboardInterrupt": "ends in KeyboardInterrupt, and with it the program",
    "import os\nos._exit(3)": "ends the process, with exit status 3",
    "import os\nos._exit(0)": "ends the process, with exit status 0",
    "import ctypes\nctypes.string_at(0)": "was ended by SIGSEGV",
    "breakpoint()": "BdbQuit",
    "input()": "EOFError",
    "while True:\n    pass": "still running after 2 s: a loop that never ends, or a training?",
    "import time\ntime.sleep(1000)": "still running after 2 s",
    "x = torch.zeros(10**13)": "importing the file ends in",
    "torch.set_default_dtype(torch.float64)": "default dtype from torch.float32 to torch.float64",
    "torch.set_default_device('meta')": "default device from cpu to meta",
    "torch.set_grad_enabled(False)": "recording of gradients from on to off",
    TRAINS: "the file runs a model while it is imported",
    "GPT(GPTConfig(n_layer=1, n_embd=12, vocab_size=8)).forward": "",
    "MLP(GPTConfig(n_layer=1, n_embd=12, vocab_size=8))(torch.ones(1, 1, 12))": "the file runs a model",
    f"if __name__ == '__main__':{TRAINS.replace(chr(10), chr(10) + '    ')}": "",
    "torch.manual_seed(1337)": "",
    "print('hello')": "",
}


def written(folder: Path, end: str) -> Path:
    path = folder / "normans_gpt.py"
    path.write_text(f"{BOOK.text}\n\n{end}\n")
    return path


@pytest.mark.parametrize(("end", "words"), AT_THE_END.items())
def test_what_a_file_does_when_it_is_imported(tmp_path: Path, end: str, words: str) -> None:
    arrival = arrive(written(tmp_path, end), time_limit=2)
    if words:
        assert words in arrival.says
        assert "normans_gpt.py" in arrival.says
        assert "\n" not in arrival.says
    else:
        assert arrival.says == ""
    assert torch.get_default_dtype() == torch.float32  # none of it happened here


@pytest.mark.parametrize("end", ["1 / 0", "import sys\nsys.exit(0)", TRAINS])
def test_the_line_is_named(tmp_path: Path, end: str) -> None:
    path = written(tmp_path, end)
    first = BOOK.text.count("\n") + 3
    place = arrive(path, 2).says.split(": ")[0]
    assert first <= int(place.rpartition(":")[2]) <= path.read_text().count("\n")


def test_functions_are_judged_without_the_compiler() -> None:
    code = (
        "import sys; from nanochat.learning.arrival import leave_the_compiler_out as leave; leave(); "
        "from tests.learning.rewriting import BOOK, SECOND_BOOK, verdict_on; "
        "two = [verdict_on(BOOK, 'GPT.forward'), verdict_on(SECOND_BOOK, 'save')]; "
        "assert {one.status for one in two} == {'passed'}; "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_step_passes_in_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    given = judge(written(tmp_path, "import nowhere_to_be_found"), ["norm", "MLP.forward"])
    assert [verdict.status for verdict in given] == ["not judged"] * 2
    assert all("nowhere_to_be_found" in (verdict.difference or "") for verdict in given)


def test_what_is_printed_is_kept_and_cut(tmp_path: Path) -> None:
    with Judge(time_limit=20) as court:
        (verdict,) = court.judge(written(tmp_path, "print('here'); print('x' * 10**6)"), ["norm"])
        assert verdict.status == "passed"
        assert court.arrival.printed.startswith("here\nxxx")
        assert len(court.arrival.printed) < 600


@pytest.mark.parametrize(
    "end", ["import sys\nsys.exit(0)", "torch.set_grad_enabled(False)", "import nowhere"]
)
def test_make_learn_refuses_it_too(tmp_path: Path, end: str) -> None:
    path = written(tmp_path, end)
    with torch.enable_grad():
        report = rehearse_file(path, no_trace)
    assert report.stopped == "unreadable"
    assert report.says == arrive(path, 2).says
    with pytest.raises(UserError), torch.enable_grad():
        import_watched(path)


def test_a_file_that_writes_without_end_is_stopped(tmp_path: Path) -> None:
    target = tmp_path / "big"
    end = f"f = open({str(target)!r}, 'wb')\nwhile True:\n    f.write(b'x' * 2**20)"
    assert "OSError" in arrive(written(tmp_path, end), 20).says
    assert target.stat().st_size <= 2**28


def test_children_are_ended_with_it(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    end = f"import subprocess, sys\nsubprocess.Popen(['sh', '-c', 'sleep 3; touch {beat}'])"
    assert arrive(written(tmp_path, end), 10).says == ""
    time.sleep(4)
    assert not beat.exists()


ENCODINGS = {
    "utf-8-sig": "",
    "utf-16": "null bytes: saved as UTF-16",
    "utf-16-le": "null bytes: saved as UTF-16",
    "latin-1": r":3: there is a byte \(0xe9\) that is not UTF-8",
    "cp1252": r":3: there is a byte \(0xe9\) that is not UTF-8",
}


@pytest.mark.parametrize(("encoding", "words"), ENCODINGS.items())
def test_encodings(tmp_path: Path, encoding: str, words: str) -> None:
    path = tmp_path / "normans_gpt.py"
    raw = BOOK.text.replace("\n", "\n\n# caf\xe9\n", 1).encode(encoding, errors="replace")
    path.write_bytes(raw)
    if not words:
        assert read_source(path).parse()
        assert rehearse_file(path, no_trace).stopped == ""
        return
    with pytest.raises(Unjudgeable, match=words):
        read_source(path).parse()
    assert rehearse_file(path, no_trace).stopped == "unreadable"


def test_an_encoding_that_the_file_declares_is_read(tmp_path: Path) -> None:
    path = tmp_path / "normans_gpt.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    assert read_source(path).text.endswith("'\xe9'\n")
    path.write_bytes(b"# -*- coding: nonsense -*-\n")
    with pytest.raises(Unjudgeable, match=r"unknown encoding.* save it as UTF-8"):
        read_source(path)
