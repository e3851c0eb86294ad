"""What is remembered between commands, and what it takes for it to be believed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from nanochat.learning import progress
from nanochat.learning.hybrid import Source
from nanochat.learning.progress import MILESTONES, SKELETON, STATIONS, Milestone, Workshop, keys_of
from nanochat.learning.report import STAGES, Report
from nanochat.learning.steps import STEPS, step_named
from nanochat.models import ROOT
from tests.learning.rewriting import BOOK, with_function

EMPTY: dict[str, object] = {"passed": {}, "hints": {}, "rehearsal": {}, "milestones": {}}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    made = Workshop(tmp_path / "workshop")
    made.create()
    return made


def passed(step_id: str, **more: str) -> dict[str, object]:
    return {"step": step_id, "status": "passed", "line": 1, **more}


def changed(before: Source, after: Source) -> set[str]:
    old, new = keys_of(before), keys_of(after)
    return {step.id for step in STEPS if old[step.id] != new[step.id]}


# keys


def test_a_change_concerns_the_function_and_its_companions() -> None:
    one = with_function("MLP.forward", "def forward(self, x):\n    return x")
    friends = {step.id for step in STEPS if "MLP.forward" in step.companions}
    assert changed(BOOK, one) == {"MLP.forward"} | friends
    assert changed(BOOK, with_function("norm", "def norm(x):\n    return x")) == {"norm"}


def test_comments_and_blank_lines_concern_nobody() -> None:
    text = BOOK.text.replace("\n\n\n", "\n\n# a remark\n\n").replace(
        "SOFTCAP = 15.0  #", "SOFTCAP = 15.0 # x"
    )
    assert changed(BOOK, Source("x", text)) == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SOFTCAP = 15.0", "SOFTCAP = 30.0"),
        ("import random\n", "import random\nimport math\n"),
        ("class MLP(nn.Module):\n", "class MLP(nn.Module):\n    extra = 1\n\n"),
        ("def norm(", "def helper():\n    return 1\n\n\ndef norm("),
    ],
)
def test_what_lies_between_the_functions_concerns_all(old: str, new: str) -> None:
    assert BOOK.text.count(old) == 1
    assert changed(BOOK, Source("x", BOOK.text.replace(old, new))) == {step.id for step in STEPS}


def test_another_judge_trusts_no_old_verdict(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.file.write_text(BOOK.text)
    shop.record([passed("norm")])
    assert shop.standing()["norm"] is not None
    monkeypatch.setattr(progress, "fingerprint_of_the_judge", lambda: "another")
    assert shop.standing()["norm"] is None


# verdicts


def test_verdicts_survive_a_restart_while_their_key_fits(shop: Workshop) -> None:
    shop.file.write_text(BOOK.text)
    shop.record(
        [passed("norm"), passed("MLP.forward"), {"step": "GPT.forward", "status": "failed", "line": 200}]
    )
    again = Workshop(shop.folder)
    standing = again.standing()
    assert {name for name, verdict in standing.items() if verdict} == {"norm", "MLP.forward", "GPT.forward"}
    shop.file.write_text("# moved down by a line\n" + BOOK.text)
    standing = again.standing()
    assert standing["norm"] == passed("norm")
    assert standing["GPT.forward"] is None  # it names lines
    shop.file.write_text(with_function("norm", "def norm(x):\n    return x").text)
    standing = again.standing()
    assert standing["norm"] is None
    assert standing["MLP.forward"] is not None


def test_nothing_can_be_ticked_by_hand(shop: Workshop) -> None:
    verdict = shop.standing()["norm"]
    assert verdict is not None
    assert verdict["status"] == "todo"
    shop.record([passed("norm")])  # whatever the memory says: the function is not written
    verdict = shop.standing()["norm"]
    assert verdict is not None
    assert verdict["status"] == "todo"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 1}', '{"format": 99, "steps": {}}', "\0\0",
     json.dumps({"format": 1, "steps": {"norm": {}}, **EMPTY}),
     json.dumps({"format": 1, "steps": [], **EMPTY})],
)  # fmt: skip
def test_a_damaged_memory_is_set_aside_and_said(shop: Workshop, text: str) -> None:
    for number in (1, 2):
        shop.ledger.write_text(text)
        standing = shop.standing()
        assert standing["norm"] is not None
        aside = shop.folder / f"progress.json.damaged-{number}"
        assert aside.read_text() == text
        assert not shop.ledger.exists()
        (note,) = shop.notes
        assert aside.name in note
        assert "computed again" in note
        shop.notes.clear()
    shop.record([passed("GPTConfig")])
    assert shop.standing()["GPTConfig"] is not None


def test_the_memory_is_replaced_as_a_whole(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.record([passed("GPTConfig")])
    before = shop.ledger.read_text()

    def break_down(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanochat.common.os.replace", break_down)
    with pytest.raises(KeyboardInterrupt):
        shop.remember(lambda ledger: ledger["hints"].update({"norm": 3}))
    assert shop.ledger.read_text() == before
    assert [p.name for p in shop.folder.iterdir() if p.name.endswith(".tmp")] == []


def test_two_commands_do_not_forget_each_others_work(shop: Workshop) -> None:
    shop.file.write_text(BOOK.text)
    other = Workshop(shop.folder)
    shop.record([passed("norm")])
    other.remember(lambda ledger: ledger["hints"].update({"norm": 2}))
    shop.record([passed("MLP.forward")])
    ledger = Workshop(shop.folder).recall()
    assert set(ledger["steps"]) == {"norm", "MLP.forward"}
    assert ledger["hints"] == {"norm": 2}


# the log


def test_the_log_gets_one_entry_with_the_questions(shop: Workshop) -> None:
    shop.file.write_text(BOOK.text)
    assert shop.record([passed("MLP.forward", remark="Another way"), passed("norm")]) == [
        step_named("MLP.forward"),
        step_named("norm"),
    ]
    text = shop.log.read_text()
    assert text.startswith("# Learning log\n")
    assert f"\n## MLP.forward: {step_named('MLP.forward').title}\n\nPassed on 2" in text
    assert "Another way" in text
    assert "**Why use relu^2 instead of regular relu or GELU?**" in text
    assert shop.record([passed("MLP.forward"), passed("norm")]) == []
    assert shop.log.read_text() == text


def test_the_learners_words_are_never_touched(shop: Workshop) -> None:
    shop.file.write_text(BOOK.text)
    shop.record([passed("norm")])
    mine = (
        shop.log.read_text().replace("# Learning log", "# Mein Heft") + "\nno line break at the end: é \udcff"
    )
    raw = mine.encode("utf-8", errors="surrogateescape")
    shop.log.write_bytes(raw)
    shop.record([passed("norm"), passed("MLP.forward")])
    now = shop.log.read_bytes()
    assert now.startswith(raw)
    assert b"\n## MLP.forward: " in now[len(raw) :]
    assert b"## norm" not in now[len(raw) :]


def test_the_log_restores_the_dates_that_a_lost_memory_knew(shop: Workshop) -> None:
    shop.file.write_text(BOOK.text)
    shop.record([passed("norm")])
    shop.log.write_text(shop.log.read_text().replace("Passed on 2", "Passed on 1"))
    shop.ledger.unlink()
    assert shop.record([passed("norm")]) == []
    assert shop.recall()["passed"]["norm"].startswith("1")
    assert shop.log.read_text().count("## norm: ") == 1


def test_a_failure_is_not_logged(shop: Workshop) -> None:
    assert shop.record([{"step": "norm", "status": "failed", "line": 1}]) == []
    assert not shop.log.exists()


# copies


def test_the_skeleton_is_never_put_over_anything(shop: Workshop) -> None:
    assert shop.file.read_bytes() == SKELETON.read_bytes()
    shop.file.write_text("mine")
    assert shop.create() is False
    assert shop.file.read_text() == "mine"


def test_copies_never_replace_copies(shop: Workshop) -> None:
    names = set()
    for text in "abc":
        shop.file.write_text(text)
        names.add(shop.keep_a_copy())
    assert sorted(path.read_text() for path in names) == ["a", "b", "c"]


# milestones


def reached(shop: Workshop) -> list[str]:
    return [one.name for one in shop.milestones() if one.reached]


def one(shop: Workshop, name: str) -> Milestone:
    return next(milestone for milestone in shop.milestones() if milestone.name == name)


def record_run(
    shop: Workshop, tag: str, sha256: str, name: str = "mine", val_bpb: float | None = 1.5
) -> None:
    path = shop.folder.parent / "base" / "base_checkpoints" / tag / "meta_000001.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"meta": {"gpt": {"name": name, "sha256": sha256}, "progress": {"val_bpb": val_bpb}}})
    )


def test_milestones_follow_from_a_rehearsal_of_this_very_file(shop: Workshop) -> None:
    assert reached(shop) == []
    shop.record([passed("GPTConfig")])
    assert reached(shop) == ["Setup Complete"]
    report = Report(reached=["build", "forward"], stopped="gap", frames=[("GPT.setup_optimizers", 7)])
    shop.record_rehearsal(report, shop.rehearsal_key())
    assert reached(shop) == ["Setup Complete", "Model Initializes", "Forward Pass Works"]
    assert one(shop, "Loss Decreases").reason == "GPT.setup_optimizers is not written"
    shop.file.write_text(shop.file.read_text() + "\n# changed\n")
    assert reached(shop) == ["Setup Complete"]
    lost = one(shop, "Model Initializes")
    assert lost.since is not None
    assert "no rehearsal of this file" in lost.reason


def test_matching_the_reference_needs_every_step(shop: Workshop) -> None:
    shop.file.write_text(BOOK.text)
    shop.record_rehearsal(Report(reached=list(STAGES), finished=True), shop.rehearsal_key())
    assert "Matches Reference" not in reached(shop)
    assert one(shop, "Matches Reference").reason == "0 of 18 steps pass"
    shop.record([passed(step.id) for step in STEPS])
    assert reached(shop) == [name for name in MILESTONES if name != "Full Pipeline"]
    odd = Report(reached=[s for s in STAGES if s != "match"], finished=True)
    shop.record_rehearsal(odd, shop.rehearsal_key())
    assert "do not agree" in one(shop, "Matches Reference").reason


def test_the_full_pipeline_needs_a_recorded_run_of_this_file(shop: Workshop) -> None:
    import hashlib

    now = hashlib.sha256(shop.file.read_bytes()).hexdigest()
    record_run(shop, "a", now, name="book")
    record_run(shop, "b", now, val_bpb=None)
    (shop.folder.parent / "base" / "base_checkpoints" / "b" / "meta_000002.json").write_text("damaged")
    assert one(shop, "Full Pipeline").reason == "make train GPT=mine"
    record_run(shop, "c", "0" * 64)
    assert one(shop, "Full Pipeline").reason.startswith("run c is of an earlier version")
    record_run(shop, "d", now)
    assert one(shop, "Full Pipeline").reached


def test_a_file_that_cannot_be_read_reaches_nothing_and_breaks_nothing(shop: Workshop) -> None:
    shop.file.write_text("def f(:\n")
    assert reached(shop) == []
    assert "Python cannot read this line" in one(shop, "Setup Complete").reason
    shop.file.unlink()
    assert reached(shop) == []


def test_every_milestone_has_a_source() -> None:
    assert set(MILESTONES) == {*STATIONS, "Setup Complete", "Full Pipeline"}
    assert set(STATIONS.values()) == set(STAGES)
    assert Report(**json.loads(json.dumps(asdict(Report(frames=[("a", 1)]))))).finished is False


def test_asking_for_the_status_imports_no_pytorch() -> None:
    code = "import sys, scripts.learn, nanochat.models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
