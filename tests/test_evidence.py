"""What trials vary and seeds draw, how arms are tuned and compared, what is kept, and when it goes stale."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nanochat import normans_gpt
from nanochat.common import UserError
from nanochat.evidence import plans, records, runs, texts, trials, verdicts
from nanochat.evidence.declared import Axis, Experiment, read_declaration
from nanochat.evidence.freshness import differences, reach
from nanochat.evidence.report import overview_table, table_of_tests
from nanochat.evidence.runs import Bench, Examination, Imagined, OutOfTime, Trial
from nanochat.evidence.settings import Setting, shrunk, varied
from nanochat.evidence.texts import made_up, read_text
from nanochat.evidence.trials import drawn, largest_score, losses_by_speech, rows_of
from nanochat.evidence.variations import VariedGPT, build, usual_start
from nanochat.normans_gpt import GPT
from nanochat.provenance import ROOT
from scripts import experiment as command
from tests.bounds import logits_error

CPU = torch.device("cpu")
TINY = shrunk(Setting())
IDS = torch.arange(12).reshape(1, 12) % 7
DECLARED = read_declaration()
RULES = replace(
    DECLARED.protocol,
    sizes=dict.fromkeys(DECLARED.protocol.sizes, asdict(TINY)),
    fresh_seeds=(0, 1, 2),
    tuning_seeds=(100, 101),
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny(*changes: str) -> Setting:
    """A small setting with changes."""
    return varied(TINY, changes)


def filled(setting: Setting) -> VariedGPT:
    """A model without zero matrices, so that every part shows in the logits."""
    model = build(setting, 0)
    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)
    return model


# Varying one thing, and only that


@pytest.mark.numerics
def test_without_a_change_it_is_the_books_model_bit_for_bit() -> None:
    torch.manual_seed(3)
    book = GPT(VariedGPT(TINY).config)
    torch.manual_seed(3)
    book.init_weights()
    model = build(TINY, 3)
    for (name, ours), (theirs, value) in zip(model.named_parameters(), book.named_parameters(), strict=True):
        assert name == theirs
        assert torch.equal(ours, value)
    for parameter, value in zip(model.parameters(), book.parameters(), strict=True):
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
        value.data.copy_(parameter)
    assert torch.equal(model(IDS), book(IDS))
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in model.setup_optimizers()]
    assert rates == [
        [group["lr"] for group in optimizer.param_groups] for optimizer in book.setup_optimizers()
    ]
    assert model.setup_optimizers()[0].param_groups[0]["betas"] == (0.8, 0.95)


def test_after_a_variation_the_book_is_the_book_again() -> None:
    before = normans_gpt.norm, normans_gpt.SOFTCAP
    filled(tiny("qk_norm=off", "softcap=none", "norm_after_embedding=off"))(IDS)
    assert (normans_gpt.norm, normans_gpt.SOFTCAP) == before


@pytest.mark.parametrize(
    "change",
    [
        "activation=relu",
        "activation=gelu",
        "activation=swiglu",
        "qk_norm=off",
        "softcap=30",
        "bias=on",
        "n_kv_head=1",
        "optimizer=adamw",
        "optimizer=muon",
        "norm_after_embedding=off",
        "table_dtype=float32",
    ],
)
def test_what_is_common_starts_the_same(change: str) -> None:
    usual = dict(build(usual_start(TINY), 5).named_parameters())
    for name, parameter in build(tiny(change), 5).named_parameters():
        if name in usual and usual[name].shape == parameter.shape:
            assert torch.equal(parameter, usual[name]), name


def test_swiglu_has_exactly_as_many_weights() -> None:
    setting = Setting(activation="swiglu")
    count = sum(p.numel() for p in VariedGPT(setting).parameters())
    assert count == sum(p.numel() for p in VariedGPT(Setting()).parameters())
    assert count == sum(p.numel() for p in VariedGPT(Setting(activation="gelu")).parameters())


def test_a_tied_head_shares_its_memory() -> None:
    model = build(tiny("tied=on", "tied_std=0.5"), 0)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.std().item() == pytest.approx(0.5, rel=0.1)
    adamw = model.setup_optimizers()[0]
    assert [len(group["params"]) for group in adamw.param_groups] == [1]
    usual = sum(p.numel() for p in build(TINY, 0).parameters())
    assert sum(p.numel() for p in model.parameters()) == usual - TINY.vocab_size * TINY.n_embd


@pytest.mark.numerics
def test_without_qk_norm_the_size_of_queries_counts() -> None:
    for setting, counts in ((TINY, False), (tiny("qk_norm=off"), True)):
        model = filled(setting)
        before, score, bound = model(IDS), largest_score(model, IDS), logits_error(model, IDS)
        for block in model.blocks():
            block.attn.c_q.weight.data *= 3
        assert bool((model(IDS) - before).abs().max() > 10 * bound) is counts
        assert counts or (model(IDS) - before).abs().max() <= bound
        grown = largest_score(model, IDS) / score
        assert grown > 2 if counts else grown == pytest.approx(1, abs=1e-3)


@pytest.mark.numerics
def test_without_the_norm_the_size_of_rows_counts() -> None:
    for setting, counts in ((TINY, False), (tiny("norm_after_embedding=off"), True)):
        model = filled(setting)
        before, bound = model(IDS), logits_error(model, IDS)
        model.transformer.wte.weight.data *= 5
        assert bool((model(IDS) - before).abs().max() > 10 * bound) is counts
        assert counts or (model(IDS) - before).abs().max() <= bound


@pytest.mark.numerics
def test_without_the_cap_logits_are_the_raw_ones() -> None:
    capped, raw = filled(TINY), filled(tiny("softcap=none"))
    for model in (capped, raw):
        model.lm_head.weight.data *= 20
    assert capped(IDS).abs().max() <= 15
    bound = logits_error(raw, IDS)
    assert (capped(IDS) - 15 * torch.tanh(raw(IDS) / 15)).abs().max() <= bound < 0.01
    targets = IDS.roll(-1)
    nll = torch.nn.functional.cross_entropy(raw(IDS)[0], targets[0])
    assert raw(IDS, targets).item() == pytest.approx(nll.item(), rel=1e-5)


def test_biases_are_nine_widths_a_layer_and_start_at_zero() -> None:
    model = build(tiny("bias=on"), 0)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert sum(p.numel() for p in biases) == TINY.n_layer * 9 * TINY.n_embd
    assert not any(p.any() for p in biases)
    adamw, muon = model.setup_optimizers()
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])
    assert sum(len(group["params"]) for o in (adamw, muon) for group in o.param_groups) == len(
        list(model.parameters())
    )


@pytest.mark.parametrize(
    ("kind", "classes"), [("adamw", ["AdamW"]), ("muon", ["Muon"]), ("split", ["AdamW", "Muon"])]
)
def test_every_weight_has_one_optimizer(kind: str, classes: list[str]) -> None:
    model = build(tiny(f"optimizer={kind}"), 0)
    optimizers = model.setup_optimizers()
    assert [type(optimizer).__name__ for optimizer in optimizers] == classes
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))


@pytest.mark.numerics
def test_tables_of_each_format() -> None:
    book, wide, early = (
        build(tiny(f"table_dtype={kind}"), 0) for kind in ("bfloat16", "float32", "bfloat16 angles")
    )
    assert (book.cos.dtype, wide.cos.dtype, early.cos.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
    assert torch.equal(wide.cos.bfloat16(), book.cos)
    assert (early.cos.float() - wide.cos).abs().max() > 4 * (book.cos.float() - wide.cos).abs().max()


# What a seed draws


def batches(setting: Setting, seed: int) -> list[torch.Tensor]:
    """All inputs that a trial reads."""
    return [inputs for inputs, _ in drawn(made_up(setting.vocab_size), setting, seed, CPU)]


def test_each_seed_draws_a_text_of_its_own_and_always_the_same() -> None:
    setting = tiny("steps=5")
    one, same, other = (torch.stack(batches(setting, seed)) for seed in (0, 0, 1))
    assert len(one) == 5
    assert torch.equal(one, same)
    assert sorted(one.flatten().tolist()) != sorted(other.flatten().tolist())


def test_arms_of_one_seed_read_the_same_and_a_longer_run_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "WINDOW", 4)
    short, long = batches(tiny("steps=4"), 3), batches(tiny("steps=9", "activation=gelu"), 3)
    assert torch.equal(torch.stack(short), torch.stack(long[:4]))


@pytest.mark.parametrize("length", [2, 16, 17, 18, 50])
def test_every_token_but_the_first_is_a_target_once(length: int) -> None:
    speech = np.arange(1, length + 1, dtype=np.int32)
    inputs, targets = rows_of(speech, 16, CPU)
    assert targets[targets >= 0].tolist() == speech[1:].tolist()
    assert inputs[targets >= 0].tolist() == speech[:-1].tolist()


@pytest.mark.numerics
def test_a_loss_is_that_of_the_whole_speech() -> None:
    model, text = filled(tiny("embedding_dtype=float32")), made_up(TINY.vocab_size)
    found = losses_by_speech(model, text, TINY, CPU)
    assert len(found) == len(text.held_back)
    for speech, loss in zip(text.held_back, found, strict=True):
        nats = 0.0
        for start in range(0, len(speech) - 1, TINY.sequence_len):
            piece = torch.from_numpy(speech[start : start + TINY.sequence_len + 1]).long()[None]
            each = model(piece[:, :-1], piece[:, 1:], loss_reduction="none")
            nats += float(each.detach().sum())
        assert loss == pytest.approx(nats / np.log(2) / (len(speech) - 1), rel=1e-5)


@pytest.mark.numerics
def test_seeds_decide_weights_and_text() -> None:
    text = made_up(TINY.vocab_size)
    one, same, other = (trials.train(TINY, seed, text, CPU) for seed in (0, 0, 1))
    assert one["losses"] == same["losses"]
    assert one["losses"] != other["losses"]
    assert len(one["losses"]) == len(text.held_back)


def test_a_run_that_ends_in_no_number_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "evaluate_bpb", lambda *_: float("nan"))
    assert trials.train(TINY, 0, made_up(TINY.vocab_size), CPU)["losses"] is None


def test_decoding_is_timed_for_two_models_in_turns() -> None:
    times = trials.time_decoding((TINY, tiny("n_kv_head=1")), 0, CPU)["decoding, ms"]
    assert len(times) == 2
    assert min(times) > 0


# Wrong names and values


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["activaton=gelu"], "did you mean activation?"),
        (["activation=gelo"], "did you mean gelu?"),
        (["qk_norm=perhaps"], "wants on or off"),
        (["steps=many"], "wants a whole number"),
        (["activation"], "is no change"),
        (["n_head=5"], "fit no model"),
        (["steps=0"], "at least 1"),
        (["embedding_dtype=bfloat16"], "add dtype=bfloat16"),
    ],
)
def test_a_wrong_change_is_refused_in_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        varied(Setting(), words)
    assert "\n" not in str(caught.value)


def test_what_people_type_is_understood() -> None:
    setting = varied(Setting(), ["softcap=none", "qk-norm=off", "tied=on", "matrix_lr=1e-3"])
    assert (setting.softcap, setting.qk_norm, setting.tied, setting.matrix_lr) == (0.0, False, True, 1e-3)


def test_a_wrong_experiment_is_suggested_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean tied-head"):
        DECLARED.experiment("tied-haed")


@pytest.mark.parametrize(
    ("one", "arm"),
    [(one.name, arm.name) for one in DECLARED.experiments for arm in one.arms],
    ids=lambda name: re.sub(r"\W+", "-", name),
)
def test_every_declared_arm_trains(one: str, arm: str) -> None:
    """So that a declaration does not turn out to be impossible after hours."""
    said = DECLARED.experiment(one)
    for changes in ({}, said.arm(arm).changes):
        setting = shrunk(DECLARED.protocol.setting("small", "cpu", said.base | changes))
        outcome = trials.train(replace(setting, steps=1), 0, made_up(setting.vocab_size), CPU)
        assert outcome["losses"] is not None


# Tuning and comparing


class Made:
    """A bench whose losses are made up by a function of setting and seed; two speeches."""

    def __init__(self, loss: Callable[[Setting, int], float | None]) -> None:
        self.loss, self.asked = loss, list[Trial]()

    def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Made-up outcomes; GELU takes twice the time."""
        self.asked += trials
        found = []
        for trial in trials:
            loss = self.loss(trial.settings[0], trial.seed)
            seconds = 2.0 if trial.settings[0].activation == "gelu" else 1.0
            losses = None if loss is None else [loss, loss + 0.5]
            found.append({"losses": losses, "seconds": seconds, "decoding, ms": [4.0, 3.0]})
        return found


def bowl(best: float, worse: float = 0.0) -> Callable[[Setting, int], float]:
    """A loss that is lowest at one matrix rate; GELU has another one, and more of it."""

    def loss(setting: Setting, seed: int) -> float:
        gelu = setting.activation == "gelu"
        off = np.log(setting.matrix_lr / (best * (4 if gelu else 1)))
        return float(off**2 + np.log(setting.embedding_lr / 0.2) ** 2 + worse * gelu + 0.001 * seed)

    return loss


AXIS = Axis(("matrix_lr",), (0.005, 0.01, 0.02, 0.04, 0.08))
FIRST = DECLARED.experiments[0]


@pytest.mark.parametrize(
    ("best", "found", "tried", "edge"),
    [
        (0.02, 0.02, 5, False),
        (0.005, 0.005, 6, False),
        (0.08, 0.08, 6, False),
        (0.16, 0.16, 7, False),
        (9.0, 0.32, 7, True),
    ],
)
def test_an_arm_is_tuned_and_a_grid_whose_best_is_an_edge_is_extended(
    best: float, found: float, tried: int, edge: bool
) -> None:
    bench = Made(bowl(best))
    tuned = Examination(FIRST, RULES, "cpu", bench).tune(TINY, [AXIS])
    assert tuned.setting.matrix_lr == pytest.approx(found)
    assert len(tuned.tried[0]["values"]) == tried
    assert tuned.edge is edge
    assert {trial.seed for trial in bench.asked} == set(RULES.tuning_seeds)


def test_axes_are_tuned_one_after_the_other_each_at_the_best_of_the_last() -> None:
    def loss(setting: Setting, seed: int) -> float:
        return float(abs(np.log(setting.matrix_lr / 0.04)) + abs(np.log(setting.embedding_lr / 0.1)))

    bench = Made(loss)
    tuned = Examination(FIRST, RULES, "cpu", bench).tune(TINY, RULES.axes)
    assert (tuned.setting.matrix_lr, tuned.setting.embedding_lr) == (0.04, 0.1)
    moved = [t.settings[0] for t in bench.asked if t.settings[0].embedding_lr != TINY.embedding_lr]
    assert {setting.matrix_lr for setting in moved} == {0.04}


def test_an_arm_that_diverges_everywhere_is_at_an_edge() -> None:
    tuned = Examination(FIRST, RULES, "cpu", Made(lambda setting, seed: None)).tune(TINY, [AXIS])
    assert tuned.edge
    assert tuned.tried[0]["losses"][0] is None


def examined(name: str, bench: Made) -> dict[str, Any]:
    """The record of an experiment on a made-up bench."""
    return Examination(DECLARED.experiment(name), RULES, "cpu", bench).record()


def test_both_sides_are_compared_at_their_own_best_rates_on_fresh_seeds() -> None:
    bench = Made(bowl(0.01, worse=0.3))
    small = examined("activation", bench)["sizes"]["small"]
    assert small["arms"]["the book's"]["rates"]["matrix_lr"] == pytest.approx(0.01)
    assert small["arms"]["GELU"]["rates"]["matrix_lr"] == pytest.approx(0.04)
    gelu = next(each for each in small["comparisons"] if each["about"] == "loss with GELU")
    assert np.array(gelu["values"]) == pytest.approx(0.3)
    assert np.shape(gelu["values"]) == (3, 2)
    assert {trial.seed for trial in bench.asked} == {*RULES.tuning_seeds, *RULES.fresh_seeds}


def test_the_control_is_the_books_model_with_more_steps() -> None:
    rules = replace(RULES, sizes=dict.fromkeys(RULES.sizes, asdict(replace(TINY, steps=40))))
    record = Examination(DECLARED.experiment("softcap"), rules, "cpu", Made(bowl(0.02))).record()
    assert record["sizes"]["small"]["control"]["steps"] == [44, 40]


def test_at_equal_time_the_slower_arm_has_fewer_steps() -> None:
    rules = replace(RULES, sizes=dict.fromkeys(RULES.sizes, asdict(replace(TINY, steps=40))))
    record = Examination(DECLARED.experiment("activation"), rules, "cpu", Made(bowl(0.02))).record()
    steps = {each["about"]: each["steps"] for each in record["sizes"]["small"]["comparisons"]}
    assert steps["loss with GELU at equal time"] == [20, 40]
    assert steps["loss with GELU"] == [40, 40]


def test_beyond_the_best_rate_both_sides_are_run_at_the_declared_multiple() -> None:
    bench = Made(bowl(0.02))
    examined("qk-norm", bench)
    fresh = {(t.settings[0].qk_norm, t.settings[0].matrix_lr) for t in bench.asked if t.seed < 100}
    assert fresh == {(True, 0.16), (False, 0.16), (True, 0.02), (False, 0.02)}


def test_a_time_is_a_factor_minus_one() -> None:
    small = examined("shared-heads", Made(bowl(0.02)))["sizes"]["small"]
    assert small["comparisons"][1]["values"] == [[-0.25]] * 3


@pytest.mark.parametrize(("middle", "edge"), [(4.0, False), (4000.0, True)])
def test_the_exponent_of_a_sweep_is_found(middle: float, edge: bool) -> None:
    def loss(setting: Setting, seed: int) -> float:
        return float(np.log(setting.embedding_lr / 0.2 / middle * (setting.n_embd / 181) ** 0.7) ** 2)

    one = replace(DECLARED.experiment("rates-and-widths"), base={"width_scaling": False})
    small = Examination(one, RULES, "cpu", Made(loss)).record()["sizes"]["small"]
    assert small["comparisons"] == [{"about": one.comparisons[0].about, "edge": edge}]
    assert edge or verdicts.exponents(small) == pytest.approx(-0.7, abs=1e-6)


def test_what_is_planned_is_what_is_run() -> None:
    least, most, real = Imagined(), Imagined(extended=True), Made(bowl(0.02))
    for bench in (least, most, real):
        Examination(DECLARED.experiment("softcap"), RULES, "cpu", bench).record()
    tuned, compared = 2 * (5 + 4) * len(RULES.tuning_seeds), 3 * len(RULES.fresh_seeds)
    shared = len(RULES.fresh_seeds)  # with three steps the control has no more of them
    assert len(least.asked) == len(set(real.asked)) == tuned + compared - shared
    assert len(least.asked) < len(most.asked)


# Verdicts of all records together


def concluded(name: str, bench: Made, rules: Any = RULES) -> dict[str, Any]:
    """What is said of an experiment's one comparison if only this experiment has been run."""
    record = Examination(DECLARED.experiment(name), rules, "cpu", bench).record()
    summary = verdicts.conclude(replace(DECLARED, protocol=rules), {name: record})
    (line,) = next(row for row in summary["experiments"] if row["name"] == name)["comparisons"]
    return dict(line)


@pytest.mark.parametrize(
    ("effect", "step", "said"),
    [
        (0.05, 0.05, "worse"),
        (-0.05, 0.05, "better"),
        (0.0, 0.05, "equivalent within the margin"),
        (0.0, 0.0, "could not have been seen"),
    ],
)
def test_the_four_words(effect: float, step: float, said: str) -> None:
    """From losses with a little luck, where only the cap and more steps make a difference."""

    def loss(setting: Setting, seed: int) -> float:
        luck = np.random.default_rng((seed, setting.steps, int(setting.softcap))).normal(0, 1e-5)
        return bowl(0.02)(setting, seed) + effect * (setting.softcap == 0) + luck - step * setting.steps

    sizes = dict.fromkeys(RULES.sizes, asdict(replace(TINY, steps=40)))
    line = concluded("softcap", Made(loss), replace(RULES, sizes=sizes, fresh_seeds=tuple(range(10))))
    assert (line["verdict"], line["control"]) == (said, step > 0)
    assert line["mean"] == pytest.approx(effect, abs=1e-3)


def test_a_best_rate_at_an_edge_determines_nothing_however_clear_the_loss() -> None:
    line = concluded("softcap", Made(bowl(50.0)))
    assert (line["verdict"], line["why"]) == ("not determined", "a best rate is an edge of its grid")


def test_a_run_that_diverged_determines_nothing() -> None:
    def loss(setting: Setting, seed: int) -> float | None:
        return None if setting.softcap == 0 and seed == 1 else bowl(0.02)(setting, seed)

    line = concluded("softcap", Made(loss))
    assert (line["verdict"], line["why"], line["mean"]) == ("not determined", "1 of its runs diverged", None)


def test_what_was_not_run_counts_with_p_of_one() -> None:
    def loss(setting: Setting, seed: int) -> float:
        return bowl(0.02)(setting, seed) + np.random.default_rng(seed + int(setting.softcap)).normal(0, 0.01)

    record = examined("softcap", Made(loss))
    summary = verdicts.conclude(replace(DECLARED, protocol=RULES), {"softcap": record})
    lines = [line for row in summary["experiments"] for line in row["comparisons"]]
    (mine,) = (line for line in lines if line["run"])
    assert len(lines) == summary["numbers"]["declared"] == 26
    assert all(line["p, difference, corrected"] == 1 for line in lines if not line["run"])
    assert 0 < mine["p, equivalence"] < 1
    assert mine["p, equivalence, corrected"] == pytest.approx(min(1.0, 26 * mine["p, equivalence"]))
    assert summary["verdicts"]["biases"] == "not determined until its declared runs are made"
    assert summary["verdicts"]["accumulation"] == "shown by tests"


def test_a_record_of_another_declaration_counts_as_not_run() -> None:
    record = examined("softcap", Made(bowl(0.02))) | {"declaration": "another"}
    summary = verdicts.conclude(replace(DECLARED, protocol=RULES), {"softcap": record})
    assert summary["numbers"]["run"] == 0


def test_a_second_run_is_held_to_what_the_first_predicts() -> None:
    was = {"mean": 0.01, "low": 0.0, "high": 0.02, "verdict": "worse"}
    assert verdicts.predicted(was, {"mean": 0.024})
    assert not verdicts.predicted(was, {"mean": 0.025})
    nothing = {"mean": None, "verdict": "not determined"}
    assert verdicts.predicted(nothing, nothing)


def test_the_page_is_made_of_the_records_that_are_here() -> None:
    said = json.loads((ROOT / command.SUMMARY).read_text(encoding="utf-8"))
    assert json.loads(command.in_lines(command.summarize(DECLARED))) == said
    table = overview_table(said)
    assert all(one.question in table for one in DECLARED.experiments)
    assert table.count("\n") == 1 + 26 + sum(bool(one.tests) for one in DECLARED.experiments)
    run = said["numbers"]["run"]
    assert table_of_tests(said).count("\n") == (1 + run if run else 0)


# Keeping what has been run


def tiny_trials(count: int) -> list[Trial]:
    """Trials of tiny settings."""
    return [Trial("train", (TINY,), seed, "cpu") for seed in range(count)]


def test_a_cut_off_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def work(trial: Trial) -> dict[str, Any]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(trial.seed)
        return {"losses": [float(trial.seed)]}

    monkeypatch.setattr(runs, "work", work)
    with pytest.raises(KeyboardInterrupt):
        Bench().run(tiny_trials(4))
    second: list[int] = []

    def later(trial: Trial) -> dict[str, Any]:
        second.append(trial.seed)
        return {"losses": [9.0]}

    monkeypatch.setattr(runs, "work", later)
    outcomes = Bench().run(tiny_trials(4))
    assert (ran, second) == ([0, 1], [2, 3])
    assert [outcome["losses"] for outcome in outcomes] == [[0.0], [1.0], [9.0], [9.0]]


def test_when_the_time_is_up_no_further_trial_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "work", lambda trial: {"losses": [1.0]})
    late = Bench(until=time.monotonic() - 1)
    with pytest.raises(OutOfTime):
        late.run(tiny_trials(1))
    Bench().run(tiny_trials(1))
    assert late.run(tiny_trials(1)) == [{"losses": [1.0]}]


def test_a_kept_trial_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    (trial,) = tiny_trials(1)
    trial.keep({"losses": [1.0]})
    assert trial.kept() == {"losses": [1.0]}
    assert replace(trial, seed=1).kept() is None
    for name, other in (("code_of", {"x": "y"}), ("text_of", "another"), ("surroundings", {"torch": "1.0"})):
        with monkeypatch.context() as patch:
            patch.setattr(runs, name, lambda *_, other=other: other)
            assert trial.kept() is None, name
    trial.path().write_text("{")
    assert trial.kept() is None


def test_a_trial_runs_in_a_process_of_its_own_as_it_does_here() -> None:
    wanted = tiny_trials(1)
    with Bench(workers=2) as bench:
        found = bench.run(wanted)
    again = trials.train(TINY, 0, read_text("random", TINY.vocab_size), CPU)
    assert found[0]["losses"] == pytest.approx(again["losses"], rel=1e-5)
    assert [trial.kept() for trial in wanted] == found


def test_a_record_begins_with_its_earliest_trial_also_of_a_run_that_was_cut_off() -> None:
    class Kept(Made):
        def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
            return [one | {"began": "2026-01-02T03:04:05+00:00"} for one in super().run(trials)]

    assert examined("softcap", Kept(bowl(0.02)))["started"] == "2026-01-02T03:04:05+00:00"
    assert examined("softcap", Made(bowl(0.02)))["started"] > "2026-01-03"


def test_an_outcome_is_stamped_with_its_beginning_and_its_time() -> None:
    outcome = runs.work(tiny_trials(1)[0])
    assert outcome["took"] >= outcome["seconds"] > 0
    assert outcome["began"].endswith("+00:00")


def test_a_process_ends_when_the_one_that_began_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, gone = threading.Event(), threading.Event()
    parent = SimpleNamespace(join=gone.wait)
    monkeypatch.setattr(runs.multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(runs.os, "_exit", lambda status: ended.set())
    runs.end_with_the_parent()
    assert not ended.is_set()
    gone.set()
    assert ended.wait(60)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "no record"), ("[]", "no 'format'"), ('{"format": 1}', "no 'experiment'"), ("\xff", "no record")],
)
def test_a_damaged_record_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "results" / "declared-tied-head.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=says) as caught:
        records.read_record(DECLARED.experiment("tied-head"), root=tmp_path)
    assert "\n" not in str(caught.value)
    assert "python -m scripts.experiment --only=tied-head" in str(caught.value)


# Going stale

MODULES = {
    "__init__": "",
    "a": '''"""A module."""
from nanochat import c
from nanochat.b import helper, unused
LIMIT = 3
OTHER = 4
def start(x):
    """Says what it does."""
    from nanochat.d import late
    return helper(x, LIMIT) + late(x)  # why
def not_reached():
    return OTHER
''',
    "b": """from nanochat.e import never
import os
os.environ.setdefault("X", "1")
class Base:
    def m(self): return 1
class helper(Base):
    pass
def unused(): return never()
""",
    "c": "def lonely(): return 1\n",
    "d": "import nanochat.c as c\ndef late(x): return given(c)\ndef given(m): return m.lonely()\n",
    "e": "def never(): return 0\n",
}


def package(root: Path, **changed: tuple[str, str]) -> dict[str, str]:
    """What can be reached in a made-up package in which texts are replaced."""
    folder = root / f"p{len(list(root.iterdir()))}" / "nanochat"
    folder.mkdir(parents=True)
    for name, text in MODULES.items():
        before, after = changed.get(name, ("", ""))
        assert before in text
        (folder / f"{name}.py").write_text(text.replace(before, after) if before else text)
    return reach(("nanochat.a", "start"), folder.parent)


def test_exactly_what_can_be_reached_counts(tmp_path: Path) -> None:
    assert set(package(tmp_path)) == {
        "nanochat.a.start",
        "nanochat.a.LIMIT",
        "nanochat.b.helper",
        "nanochat.b.Base",
        "nanochat.b.<imported>",
        "nanochat.c.lonely",
        "nanochat.d.late",
        "nanochat.d.given",
    }


@pytest.mark.parametrize(
    ("module", "before", "after", "names"),
    [
        ("a", "# why", "# another reason", []),
        ("a", "Says what it does.", "Says it otherwise.", []),
        ("a", "return helper(x, LIMIT) + late(x)", "return (helper(x,\n  LIMIT) + late(x))", []),
        ("a", "OTHER = 4", "OTHER = 5", []),
        ("b", "return never()", "return 1", []),
        ("e", "return 0", "return 1", []),
        ("a", "LIMIT = 3", "LIMIT = 4", ["nanochat.a.LIMIT"]),
        ("b", "return 1", "return 2", ["nanochat.b.Base"]),
        ("b", '"X", "1"', '"X", "2"', ["nanochat.b.<imported>"]),
        ("c", "return 1", "return 2", ["nanochat.c.lonely"]),
        ("d", "given(c)", "given(c) + 1", ["nanochat.d.late"]),
    ],
)
def test_a_change_is_named_if_it_can_change_a_number(
    tmp_path: Path, module: str, before: str, after: str, names: list[str]
) -> None:
    assert differences(package(tmp_path), package(tmp_path, **{module: (before, after)})) == names


def test_whatever_a_trial_runs_can_be_reached() -> None:
    ran: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "nanochat"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            ran.add((module, frame.f_code.co_qualname.split(".")[0]))

    text, setting = made_up(TINY.vocab_size), tiny("softcap=none", "bias=on")
    sys.setprofile(watch)
    try:
        trials.train(setting, 0, text, CPU)
    finally:
        sys.setprofile(None)
    assert len(ran) > 20
    known = set(reach(("nanochat.evidence.trials", "train")))
    assert {f"{module}.{name}" for module, name in ran if name[0] != "<"} <= known


def test_a_record_depends_on_what_its_experiment_runs_now() -> None:
    """Exactly: no more and no less than what its trials can reach."""
    trained = reach(("nanochat.evidence.trials", "train"))
    decoded = reach(("nanochat.evidence.trials", "time_decoding"))
    assert examined("softcap", Made(bowl(0.02)))["code"] == trained
    assert examined("shared-heads", Made(bowl(0.02)))["code"] == trained | decoded
    assert "nanochat.evidence.trials.train" in trained.keys() - decoded.keys()
    for one in DECLARED.experiments:
        record = records.read_record(one)
        if record is not None and not records.why_stale(one, record):
            assert record["code"] == (trained | decoded if one.name == "shared-heads" else trained)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code, with two fresh records."""
    root = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__", "learning", "chat_page")
    shutil.copytree(ROOT / "nanochat", root / "nanochat", ignore=ignored)
    (root / "results").mkdir()
    for name in ("softcap", "shared-heads"):
        record = examined(name, Made(bowl(0.02)))
        (root / "results" / f"declared-{name}.json").write_text(json.dumps(record))
    return root


BOTH = {"softcap", "shared-heads"}


@pytest.mark.parametrize(
    ("path", "before", "after", "names"),
    [
        ("step.py", "0.85 + 0.10", "0.85 + 0.11", {"softcap", "shared-heads"}),
        ("loss_eval.py", "math.log(2) * size", "math.log(3) * size", BOTH),
        ("muon.py", "3.4445", "3.4446", BOTH),
        ("evidence/settings.py", "matrix_lr: float = 0.02", "matrix_lr: float = 0.03", BOTH),
        ("evidence/trials.py", "range(22)", "range(23)", {"shared-heads"}),
        ("run.py", "import math", "import cmath", set()),
        ("dataset.py", "EVERY = 20", "EVERY = 21", set()),
        ("muon.py", "# Jordan's choice", "# another remark", set()),
    ],
)
def test_a_change_makes_exactly_its_records_stale(
    project: Path, tmp_path: Path, path: str, before: str, after: str, names: set[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    text = (copy / "nanochat" / path).read_text(encoding="utf-8")
    assert before in text
    (copy / "nanochat" / path).write_text(text.replace(before, after, 1), encoding="utf-8")
    lines = records.stale_answers(copy)
    assert {name for name in BOTH if any(f"declared-{name}.json is stale" in line for line in lines)} == names
    assert len(lines) == len(names)
    assert all(" changed. Run: python -m scripts.experiment --only=" in line for line in lines)


def test_declaration_torch_and_corpus_make_a_record_stale(project: Path) -> None:
    one = DECLARED.experiment("softcap")
    record = records.read_record(one, root=project)
    assert record is not None
    assert records.why_stale(one, record, project) == []
    assert records.stale_answers(project) == []
    assert records.why_stale(replace(one, checksum="x"), record, project) == ["its declaration has changed"]
    assert records.why_stale(one, record, project, text="x") == ["the corpus is another"]
    assert "torch 1.0.0" in records.why_stale(one, record | {"torch": "1.0.0"}, project)[0]


# The command


def test_ones_own_question_gets_the_same_treatment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.md"
    base = ["n_embd=24", "sequence_len=16", "vocab_size=64", "steps=3", "data=random", "matrix_lr=0.01"]
    flags = ["--vary", "softcap=none", "--base", *base, "--margin=0.5", "--seeds=2"]
    monkeypatch.setattr("sys.argv", ["x", *flags, "--workers=1", f"--out={out}", "--device_type=cpu"])
    made = {"losses": [1.0, 1.5], "seconds": 1.0, "parameters": 1, "seen": {}}
    monkeypatch.setattr(runs, "work", lambda trial: made)
    assert command.main() == 0
    said = capsys.readouterr().out
    text = out.read_text()
    assert text in said
    assert said.index(" minutes") < said.index("# What does softcap=none change?")
    assert "loss with softcap=none, yours" in text
    assert "]()" not in text
    assert "| 0.5 |" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"vary": (("activation=relu2",),)}, "the book's choice already"),
        ({"vary": (("softcap=none",),), "margin": 0.0}, "must be above 0"),
        ({"vary": (("softcap=none",),), "seeds": 1}, "at least 2"),
    ],
)
def test_a_question_that_is_none_is_refused(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        command.own_question(command.ExperimentConfig(**flags), DECLARED.protocol)


def test_a_rate_that_the_reader_sets_is_not_tuned() -> None:
    options = command.ExperimentConfig(vary=(("qk_norm=off", "matrix_lr=0.5"),), base=("data=random",))
    one, rules = command.own_question(options, DECLARED.protocol)
    bench = Imagined()
    Examination(one, rules, "cpu", bench).record()
    settings = [trial.settings[0] for trial in bench.asked]
    assert {setting.matrix_lr for setting in settings if not setting.qk_norm} == {0.5}
    assert len({setting.matrix_lr for setting in settings if setting.qk_norm}) == 5


def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever would train, time or prepare something fail."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a plan only counts")

    for place, name in (
        (runs, "work"),
        (trials, "train"),
        (trials, "time_decoding"),
        (texts, "prepare_corpus"),
        (texts, "prepare_tokenizer"),
    ):
        monkeypatch.setattr(place, name, refuse)


def test_a_plan_runs_and_prepares_nothing_and_counts_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_runs(monkeypatch)
    one = DECLARED.experiment("softcap")
    declared, says = plans.make_plans([one, one], DECLARED.protocol, "cpu")
    tuned, compared = 2 * (5 + 4) * 2, 3 * 10
    assert declared[0].trials[0] == tuned + compared
    assert declared[0].trials[0] < declared[0].trials[1]
    assert declared[0].seconds[0] < declared[0].seconds[1]
    assert (declared[1].trials, declared[1].seconds) == ((0, 0), (0, 0))
    assert "no trial is kept" in says
    text = plans.in_words(declared, says, "cpu", 2)
    assert text.splitlines()[-1] == says
    assert "together" in text


def test_every_declared_experiment_can_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_runs(monkeypatch)
    run = [one for one in DECLARED.experiments if one.comparisons]
    found, _ = plans.make_plans(run, DECLARED.protocol, "cpu")
    assert len(found) == len(run) > 8
    assert all(0 < plan.seconds[0] <= plan.seconds[1] for plan in found)


def test_a_plan_leaves_out_what_is_kept_and_reckons_from_it() -> None:
    one = DECLARED.experiment("softcap")
    bench = Imagined()
    Examination(one, RULES, "cpu", bench).measure()
    (before,), _ = plans.make_plans([one], RULES, "cpu")
    for trial in list(bench.asked)[:3]:
        trial.keep({"losses": [1.0], "took": plans.operations(trial) / 2e6})
    (after,), says = plans.make_plans([one], RULES, "cpu")
    assert after.trials[0] == before.trials[0] - 3
    assert "from what 3 kept trials took here" in says
    left = [trial for trial in bench.asked if trial.kept() is None]
    assert after.seconds[0] == pytest.approx(sum(map(plans.operations, left)) / 2e6)


@pytest.mark.parametrize("text", ["{", "[]", '{"identity": {}, "outcome": {"took": 1}}', '{"identity": 1}'])
def test_a_kept_file_that_is_none_does_not_stop_a_plan(text: str) -> None:
    (trial,) = tiny_trials(1)
    trial.keep({})
    trial.path().write_text(text)
    assert list(plans.timed("cpu")) == []


def test_status_says_what_was_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    command.status(DECLARED)
    lines = capsys.readouterr().out.splitlines()
    for one in DECLARED.experiments:
        if one.comparisons and records.read_record(one) is None:
            assert f"{one.name:28} not run" in lines


def asked(**flags: Any) -> list[str]:
    """The experiments that a command line chooses."""
    options = command.ExperimentConfig(**flags)
    return [one.name for one in command.chosen_of(options, DECLARED, "cpu")]


def test_a_second_run_is_made_of_what_has_a_fresh_record(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = {name: examined(name, Made(bowl(0.02))) for name in BOTH}
    monkeypatch.setattr(command, "read_record", lambda one, device: fresh.get(one.name))
    run = {one.name for one in DECLARED.experiments if one.comparisons}
    assert set(asked()) == run - BOTH
    assert set(asked(again=True)) == BOTH
    assert asked(only=("biases",)) == ["biases"]
    with pytest.raises(UserError, match="biases cannot be compared: it has no record"):
        asked(only=("biases",), again=True)
    with pytest.raises(UserError, match="accumulation runs nothing, tests show it"):
        asked(only=("accumulation",))
    fresh["softcap"]["declaration"] = "another"
    with pytest.raises(UserError, match="softcap cannot be compared: its declaration has changed"):
        asked(only=("softcap",), again=True)


def test_a_second_run_ends_in_words_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = examined("softcap", Made(bowl(0.02)))
    monkeypatch.setattr(command, "read_record", lambda one, device: record)
    flags = ["--only=softcap", "--again", "--budget=1e-9", "--workers=1", "--device_type=cpu"]
    monkeypatch.setattr("sys.argv", ["x", *flags])
    monkeypatch.setattr(command, "read_declaration", lambda: replace(DECLARED, protocol=RULES))
    assert command.main() == 0
    assert "the time is up; what has ended is kept" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--background", "--background=true"])
def test_what_goes_on_in_the_background_starts_no_other(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []

    def begin(words: list[str], **_: Any) -> SimpleNamespace:
        begun.append(words)
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(command.subprocess, "Popen", begin)
    monkeypatch.setattr("sys.argv", ["x", flag, "--only=softcap"])
    command.in_the_background()
    assert begun == [[sys.executable, "-m", "scripts.experiment", "--only=softcap"]]


def words_of(page: str) -> str:
    """A chapter without its code, as one line."""
    text = (ROOT / "lit" / page).read_text(encoding="utf-8")
    return " ".join(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split())


@pytest.mark.parametrize("one", DECLARED.experiments, ids=lambda one: one.name)
def test_what_is_claimed_stands_at_its_answer_with_its_verdict(one: Experiment) -> None:
    page, _, anchor = one.answer.partition("#")
    text = (ROOT / "lit" / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    words = words_of(page)
    assert f"**The claim.** {one.claim}" in words
    if one.comparisons:
        assert f"](../results/evidence.json#verdicts/{one.name})" in words
        assert f"The question: [{one.question}]({one.answer})" in words_of("94-the-experiments.md")
        assert "](94-the-experiments.md#" in words
