"""The experiments: what they vary, how they weigh, what they keep, and when they go stale."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import normans_gpt
from nanochat.common import UserError
from nanochat.evidence import records, runs
from nanochat.evidence.experiments import BOOK, EXPERIMENTS, Experiment, Finding, experiment
from nanochat.evidence.freshness import checksum, digests, fragments_run, statements
from nanochat.evidence.procedures import PROCEDURES
from nanochat.evidence.report import (
    conclude,
    effect,
    finding_table,
    lowest_point,
    overview_row,
    overview_table,
    report,
    tables,
    weigh,
)
from nanochat.evidence.runs import Job, complete, jobs_of, run_jobs
from nanochat.evidence.settings import Setting, enlarged, shrunk, varied
from nanochat.evidence.statistics import interval, share_inside, t_quantile, verdict
from nanochat.evidence.trials import largest_score
from nanochat.evidence.variations import VariedGPT, build, usual_start
from nanochat.normans_gpt import GPT
from nanochat.provenance import ROOT, read_book
from scripts import experiment as command
from tests.bounds import logits_error

CPU = torch.device("cpu")
TINY = shrunk(Setting())
IDS = torch.arange(12).reshape(1, 12) % 7


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


# Telling an effect from luck


def test_the_interval_of_the_worked_example() -> None:
    found = interval([0.010, 0.016, 0.013])
    assert found.mean == pytest.approx(0.013)
    assert found.high - found.mean == pytest.approx(4.303 * 0.003 / 3**0.5, rel=1e-3)
    assert found.side(0.0) == 1
    assert found.side(0.013) == 0
    assert found.side(0.03) == -1


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)
    assert share_inside(quantile, freedom) == pytest.approx(0.95, abs=1e-4)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        interval([1.0])


def test_verdicts_follow_from_the_interval_and_the_claim() -> None:
    above, around = interval([0.010, 0.016, 0.013]), interval([-1.0, 1.0, 0.5])
    assert verdict(above, 0.0, "more") == "as claimed"
    assert verdict(above, 0.0, "less") == "against the claim"
    assert verdict(above, 0.0, "same") == "against the claim"
    assert verdict(around, 0.0, "more") == "no effect at this scale"
    assert verdict(around, 0.0, "same") == "no effect at this scale, as claimed"
    assert verdict(interval([0.0, 0.0, 0.0]), 0.0, "more") == "exactly equal"
    assert verdict(above, 0.0, "") == "a difference"
    assert verdict(around, 0.0, "") == "no effect at this scale"


def trials_of(**values: list[float | None]) -> dict[str, Any]:
    return {
        name.replace("_", " "): {str(s): {"numbers": {"x": v}, "curves": {}} for s, v in enumerate(row)}
        for name, row in values.items()
    }


def test_differences_are_taken_seed_by_seed() -> None:
    trials = trials_of(a=[1.0, 5.0, 9.0], b=[1.1, 5.12, 9.11])
    found = weigh(Finding("b", ("b",), "more", "x", against="a"), trials)
    assert found["values"] == pytest.approx([0.1, 0.12, 0.11])
    assert found["verdict"] == "as claimed"  # although the spread over seeds is a hundred times the effect
    ratio = weigh(Finding("b", ("b",), "more", "x", against="a", ratio=True), trials)
    assert ratio["values"][0] == pytest.approx(1.1)
    assert ratio["null"] == 1.0


def test_of_several_alternatives_the_best_is_weighed() -> None:
    trials = trials_of(a=[1.0, 1.0, 1.0], b=[1.5, 1.4, 1.6], c=[1.1, 1.2, 1.1], d=[0.5, None, None])
    found = weigh(Finding("b to d", ("b", "c", "d"), "more", "x", against="a"), trials)
    assert found["of"] == "c"
    assert (
        weigh(Finding("d", ("d",), "more", "x", against="a"), trials)["verdict"]
        == "it diverged in 2 of 3 runs"
    )


def test_the_lowest_point_of_a_parabola() -> None:
    points = [(float(x), (x - 1.3) ** 2) for x in range(5)]
    assert lowest_point(points) == pytest.approx(1.3)
    assert lowest_point([(x, -x) for x, _ in points]) == 4.0


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


@pytest.mark.numerics
def test_seeds_decide_weights_and_text() -> None:
    one, same, other = (PROCEDURES["train"](TINY, seed, CPU) for seed in (0, 0, 1))
    assert one["curves"] == same["curves"]
    assert one["numbers"]["bits per byte"] == same["numbers"]["bits per byte"]
    assert one["numbers"]["bits per byte"] != other["numbers"]["bits per byte"]


def test_a_run_that_ends_in_no_number_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.evidence.trials.evaluate_bpb", lambda *_: float("nan"))
    assert PROCEDURES["train"](TINY, 0, CPU)["numbers"]["bits per byte"] is None


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
        experiment("tied-haed")


def test_on_a_gpu_a_variation_keeps_its_proportion() -> None:
    large = enlarged(Setting(n_embd=192, n_head=4, matrix_lr=0.5))
    assert (large.n_embd, large.n_head, large.matrix_lr, large.dtype) == (768, 4, 0.5, "bfloat16")


# Keeping what has been run


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on experiments are tiny."""
    whole = Experiment.settings
    monkeypatch.setattr(
        Experiment, "settings", lambda self, large: {n: shrunk(s) for n, s in whole(self, False).items()}
    )


def small(one: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on experiments are tiny, and nothing is traced."""
    shrink(monkeypatch)
    monkeypatch.setattr(runs, "code_of", lambda job: {"norm": "0"})


@pytest.mark.parametrize("one", EXPERIMENTS, ids=lambda one: one.name)
def test_every_experiment_runs_from_end_to_end(one: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    small(one, monkeypatch)
    torch.set_num_threads(1)
    record = complete(one, "cpu", seeds=2)
    assert list(record["trials"]) == list(one.variations)
    for finding in record["findings"]:
        assert finding["verdict"]
    for column in one.columns:
        assert any(column in trial["0"]["numbers"] for trial in record["trials"].values()), column
    assert one.curve in ("", "best rates") or any(
        t["0"]["curves"][one.curve] for t in record["trials"].values()
    )
    again = json.loads(json.dumps(record))
    assert all(tables(again).values())
    assert conclude(one, again)["numbers"] == record["numbers"]
    assert one.question in report(again)
    overview = overview_table([overview_row(one, again)])
    assert overview.count("\n") == 1 + len(one.decisive)
    assert all(again["findings"][count - 1]["about"] in overview for count in one.decisive)


def test_the_larger_run_stands_beside_the_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"about": "it", "mean": 0.5, "low": 0.4, "high": 0.6, "null": 0.0, "verdict": "as claimed"}
    found |= {"kind": "difference"}
    small_one = {"experiment": "softcap", "findings": [found], "machine": {"threads of a trial": 1}}
    large_one = {"findings": [{**found, "mean": 0.25, "verdict": "no effect at this scale"}]}
    monkeypatch.setattr("nanochat.evidence.report.read_record", lambda path: large_one)
    assert "| +0.500 | 0.400 to 0.600 | as claimed | +0.250 |" in finding_table(small_one)
    assert "GPU" not in finding_table({**small_one, "machine": {"threads of a trial": None}})


@pytest.mark.parametrize(
    ("kind", "values", "null", "shown"),
    [
        ("difference", (0.048912, 0.04, 0.0578), 0.0, ("+0.0489", "0.0400 to 0.0578")),
        ("difference", (-0.0034, -0.0067, -0.00002), 0.0, ("−0.00340", "−0.00670 to −0.00002")),
        ("factor", (83.66, 77.51, 89.81), 1.0, ("83.7 ×", "77.5 to 89.8")),
        ("factor", (1.0466, 1.0451, 1.0482), 1.0, ("1.047 ×", "1.045 to 1.048")),
        ("factor", (1.0466, 1.002, 1.09), 1.0, ("1.047 ×", "1.002 to 1.090")),
        ("factor", (2.0, 2.0, 2.0), 1.0, ("2 ×", "the same in every run")),
        ("value", (3.3e-16, 3.1e-16, 3.4e-16), 1e-12, ("3.3e−16", "3.1e−16 to 3.4e−16")),
    ],
)
def test_an_effect_says_what_it_is(
    kind: str, values: tuple[float, float, float], null: float, shown: tuple[str, str]
) -> None:
    mean, low, high = values
    found = {"kind": kind, "mean": mean, "low": low, "high": high, "null": null}
    assert effect(found) == shown


def test_what_was_not_run_is_not_called_stale() -> None:
    assert records.state_of([records.NOT_RUN]) == "not run"
    assert records.state_of(["norm has changed"]) == "stale: norm has changed"
    assert records.state_of([]) == "fresh"


def test_a_cut_off_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "code_of", lambda job: {})
    ran: list[int] = []

    def procedure(setting: Setting, seed: int, device: torch.device) -> dict[str, Any]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(seed)
        return {"numbers": {"x": float(seed)}, "curves": {}}

    monkeypatch.setitem(PROCEDURES, "train", procedure)
    jobs = [Job("train", (("", TINY),), seed, "cpu") for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 1, "a test")
    assert ran == [0, 1]
    second: list[int] = []

    def later(setting: Setting, seed: int, device: torch.device) -> dict[str, Any]:
        second.append(seed)
        return {"numbers": {}, "curves": {}}

    monkeypatch.setitem(PROCEDURES, "train", later)
    outcomes = run_jobs(jobs, 1, "a test")
    assert second == [2, 3]
    assert outcomes[jobs[1]][""]["numbers"] == {"x": 1.0}


def test_a_kept_trial_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = {"setting": 1, "code": {"norm": "a"}}
    records.store_trial(identity, {"x": 1})
    assert records.stored_trial(identity) == {"x": 1}
    assert records.stored_trial({"setting": 1, "code": {"norm": "b"}}) is None
    records.trial_path(identity).write_text("{")
    assert records.stored_trial(identity) is None


def test_equal_settings_of_two_experiments_are_one_trial() -> None:
    shared = [one for one in EXPERIMENTS if one.settings(False).get(BOOK) == Setting()]
    assert len(shared) >= 6
    assert len({jobs_of(one, 1, "cpu")[0] for one in shared if one.procedures == ("train",)}) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "no record"), ("[]", "no 'format'"), ('{"format": 1}', "no 'experiment'"), ("\xff", "no record")],
)
def test_a_damaged_record_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "evidence-tied-head.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=says) as caught:
        records.read_record(path)
    assert "\n" not in str(caught.value)
    assert "python -m scripts.experiment tied-head" in str(caught.value)


# Going stale


def same(one: str, other: str) -> bool:
    first, second = (statements(tuple(textwrap.dedent(text).split("\n"))) for text in (one, other))
    return checksum(first, {"b"}) == checksum(second, {"b"})


CODE = """
    def f(x: int) -> int:
        '''Says what it does.'''
        y = g(x, 1)  # why
        return f"{x + y} {{}}"
"""


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("# why", "# another reason"),
        CODE.replace("Says what it does.", "Says it otherwise.\n\n        At length."),
        CODE.replace("        '''Says what it does.'''\n", ""),
        CODE.replace("g(x, 1)", "g(\n            x, 1\n        )"),
        CODE.replace("        return", "\n        return"),
        textwrap.indent(CODE, "    "),
        CODE + "\n        <<a-reference>>\n",
    ],
)
def test_what_cannot_change_a_number_is_not_a_change(other: str) -> None:
    assert same(CODE, other)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("1", "2"),
        CODE.replace("x + y", "x - y"),
        CODE.replace("{{}}", "{{}} "),
        CODE.replace("        return", "    return"),
        CODE.replace("int:", "str:"),
        CODE.replace("y = ", "y: int = "),
    ],
)
def test_what_can_change_a_number_is_a_change(other: str) -> None:
    assert not same(CODE, other)


def test_of_imports_only_what_is_used_counts() -> None:
    assert same("import a\nfrom x import b\n", "from x import (\n    b,\n    c as d,\n)\n")
    assert not same("from x import b\n", "from y import b\n")
    assert not same("from x import c as b\n", "from x import b\n")


def test_pieces_that_are_no_python_are_compared_line_by_line() -> None:
    assert same("a = (\n\n", "a = (   \n")
    assert not same("a = (\n", "b = (\n")


def test_a_number_depends_on_what_ran_and_what_contains_it() -> None:
    names = fragments_run(lambda: normans_gpt.norm(torch.ones(2, 4)))
    assert names == {"norm", "compose-the-model"}
    heads = {}
    for tied in ("on", "off"):
        setting = tiny(f"tied={tied}")
        heads[tied] = fragments_run(functools.partial(build, setting, 0))
    assert "tie-the-head" in heads["on"]
    assert "tie-the-head" not in heads["off"]
    assert "generate" not in heads["on"]


def test_a_record_depends_on_what_its_experiment_runs_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: a record that is made here, and the one in results/ unless it is said to be stale."""
    one = experiment("tables-as-buffers")
    kept = records.read_record(records.record_path(one.name, False))
    said = records.why_stale(one, False, read_book(ROOT))
    shrink(monkeypatch)
    torch.set_num_threads(1)
    now = {name for job in jobs_of(one, 1, "cpu") for name in fragments_run(job.run)}
    made = complete(one, "cpu", seeds=2)
    assert set(made["code"]) == now
    assert {"hold-the-tables", "precompute-rotary-embeddings", "accumulate-gradients"} <= now
    assert kept is None or said or set(kept["code"]) == now


TRAINED = {
    "tied-head",
    "shared-heads",
    "activation",
    "qk-norm",
    "norm-after-embedding",
    "softcap",
    "optimizers",
    "rates-and-widths",
    "biases",
}
STEPPED = TRAINED | {"bfloat16"}  # it takes 20 steps, but has no schedule and evaluates nothing
ALL = STEPPED | {"tables-as-buffers", "accumulation"}
DEPENDS = {
    "tie-the-head": {"tied-head"},
    "bend-otherwise": {"activation"},
    "exchange-the-activation": {"activation"},
    "add-biases": {"biases"},
    "insert-keys-and-values": {"shared-heads"},
    "measure-decoding": {"shared-heads"},
    "measure-a-step": {"activation", "biases", "optimizers"},
    "hold-the-tables": {"tables-as-buffers"},
    "compare-accumulation": {"accumulation"},
    "measure-rounding": {"bfloat16"},
    "evaluate-bits-per-byte": TRAINED,
    "orthogonalize-by-newton-schulz": STEPPED,
    "schedule-rate-and-momentum": TRAINED,
    "mlp-forward": ALL,
    "rotate-then-norm-queries-and-keys": ALL,
    "precompute-rotary-embeddings": ALL,
    "accumulate-gradients": ALL,
    "generate": set(),
    "estimate-flops": set(),
    "tell-an-effect-from-luck": set(),
    "command-experiments": set(),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chapters and the records, with records that are fresh."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "lit", root / "lit", ignore=shutil.ignore_patterns("pictures"))
    (root / "results").mkdir()
    book = read_book(root)
    for one in EXPERIMENTS:
        path = records.record_path(one.name, False)
        if (record := records.read_record(path)) is not None:
            there = [name for name in record["code"] if name in book.fragments]  # none that has gone since
            slim = {**record, "code": digests(book, there), "trials": {}}
            slim["configuration"] = one.configuration(False)
            (root / "results" / path.name).write_text(json.dumps(slim))
    return root


def stale(root: Path) -> set[str]:
    book = read_book(root)
    there = [one for one in EXPERIMENTS if records.record_path(one.name, False, root).exists()]
    return {one.name for one in there if records.why_stale(one, False, book, root)}


@contextmanager
def change(root: Path, fragment: str, line: str) -> Iterator[None]:
    """Put a line at the end of a fragment while the test looks."""
    for path in (root / "lit").glob("*.md"):
        text = path.read_text()
        opened = re.search(rf"^```\w+ #{re.escape(fragment)}( .*)?$", text, re.MULTILINE)
        if opened:
            end = text.index("\n```", opened.end())
            path.write_text(text[:end] + "\n" + line + text[end:])
            try:
                yield
            finally:
                path.write_text(text)
            return
    raise AssertionError(f"no fragment {fragment}")


@pytest.mark.parametrize("fragment", DEPENDS)
def test_a_changed_fragment_makes_exactly_its_answers_stale(project: Path, fragment: str) -> None:
    recorded = {path.stem.removeprefix("evidence-") for path in (project / "results").iterdir()}
    assert stale(project) == set()
    with change(project, fragment, "changed = True"):
        assert stale(project) == DEPENDS[fragment] & recorded
        lines = records.stale_answers(project)
        named = [line for line in lines if f"{fragment} has changed" in line]
        assert len(named) == len(DEPENDS[fragment] & recorded)
    with change(project, fragment, "# only a remark"):
        assert stale(project) == set()


def test_prose_makes_nothing_stale(project: Path) -> None:
    path = project / "lit" / "30-the-forward-pass.md"
    text = path.read_text()
    path.write_text(text.replace("\n## ", "\nAnother sentence.\n\n## "))
    assert stale(project) == set()
    path.write_text(text)


def test_other_settings_make_an_answer_stale(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not records.record_path("softcap", False, project).exists():
        pytest.skip("there is no record")
    changed = copy.copy(experiment("softcap"))
    object.__setattr__(changed, "variations", {BOOK: {}, "no cap": {"softcap": 40.0}})
    assert records.why_stale(changed, False, read_book(project), project) == ["its settings have changed"]


# The command


def test_ones_own_question_gets_the_same_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.md"
    sizes = [
        "n_layer=1",
        "n_embd=24",
        "sequence_len=16",
        "vocab_size=64",
        "steps=3",
        "data=random",
        "val_tokens=64",
    ]
    flags = ["--vary", "activation=gelu", "qk_norm=off", "--vary", "softcap=none", "--base", *sizes]
    monkeypatch.setattr(
        "sys.argv", ["x", *flags, "--seeds=2", "--workers=1", f"--out={out}", "--device_type=cpu"]
    )
    monkeypatch.setattr(runs, "code_of", lambda job: {})
    assert command.main() == 0
    text = out.read_text()
    assert text in capsys.readouterr().out
    assert "| activation=gelu qk_norm=off |" in text
    assert "| softcap=none, against the book's |" in text


def test_the_books_choice_is_no_question() -> None:
    with pytest.raises(UserError, match="the book's choice already"):
        command.own_question([["activation=relu2"]], [], 0)


@pytest.mark.parametrize(("moved", "good"), [(0.0, True), (1.0, False)])
def test_verifying_compares_with_the_recorded_interval(
    moved: float, good: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = {"about": "it", "mean": 0.5, "low": 0.4, "high": 0.6, "null": 0.0, "verdict": "as claimed"}
    record = {"findings": [finding], "seeds": [0, 1, 2]}
    monkeypatch.setattr(command, "read_record", lambda path: record)
    again = {"findings": [{**finding, "mean": 0.5 + moved}]}
    monkeypatch.setattr(command, "run", lambda *_, **__: again)
    assert command.verify(experiment("tied-head"), "cpu", 1) is good
    assert ("OUTSIDE" in capsys.readouterr().out) is not good


def test_each_declared_answer_is_a_heading_of_the_book() -> None:
    for one in EXPERIMENTS:
        chapter, _, anchor = one.answer.partition("#")
        text = (ROOT / "lit" / chapter).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, (one.name, anchor)
        assert one.question in (ROOT / "lit" / "index.md").read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """A chapter without its code, as one line."""
    text = (ROOT / "lit" / page).read_text(encoding="utf-8")
    return " ".join(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split())


@pytest.mark.parametrize("one", EXPERIMENTS, ids=lambda one: one.name)
def test_what_was_claimed_stands_in_the_chapter(one: Experiment) -> None:
    if records.read_record(records.record_path(one.name, False)) is None:
        pytest.skip("there is no record")
    page = one.answer.partition("#")[0]
    assert f"**The claim.** {one.claim}" in words_of(page)
    told = words_of("94-the-experiments.md")
    sections = re.split(r"(?=The question: \[)", told)
    told_there = [
        section for section in sections if section.startswith(f"The question: [{one.question}]({one.answer})")
    ]
    (section,) = told_there or [words_of(page)]
    assert f"**What would change our mind.** {one.reconsider}" in section
    if told_there:
        assert "](94-the-experiments.md#" in words_of(page)
