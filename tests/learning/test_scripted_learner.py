"""A learner who starts at the skeleton and writes what the errors ask for, one function at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanochat.learning.progress import MILESTONES, Workshop
from nanochat.learning.report import STAGES, STEPS_TO_TAKE
from nanochat.learning.steps import STEPS, section_of, step_named
from nanochat.models import ROOT
from scripts.base_train import train
from scripts.learn import Session, execute
from tests.learning.rewriting import QuickSession, write_from_the_book
from tests.tiny_run import make_base, records, tiny_config

# The order in which training needs them: building goes from the outside in, and so does the forward pass.
ORDER = (
    "GPT.__init__",
    "Block.__init__",
    "CausalSelfAttention.__init__",
    "MLP.__init__",
    "GPT._precompute_rotary_embeddings",
    "GPT.init_weights",
    "GPT._init_weights",
    "GPT.get_device",
    "GPT.setup_optimizers",
    "GPT.estimate_flops",
    "GPT.forward",
    "norm",
    "Block.forward",
    "CausalSelfAttention.forward",
    "apply_rotary_emb",
    "MLP.forward",
    "GPT.generate",
)


def status(session: Session, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], list[str]]:
    """What each step is, and the milestones that are reached."""
    assert execute(["status", "--json"], session) == 0
    told = json.loads(capsys.readouterr().out)
    return (
        {name: verdict["status"] for name, verdict in told["steps"].items()},
        [one["name"] for one in told["milestones"] if one["reached"]],
    )


def test_a_learner_comes_from_the_skeleton_to_the_books_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_WORKSHOP", str(tmp_path / "workshop"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    session = QuickSession(Workshop(tmp_path / "workshop"))
    file = session.shop.file
    written = ["GPTConfig"]
    for wanted in ORDER:
        assert execute(["run"], session) == 1
        said = capsys.readouterr().out
        step, section = step_named(wanted), section_of(step_named(wanted), ROOT / "lit")
        assert section is not None
        assert f"NotImplementedError: TODO: Implement {wanted} - " in said
        assert f"  missing    {wanted}, step {STEPS.index(step) + 1} of 18, phase {step.phase}" in said
        assert f"  why now    {step.why}\n" in said
        assert f'  read       lit/{step.chapter}:{section.line}, "{section.heading}"' in said
        assert f"`{wanted}`" in section.heading
        place = said.split("  write      ")[1].splitlines()[0]
        line = file.read_text().split("\n")[int(place.rpartition(":")[2]) - 1]
        assert line.strip().startswith("raise NotImplementedError(")
        assert place.rpartition(":")[0] == str(file)
        if wanted != ORDER[0]:
            assert f"passed  {written[-1]}" in said
        assert "before you go on" not in said

        states, reached = status(session, capsys)
        assert {name for name, state in states.items() if state == "passed"} == set(written)
        assert {name for name, state in states.items() if state == "todo"} == set(ORDER) - set(written)
        expected = ["Setup Complete"]
        expected += ["Model Initializes"] if len(written) > ORDER.index("GPT.get_device") + 1 else []
        if wanted == "GPT.generate":
            expected = [*MILESTONES[:6]]
        assert reached == expected, wanted

        file.write_text(write_from_the_book(file.read_text(), wanted))
        written.append(wanted)

    assert execute(["run"], session) == 0
    said = capsys.readouterr().out
    assert f"trained    {STEPS_TO_TAKE} steps" in said
    assert "compared   the same losses as the book's model, to the bit" in said
    assert "make train GPT=mine" in said
    report = session.shop.rehearsal()
    assert report is not None
    assert report.losses == report.book_losses
    assert tuple(report.reached) == STAGES
    states, reached = status(session, capsys)
    assert set(states.values()) == {"passed"}
    assert reached == [name for name in MILESTONES if name != "Full Pipeline"]

    # and in the real program, to the bit
    make_base(tmp_path / "base")
    mine, book = train(tiny_config(gpt="mine")), train(tiny_config())
    assert records(mine.folder) == records(book.folder)
    capsys.readouterr()
    assert type(mine.model) is not type(book.model)
    assert status(session, capsys)[1] == list(MILESTONES)

    log = session.shop.log.read_text()
    assert [log.count(f"\n## {step.id}: ") for step in STEPS] == [1] * 18
    assert [log.count(f"**{q}**") for step in STEPS for q in step.questions] == [1] * 12
    session.close()
