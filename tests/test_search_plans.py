"""The search for plans: what is varied, how long a trial trains, what is kept, what is not done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat import plans
from nanochat.common import UserError
from scripts import search_plans
from scripts.search_plans import SearchConfig, identities, variations
from tests.programs import run_main

ROOT = Path(__file__).parents[1]


def test_variations_are_read() -> None:
    config = SearchConfig(vary="n_embd=192 matrix_lr=0.03; ; pace=9e10 muon_dtype=float32")
    assert variations(config) == [
        {"n_embd": 192, "matrix_lr": 0.03},
        {},
        {"pace": 9e10, "muon_dtype": "float32"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n_embed=192", "a plan has no 'n_embed'; it has from_pace, depth, n_embd"),
        ("n_embd=wide", "'n_embd=wide' needs a number, as in n_embd=2"),
        ("n_embd=1.5", "needs a number"),
        ("muon_dtype=float16", "needs auto, bfloat16 or float32"),
        ("name=small", "a plan has no 'name'"),
    ],
)
def test_a_misspelt_variation_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        variations(SearchConfig(vary=text))


def test_each_seed_of_each_variation_is_a_trial() -> None:
    config = SearchConfig(vary="n_embd=192; pace=9e10", pace=8e10, seeds=2)
    found = [(one["plan"]["n_embd"], one["pace"], one["seed"]) for one in identities(config)]
    usual = plans.SMALL.n_embd
    assert found == [(192, 8e10, 42), (192, 8e10, 43), (usual, 9e10, 42), (usual, 9e10, 43)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Trials that are only noted, in this process."""
    ran: list[dict[str, object]] = []

    def note(identities: list[dict[str, object]], jobs: int) -> Iterator[dict[str, object]]:
        for identity in identities:
            ran.append(identity)
            bpb = 2.0 - len(ran) / 10
            yield {"identity": identity, "steps": 10, "tokens": 1_000_000, "parameters": 1, "bpb": bpb}

    monkeypatch.setattr(search_plans, "run_trials", note)
    return ran


def test_what_is_there_is_not_tried_again(
    fake: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plans.json"
    assert run_main(search_plans.main, "--vary=matrix_lr=0.01", f"--out={out}") == 0
    assert run_main(search_plans.main, "--vary=matrix_lr=0.01; n_embd=64", f"--out={out}") == 0
    assert len(fake) == 2
    assert len(json.loads(out.read_text())["trials"]) == 2
    capsys.readouterr()
    assert run_main(search_plans.main, f"--show={out}") == 0
    rows = capsys.readouterr().out.splitlines()
    assert "n_embd=64" in rows[2]  # the better one first
    assert "matrix_lr=0.01" in rows[3]
    assert len(fake) == 2


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"format": 1}'])
def test_what_is_no_record_is_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert run_main(search_plans.main, f"--show={path}") == 2
    assert "is no record of this program" in capsys.readouterr().err


def test_the_number_of_steps_is_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds times pace over the operations of a step, whatever the clock says."""
    from nanochat import run
    from scripts import quickstart

    class Enough(Exception):
        pass

    def train(config: object, _: object) -> None:
        seen.append(config)
        raise Enough

    seen: list[object] = []
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(quickstart, "prepare_corpus", lambda name: None)
    monkeypatch.setattr(quickstart, "prepare_tokenizer", lambda name, size: None)
    monkeypatch.setattr("nanochat.train_config.open_tokenizer", lambda config: None)
    config = SearchConfig(vary="total_batch_size=4096", seconds=100, pace=1e11)
    with pytest.raises(Enough):
        search_plans.run_trial(identities(config)[0])
    plan = replace(plans.SMALL, total_batch_size=4096)
    assert seen[0].num_iterations == round(1e13 / (plan.flops_per_token() * 4096))
    assert seen[0].eval_every == 0
    assert seen[0].seed == 42


def test_a_trial_of_before_there_was_a_choice_of_device_counts(
    fake: list[dict[str, object]], tmp_path: Path
) -> None:
    out = tmp_path / "plans.json"
    assert run_main(search_plans.main, f"--out={out}") == 0
    record = json.loads(out.read_text())
    del record["trials"][0]["identity"]["device_type"]
    out.write_text(json.dumps(record))
    assert run_main(search_plans.main, f"--out={out}") == 0
    assert len(fake) == 1
    assert run_main(search_plans.main, "--device_type=cuda", f"--out={out}") == 0
    assert len(fake) == 2


def test_no_job_is_no_search() -> None:
    with pytest.raises(UserError, match="--jobs=0: must be at least 1"):
        SearchConfig(jobs=0)


def test_what_the_chapter_says_of_the_search() -> None:
    """The numbers of its prose, from the records."""

    def found(name: str, pace: float, **wanted: object) -> dict[str, float]:
        usual = {"depth": 2, "n_head": 2, "max_seq_len": 256, "total_batch_size": 4096, "warmdown_ratio": 0.4}
        rates = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004, "shuffle_window": 10_000}
        wanted = {**usual, **rates, "warmup_ratio": 0.0, **wanted}
        record = json.loads((ROOT / "results" / f"plans-{name}.json").read_text())
        for trial in record["trials"]:
            one = trial["identity"]
            same = (one["seconds"], one["pace"]) == (225.0, pace)
            if same and all(one["plan"][key] == value for key, value in wanted.items()):
                return {"steps": trial["steps"], "bpb": trial["bpb"]}
        raise AssertionError(f"no such trial: {name}, {pace}, {wanted}")

    text = " ".join((ROOT / "lit" / "67-two-commands.md").read_text(encoding="utf-8").split())
    narrow = found("small", 95e9, n_embd=160, vocab_size=4096)
    usual = found("small", 95e9, n_embd=192, vocab_size=4096)
    larger = found("small", 95e9, n_embd=160, vocab_size=8192)
    assert f"width 160 take {narrow['steps']} steps where two of width 192 take {usual['steps']}" in text
    assert larger["bpb"] < narrow["bpb"] < usual["bpb"]
    assert "the end is 0.006 lower still" in text
    assert round(narrow["bpb"] - larger["bpb"], 3) == 0.006
    assert larger["steps"] < narrow["steps"]
    paces = {96: 66e9, 128: 77e9, 144: 82e9, 160: 86e9}
    ends = [
        found("small", pace, n_embd=width, vocab_size=8192, n_head=1 if width < 128 else 2)["bpb"]
        for width, pace in paces.items()
    ]
    assert "are within 0.008 of each other" in text
    assert 0.006 < max(ends) - min(ends) < 0.008
    wide = found("small", 95e9, n_embd=256, vocab_size=4096)
    assert "a width of 256 ends 0.04 above one of 192, at 560 both end at 1.19" in text
    assert wide["bpb"] - usual["bpb"] == pytest.approx(0.04, abs=0.005)
    for width, warmdown in ((192, 0.4), (256, 0.6)):
        end = found("wide", 560e9, n_embd=width, vocab_size=8192, warmdown_ratio=warmdown)["bpb"]
        assert end == pytest.approx(1.19, abs=0.005)
