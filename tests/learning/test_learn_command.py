"""The learn command: what it says to every kind of learner, file and typing mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.learning.hybrid import Source
from nanochat.learning.judge import Judge
from nanochat.learning.progress import SKELETON, Workshop
from nanochat.learning.rehearsal import no_trace, rehearse_file
from nanochat.learning.report import Rehearsal, Report
from nanochat.learning.steps import STEPS, step_named
from nanochat.models import BUILT_IN, ROOT, choose_gpt, gaps_named, import_file, load_gpt
from nanochat.train_config import TrainConfig
from scripts import learn
from scripts.base_train import train
from scripts.learn import Session, execute, select, select_one
from scripts.learn_via_debug.debug_gpt_components import WalkConfig, walk
from tests.learning.rewriting import BOOK, QuickSession, with_function, write_from_the_book
from tests.tiny_run import own_base, tiny_config

Say = Callable[..., tuple[int, str]]
FIRST_ERROR = (
    "NotImplementedError: TODO: Implement GPT.__init__ - create transformer dict with wte and h, "
    "create lm_head, setup rotary embeddings\n"
)


@pytest.fixture(scope="module")
def court() -> Iterator[Judge]:
    with Judge(time_limit=20) as made:
        yield made


@pytest.fixture
def session(tmp_path: Path, court: Judge) -> Session:
    made = QuickSession(Workshop(tmp_path / "workshop"))
    made.court = court
    made.shop.create()
    return made


@pytest.fixture
def say(session: Session, capsys: pytest.CaptureFixture[str]) -> Say:
    def obey(*argv: str) -> tuple[int, str]:
        code = execute(argv, session)
        said = capsys.readouterr()
        return code, said.out + said.err

    return obey


def write(session: Session, step_id: str, text: str) -> None:
    file = session.shop.file
    file.write_text(with_function(step_id, text, Source(str(file), file.read_text())).text)


RIGHT = "def norm(x):\n    return F.rms_norm(x, (x.size(-1),))"
WRONG = "def norm(x):\n    return x / (x.square().mean(-1, keepdim=True) + 1e-7)"


# which step is meant


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("GPT.forward", ["GPT.forward"]),
        ("gpt.FORWARD()", ["GPT.forward"]),
        ("norm", ["norm"]),
        ("generate", ["GPT.generate"]),
        ("forward", ["CausalSelfAttention.forward", "MLP.forward", "Block.forward", "GPT.forward"]),
        ("mlp", ["MLP.__init__", "MLP.forward"]),
        ("attention", ["CausalSelfAttention.__init__", "CausalSelfAttention.forward"]),
        ("1", ["GPTConfig"]),
        ("18", ["GPT.generate"]),
        ("phase2", ["GPT.init_weights", "GPT._init_weights"]),
        ("Phase 5", ["GPT.generate"]),
        ("19", ["step"]),
        ("phase7", ["learn_merges", "encode", "batches"]),
        ("muon", ["Muon.step"]),
        ("insert_kv", ["KVCache.insert_kv"]),
        ("init_weights", ["GPT.init_weights"]),
    ],
)
def test_a_step_has_many_names(text: str, ids: list[str]) -> None:
    assert [step.id for step in select(text)] == ids


@pytest.mark.parametrize(
    ("text", "near"),
    [("GPT.foward", "GPT.forward"), ("genrate", "generate"), ("atention", "Attention"), ("Nrom", "norm")],
)
def test_an_unknown_step_suggests_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no step '{text}'; did you mean {near}"):
        select(text)


@pytest.mark.parametrize("text", ["0", "34", "phase11", "phase", "round3", "", "xyzzy"])
def test_what_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a number from 1 to 33"):
        select(text)


def test_one_step_is_wanted_where_one_is_needed() -> None:
    with pytest.raises(UserError, match=r"forward is 4 steps: CausalSelfAttention\.forward, MLP\.forward"):
        select_one("forward")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["chek"], "no command 'chek'; did you mean check"),
        (["hint"], "STEP"),
        (["check", "norm", "MLP"], "'MLP' is no flag"),
        (["check", "--js"], "there is no flag --js"),
        (["hint", "norm", "--tier=x"], "--tier: wants a whole number, not 'x'"),
        (["reset"], "needs a STEP, or --all"),
        (["reset", "norm", "--all"], "needs a STEP, or --all"),
        (["hint", "norm", "--tier=4"], "there are 3"),
        (["hint", "norm", "--tier=0"], "there are 3"),
        (["check", "--file=nowhere.py"], "nowhere.py does not exist; --file wants a Python file"),
        (["check", "--file=lit"], "lit is no file; --file wants a Python file"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    session: Session, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((UserError, SystemExit)) as caught:
        execute(argv, session)
    said = capsys.readouterr().err.strip() if isinstance(caught.value, SystemExit) else str(caught.value)
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize("command", ["status", "check", "solution norm", "diff", "reset norm", "watch"])
def test_without_a_file_make_learn_is_named(session: Session, command: str) -> None:
    session.shop.file.unlink()
    with pytest.raises(UserError, match="does not exist; make learn puts a skeleton there"):
        execute(command.split(), session)


# run


def test_the_first_error_is_the_one_promised(say: Say, session: Session) -> None:
    code, said = say("run")
    assert code == 1
    assert FIRST_ERROR in said
    line = int(re.findall(r"write      .*:(\d+)", said)[0])
    assert "raise NotImplementedError" in session.shop.file.read_text().split("\n")[line - 1]


def test_any_answer_is_an_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `make learn`: the status is 0 for each, and Python's own 1 is left for a crash."""
    answers: list[int] = []
    monkeypatch.setattr(learn, "rehearse_and_judge", lambda *_: answers[-1])
    for code in (0, 1):
        answers.append(code)
        assert execute(["run"], session) == code
        assert execute(["run", "--any-answer"], session) == 0
    assert "run --any-answer " in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("what", ["the file", "its copy", "the ledger", "a full disk"])
def test_a_workshop_that_cannot_be_written_to(
    session: Session, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names another place to go to, whichever is written first."""
    shop, command = session.shop, "check norm"
    if what == "the file":
        shop.folder, command = shop.file / "below", "run --any-answer"
    elif what == "its copy":
        (shop.folder / "kept").write_text("a file where the folder should be\n")
        command = "reset --all"
    else:
        code = errno.ENOSPC if what == "a full disk" else errno.EROFS
        place = [] if what == "a full disk" else [str(shop.ledger)]

        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code), *place)

        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot be written to: .* NANOCHAT_WORKSHOP=") as caught:
        execute(command.split(), session)
    assert "\n" not in str(caught.value)


def test_other_errors_of_the_system_are_not_taken_for_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise FileNotFoundError(2, "No such file or directory", str(SKELETON))

    monkeypatch.setattr(learn, "rehearse_and_judge", broken)
    with pytest.raises(FileNotFoundError):
        execute(["run"], session)


def test_the_skeleton_is_copied_once(say: Say, session: Session) -> None:
    session.shop.file.write_text("# mine\n")
    code, said = say("run")
    assert code == 1
    assert "has no GPT" not in said or "stopped" in said
    assert session.shop.file.read_text() == "# mine\n"
    assert session.shop.create() is False


def test_a_run_judges_what_was_written_since(say: Say, session: Session) -> None:
    write(session, "norm", WRONG)
    _, said = say("run")
    assert said.index("NotImplementedError: TODO") < said.index("failed  norm")
    assert "root-forgotten" in said
    assert "before you go on: norm is not right yet" in said
    _, said = say("run")
    assert "checked" not in said  # it has not changed
    assert "before you go on: norm is not right yet" in said
    write(session, "norm", RIGHT)
    _, said = say("run")
    assert "passed  norm" in said
    assert "before you go on" not in said


def test_an_exception_names_the_learners_line(say: Say, session: Session) -> None:
    session.shop.file.write_text(
        with_function("MLP.forward", "def forward(self, x):\n    return self.c_fc(x.nothing)").text
    )
    _, said = say("run")
    line = session.shop.file.read_text().split("\n").index("        return self.c_fc(x.nothing)") + 1
    assert "stopped    AttributeError: 'Tensor' object has no attribute 'nothing'" in said
    assert f"in         MLP.forward, {session.shop.file}:{line}\n" in said
    assert "             return self.c_fc(x.nothing)\n" in said
    assert re.search(r"called by  Block.forward:\d+, GPT.forward:\d+", said)
    assert "error   MLP.forward" in said


FORWARD = "def forward(self, idx, targets=None, *a, **k):"
WRONG_RUNS = [
    ("GPT.forward", f"{FORWARD}\n    return idx.float()", "and returned a tensor"),
    ("GPT.forward", f"{FORWARD}\n    return None", "and returned NoneType"),
    ("GPT.init_weights", "def init_weights(self):\n    pass", "has no values after GPT.init_weights"),
    ("norm", "def norm(x):\n    return x * float('nan')", "the loss of the first batch is nan"),
    ("Block.forward", "def forward(self, x, *a):\n    return x.detach()", "sends nothing back to"),
    ("GPT.generate", "def generate(self, tokens, max_tokens, **k):\n    yield 3.5", "and gave [3.5]"),
    ("GPT.setup_optimizers", "def setup_optimizers(self, **k):\n    return []", "a model that learns falls"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "text", "words"), WRONG_RUNS)
def test_what_runs_and_cannot_be_right_is_said(tmp_path: Path, step: str, text: str, words: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(with_function(step, text).text)
    report = rehearse_file(file, no_trace)
    assert report.stopped == "wrong"
    assert words in report.says


def test_notimplemented_from_elsewhere_is_no_gap(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = "def forward(self, x):\n    return nn.Module()(x)"
    file.write_text(with_function("MLP.forward", text).text)
    report = rehearse_file(file, no_trace)
    assert report.stopped == "raised"
    assert report.place is not None
    assert report.place[0] == "MLP.forward"


def in_a_child(tmp_path: Path, text: str, limit: float = 60.0) -> Report:
    file = tmp_path / "mine.py"
    file.write_text(text)
    return Rehearsal.start(file, quiet=True, limit=limit).finish()


def test_memory_that_runs_out_is_said_in_words(tmp_path: Path) -> None:
    """An endless loop that builds a graph ends so, on a fast machine before its time is up."""
    source = with_function("norm", "def norm(x):\n    return torch.ones(2**40)")
    report = in_a_child(tmp_path, source.text)
    assert "out of memory (8 GB): a loop that does not end" in report.says
    assert report.place is not None
    assert report.place[0] == "norm"


def test_an_endless_loop_ends_with_its_line(tmp_path: Path) -> None:
    source = with_function("norm", "def norm(x):\n    while True:\n        x = x.detach() + 1")
    report = in_a_child(tmp_path, source.text, limit=5)
    assert "still running after 5 s" in report.says
    assert report.place is not None
    assert abs(report.place[1] - source.text.split("\n").index("    while True:")) <= 2


def test_a_process_that_ends_itself_is_reported(tmp_path: Path) -> None:
    report = in_a_child(tmp_path, with_function("norm", "def norm(x):\n    import os; os._exit(7)").text)
    assert (report.stopped, report.reached) == ("died", ["build"])
    assert "exit status 7" in report.says


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOOK.text.replace("class MLP(nn.Module):", "class MLP(nn.Module)"), "Python cannot read this line"),
        (
            BOOK.text.replace("import torch\n", "import torch\nimport nowhere_to_be_found\n"),
            "nowhere_to_be_found",
        ),
        ("import torch.nn as nn\n\n\nclass LlamaModel(nn.Module):\n    pass\n", "LlamaModel"),
    ],
)
def test_bad_files_get_an_answer_from_every_command(
    say: Say, session: Session, text: str, words: str
) -> None:
    session.shop.file.write_text(text)
    for command in (["run"], ["check", "norm"]):
        code, said = say(*command)
        assert code == 1
        assert words in " ".join(said.split())  # lines are broken where they end
    if "Python" in words:
        with pytest.raises(UserError, match=words):
            say("status")
    else:
        assert say("status")[0] == 0


def test_what_stops_every_step_is_explained_once(say: Say, session: Session) -> None:
    session.shop.file.write_text(BOOK.text.replace("class MLP(nn.Module):", "class MLP(nn.Module)"))
    said = say("check")[1]
    assert " ".join(said.split()).count("Python cannot read this line") == 1  # lines are broken
    assert said.count(", as above\n") == 17
    assert "18 not judged" in said


# check, hint, solution, diff, reset


def test_check_tells_programs_too(say: Say, session: Session) -> None:
    write(session, "norm", WRONG)
    code, said = say("check", "phase3", "--json")
    verdicts = [json.loads(line) for line in said.splitlines()]
    assert code == 1
    assert [v["step"] for v in verdicts] == [step.id for step in STEPS if step.phase == 3]
    assert verdicts[0]["mistake"] == "root-forgotten"


def test_check_of_another_file_remembers_nothing(say: Say, session: Session, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(BOOK.text)
    code, said = say("check", "norm", f"--file={other}")
    assert (code, said) == (0, "passed  norm\n")
    assert not session.shop.ledger.exists()
    assert not session.shop.log.exists()


def test_hints_open_one_after_the_other(say: Say) -> None:
    hints = step_named("norm").hints
    with pytest.raises(UserError, match="--tier=2 of norm opens after tier 1"):
        say("hint", "norm", "--tier=2")
    for number, hint in enumerate([*hints, hints[-1]], 1):
        _, said = say("hint", "norm")
        assert f"hint {min(number, 3)} of 3" in said
        assert hint.split()[0] in said
    assert "lit/30-the-forward-pass.md:" in said
    assert "hint 1 of 3" in say("hint", "norm", "--tier=1")[1]
    with pytest.raises(UserError, match="opens after"):
        say("hint", "MLP.forward", "--tier=2")


def test_the_solution_is_shown_after_passing(say: Say, session: Session) -> None:
    answer = "return F.rms_norm(x, (x.size(-1),)).to(x.dtype)"
    for text in (None, WRONG):
        if text:
            write(session, "norm", text)
        with pytest.raises(UserError, match="shown once norm passes"):
            say("solution", "norm")
    write(session, "norm", RIGHT)
    code, said = say("solution", "norm")
    assert code == 0
    assert answer in said
    write(session, "norm", WRONG)  # and it is locked again
    with pytest.raises(UserError, match="shown once norm passes"):
        say("solution", "norm")


def test_diff_compares_with_the_skeleton_and_then_with_the_book(say: Say, session: Session) -> None:
    assert "is the skeleton" in say("diff")[1]
    assert "norm is as in the skeleton" in say("diff", "norm")[1]
    write(session, "norm", WRONG)
    _, said = say("diff")
    assert "--- skeleton/normans_gpt.py, norm" in said
    assert "rms_norm" not in said
    write(session, "norm", RIGHT)
    _, said = say("diff", "norm")
    assert "--- nanochat/normans_gpt.py, norm" in said
    session.shop.file.write_text(write_from_the_book(session.shop.file.read_text(), "norm"))
    assert "as in the book, letter by letter" in say("diff", "norm")[1]


def test_reset_exchanges_one_function_and_keeps_the_rest(say: Say, session: Session) -> None:
    text = BOOK.text.replace("SOFTCAP = 15.0", "SOFTCAP = 15.0  # my own comment").replace(
        "\n\n\n", "\n\n\n\n"
    )
    session.shop.file.write_text(text)
    _, said = say("reset", "MLP")
    now = session.shop.file.read_text()
    for name in ("MLP.__init__", "MLP.forward"):
        (first, last), skeleton = Source("x", now).segment(name), Source("s", SKELETON.read_text())
        assert now.split("\n")[first - 1 : last] == learn.lines_of(skeleton, step_named(name))
        assert name in said
    assert "# my own comment" in now
    (kept,) = (session.shop.folder / "kept").iterdir()
    assert kept.read_text() == text
    say("reset", "--all")
    assert session.shop.file.read_text() == SKELETON.read_text()
    assert sorted(p.read_text() for p in kept.parent.iterdir()) == sorted([text, now])


def test_reset_works_on_a_file_that_cannot_be_read_only_as_a_whole(say: Say, session: Session) -> None:
    session.shop.file.write_text("def norm(x:\n")
    with pytest.raises(UserError, match="reset --all"):
        say("reset", "norm")
    say("reset", "--all")
    session.shop.file.write_text("x = 1\n")
    with pytest.raises(UserError, match="has no norm to reset; reset --all"):
        say("reset", "norm")


def test_watch_checks_what_a_save_changed(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp = "def forward(self, x):\n    return self.c_proj(torch.relu(self.c_fc(x)))"
    saves: list[Callable[[], object]] = [
        lambda: write(session, "norm", RIGHT),
        lambda: None,
        lambda: write(session, "MLP.forward", mlp),
        lambda: session.shop.file.write_text(session.shop.file.read_text() + "\n# a remark\n"),
        lambda: session.shop.file.write_text("def norm(:\n"),
        lambda: session.shop.file.unlink(),
    ]
    said: list[str] = []

    def next_save(_: float) -> None:
        said.append(capsys.readouterr().out)
        if not saves:
            raise KeyboardInterrupt
        saves.pop(0)()

    monkeypatch.setattr(time, "sleep", next_save)
    with pytest.raises(KeyboardInterrupt):
        learn.watch(session, learn.Watch(interval=0))
    start, norm, nothing, mlp_said, remark, broken, gone = said
    assert "passed  GPTConfig" in start
    assert "passed  norm" in norm
    assert "GPTConfig" not in norm
    assert nothing == ""
    assert "relu-not-squared" in mlp_said
    assert "norm" not in mlp_said.replace("normans", "").replace("not squared", "")
    assert "passed  " not in remark
    assert "Python cannot read this line" in " ".join(broken.split())
    assert gone == ""


# --gpt


def test_gpt_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_WORKSHOP", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_gpt("book").GPT.__module__ == "nanochat.normans_gpt"
    with pytest.raises(UserError, match=r"normans_gpt\.py does not exist; make learn"):
        choose_gpt("mine")
    (tmp_path / "normans_gpt.py").write_text(BOOK.text)
    assert load_gpt("mine").GPT.__module__ == "gpt_from_a_file"
    assert load_gpt("./normans_gpt.py").GPTConfig().n_layer == 12
    assert set(BUILT_IN) == {"book", "reference"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "mine.py:1: Python cannot read this line"),
        ("class GPT: pass\n", "has no GPTConfig; its classes are GPT"),
        ("x = 1\0", "has null bytes"),
        ("class GPT: pass\nclass GPTConfig: pass\n1 / 0\n", "mine.py:3: .* ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        load_gpt(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("name", "words"), [("boook", "did you mean book"), ("theirs", "none of"), ("a/b.py", "does not exist")]
)
def test_an_unknown_model_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_gpt(name)


def test_a_subclass_of_the_book_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("from nanochat.normans_gpt import GPT as B\nfrom nanochat.normans_gpt import GPTConfig\n"
                    "class GPT(B):\n    pass\n")  # fmt: skip
    assert choose_gpt(str(path)).path == path
    assert issubclass(import_file(path).GPT, load_gpt("book").GPT)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield folder


@pytest.mark.usefixtures("tiny_base")
def test_training_explains_a_gap_and_records_whose_model_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SKELETON.read_text())
    with pytest.raises(UserError) as caught:
        train(tiny_config(gpt=str(path)))
    line = SKELETON.read_text().partition('"TODO: Implement GPT.__init__')[0].count("\n")
    told = FIRST_ERROR.strip().removeprefix("NotImplementedError: ")
    assert str(caught.value) == (
        f"{path}:{line}: GPT.__init__ is not written: {told}. `make learn` says what it is for, and where "
        "to read"
    )
    path.write_text(BOOK.text)
    result = train(tiny_config(gpt=str(path), num_iterations=2))
    metas = [json.loads(p.read_text())["meta"]["gpt"] for p in sorted(result.folder.glob("meta_*.json"))]
    assert metas[-1] == choose_gpt(str(path)).record()
    with pytest.raises(UserError, match=r"--gpt is book here and .*mine\.py there"):
        train(tiny_config(num_iterations=4, resume=result.tag))


def test_only_what_the_file_itself_raises_is_a_gap(tmp_path: Path) -> None:
    """PyTorch raises NotImplementedError too, and might do so in a line with the same number."""
    path = tmp_path / "mine.py"
    path.write_text("from nanochat.normans_gpt import GPT, GPTConfig\n")
    space: dict[str, Any] = {}
    exec(compile("\ndef call(late): late()\n", str(path), "exec"), space)
    for raising, kind in ((path, UserError), (tmp_path / "other.py", NotImplementedError)):
        exec(compile("def late():\n    raise NotImplementedError\n", str(raising), "exec"), space)
        with pytest.raises(kind), gaps_named(str(path)):
            space["call"](space["late"])


def test_the_walk_takes_the_learners_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(BOOK.text)
    mine, book = (walk(WalkConfig(text="four score", gpt=name)) for name in (str(path), "book"))
    assert mine == book
    path.write_text(SKELETON.read_text())
    with pytest.raises(NotImplementedError):
        walk(WalkConfig(gpt=str(path)))


def test_a_wrong_model_is_refused_before_anything_else() -> None:
    with pytest.raises(UserError, match="--gpt=boook"):
        train(
            TrainConfig(gpt="boook", data="no such corpus", device_batch_size=1, max_seq_len=2048, n_embd=64)
        )


# the chapter's transcripts, in a copy of the project


def transcripts(chapter: Path) -> Iterator[tuple[str, str]]:
    """The console sessions and the functions to write, in order: kind and text."""
    for kind, text in re.findall(r"^```(console|python)\n(.*?)^```$", chapter.read_text(), flags=re.M | re.S):
        if kind == "console" or text.startswith("# in workshop/normans_gpt.py\n"):
            yield kind, text


def fits(expected: str, seen: str) -> bool:
    """Whether a transcript is what was said; … stands for anything, alone on its line for any lines."""
    pattern = "".join(
        r"(.*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in expected.splitlines()
    )
    return re.fullmatch(pattern, seen) is not None


def test_transcripts_are_compared_line_by_line() -> None:
    assert fits("a\n…\nb …:\n", "a\nx\ny\nb 12:\n")
    assert fits("a\n…\nb\n", "a\nb\n")
    assert not fits("a\nb\n", "a\nx\nb\n")
    assert not fits("a\n", "a\nb\n")
    assert not fits("a …\n", "b 1\n")


def test_the_transcripts_of_the_chapter_are_true(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("lit", "nanochat", "scripts", "skeleton", "tools"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, clone)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    file = clone / "workshop" / "normans_gpt.py"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("NANOCHAT_WORKSHOP", "MAKEFLAGS", "MAKELEVEL")
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ran = 0
    for kind, text in transcripts(ROOT / "lit" / "80-learning-by-rewriting.md"):
        if kind == "python":
            name = re.findall(r"^def (\w+)", text, flags=re.M)[0]
            file.write_text(
                with_function(name, text.split("\n", 1)[1], Source(str(file), file.read_text())).text
            )
            continue
        for session in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, expected = session.partition("\n")
            done = subprocess.run(
                shlex.split(command),
                cwd=clone,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert fits(expected, done.stdout), f"$ {command}\n{done.stdout}"
            ran += 1
    assert ran == 10
