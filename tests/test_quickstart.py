"""`make train` and the two scripts: everything prepared, nothing prepared twice, the clock kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat import looks, plans
from nanochat import run as run_module
from nanochat.common import UserError
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import tokenizer_folder
from nanochat.train_config import TrainConfig, model_shape
from scripts import quickstart
from tests.tiny_run import Clock, own_base, tiny_config

ROOT = Path(__file__).parent.parent
TINY = replace(
    plans.SMALL,
    depth=1,
    n_embd=32,
    n_head=2,
    vocab_size=300,
    max_seq_len=16,
    device_batch_size=2,
    total_batch_size=32,
    num_iterations=4,
    shuffle_window=16,
)


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder) as patch:
        patch.setattr(quickstart, "SMALL", TINY)
        patch.setattr(quickstart, "plan_for", lambda pace: TINY)
        yield folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart", "--data=tiny", "--device_type=cpu", *arguments])
    quickstart.main()


def test_it_prepares_trains_and_says_what_it_did(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tokenizer_folder("tiny", 300) / "tokenizer.json"
    tokenizer.unlink()
    run(monkeypatch, "--seconds=30")
    out = capsys.readouterr().out
    runs = base / "base_checkpoints"
    for part in (
        "What this did",
        "What to try next",
        str(runs / "d1"),
        "4 steps, 128 tokens",
        "bits per byte",
    ):
        assert part in out
    bpb = re.search(r"validation +(\d\.\d+) bits per byte", out)
    assert bpb
    assert f"Step 00004 | Validation bpb: {bpb[1]}" in out
    for name in ("loss.png", "samples.txt", "metrics.jsonl", "meta_000004.json", "tokenizer/tokenizer.json"):
        assert (runs / "d1" / name).exists(), name
    made = tokenizer.stat().st_mtime_ns
    run(monkeypatch, "--seconds=30")
    assert tokenizer.stat().st_mtime_ns == made  # reused
    assert (runs / "d1-2" / "meta_000004.json").exists()  # beside the first run, not over it


def test_it_evaluates_on_all_validation_text_in_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def train(config: TrainConfig) -> None:
        assert config.eval_tokens == -1
        assert 80 < config.time_limit < 100 - quickstart.RESERVE
        raise Enough

    monkeypatch.setattr(quickstart, "train", train)
    with pytest.raises(Enough):
        run(monkeypatch, "--seconds=100")


def test_only_preparing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    before = sorted((base / "base_checkpoints").glob("*"))
    run(monkeypatch, "--prepare_only")
    assert "are ready" in capsys.readouterr().out
    assert sorted((base / "base_checkpoints").glob("*")) == before


def test_the_clock_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By a clock on which a reading takes a fifth of a second, and corpus and evaluation take three."""
    clock = Clock(reading=0.2)
    monkeypatch.setattr(quickstart, "time", clock)
    monkeypatch.setattr(run_module, "time", clock)
    monkeypatch.setattr(quickstart, "plan_for", lambda pace: replace(TINY, num_iterations=1_000_000))
    monkeypatch.setattr(quickstart, "prepare_corpus", lambda name: clock.wait(3))
    monkeypatch.setattr(quickstart, "evaluation_seconds", lambda *arguments: 3.0)
    monkeypatch.setattr(looks, "evaluate", lambda *arguments: clock.wait(3) - 1.0)
    run(monkeypatch, "--seconds=60")
    assert 60 - quickstart.RESERVE - 4 < clock.now < 60
    assert "bpb: 2.0000" in capsys.readouterr().out


def test_a_signal_ends_it_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    real = looks.sample

    def sample(*arguments: object) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(looks, "sample", sample)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--seconds=30")
    assert caught.value.code == 128 + signal.SIGTERM


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--seconds=5")
    with pytest.raises(UserError, match=r"python -m nanochat\.dataset"):
        run(monkeypatch, "--data=nothing")


@pytest.mark.parametrize("plan", plans.PLANS.values(), ids=plans.PLANS)
def test_the_plans_fit_together(plan: plans.Plan) -> None:
    for data in ("sotu", "fineweb"):
        config = quickstart.training_flags(quickstart.QuickConfig(), plan, data, 100.0)
        assert config.core_metric_every == -1
        assert config.eval_every == config.save_every == config.sample_every == 0  # at the end, and only then
    shape = model_shape(config, plan.vocab_size)
    with torch.device("meta"):
        model = GPT(GPTConfig(**shape))
    assert model.estimate_flops() == plan.flops_per_token()


def test_the_pace_chooses() -> None:
    paces = [plan.from_pace for plan in plans.BY_PACE]
    assert paces[0] == 0
    assert paces == sorted(set(paces))
    for plan in plans.BY_PACE:
        assert plans.plan_for(plan.from_pace) is plan
        assert plans.plan_for(plan.from_pace * 1.01 + 1) is plan
        said = plans.explain(plan, plan.from_pace + 1e9)
        assert f"plan {plan.name!r}" in said
        assert f"at {plan.from_pace / 1e9 + 1:.0f} GFLOP/s" in said
    assert f"would be {plans.BY_PACE[1].name!r}" in plans.explain(plans.BY_PACE[0], 1e9)


def test_the_pace_is_that_of_the_best_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which the steps take 4, 2, 1 and 8 seconds."""
    moments = iter([0.0, 4.0, 10.0, 12.0, 20.0, 21.0, 30.0, 38.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    work = TINY.device_batch_size * TINY.max_seq_len * TINY.flops_per_token()
    assert plans.measured_pace(TINY, torch.device("cpu"), None) == work / 1.0


def test_the_choice_asks_the_machine_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "plan_for", plans.plan_for)
    for pace, plan in ((1e9, plans.BY_PACE[0]), (1e15, plans.BY_PACE[-1])):
        monkeypatch.setattr(quickstart, "measured_pace", lambda *_, pace=pace: pace)
        assert quickstart.choose(quickstart.QuickConfig(device_type="cpu")) == (plan, "sotu", pace)
        assert capsys.readouterr().out == plans.explain(plan, pace) + "\n"
    monkeypatch.setattr(quickstart, "measured_pace", lambda *_: pytest.fail("there is nothing to measure"))
    insisted = quickstart.QuickConfig(device_type="cpu", plan="wide", data="mine")
    assert quickstart.choose(insisted) == (plans.WIDE, "mine", 0.0)


def test_the_evaluation_is_set_aside() -> None:
    """A third of the arithmetic of training on as many tokens."""
    assert quickstart.evaluation_seconds(TINY, 3000, 1e6) == 1000 * TINY.flops_per_token() / 1e6
    assert quickstart.evaluation_seconds(TINY, 3000, 0.0) == 0.0


@pytest.mark.parametrize(
    ("cuda", "fineweb", "expected"),
    [
        (False, True, ("TINY", "sotu")),
        (True, False, ("CUDA", "sotu")),
        (True, True, ("CUDA_FINEWEB", "fineweb")),
    ],
)
def test_a_larger_model_where_there_is_more_machine(
    cuda: bool, fineweb: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(name: str, split: str) -> list[Path]:
        if not fineweb:
            raise UserError("no corpus")
        return []

    monkeypatch.setattr(quickstart, "parquet_files", files)
    monkeypatch.setattr(quickstart, "pick_device", lambda _: torch.device("cuda" if cuda else "cpu"))
    plan, data, _ = quickstart.choose(quickstart.QuickConfig())
    assert (plan, data) == ({"TINY": TINY, **vars(plans)}[expected[0]], expected[1])


QUICK_FLAGS = (
    "--depth=4 --max_seq_len=512 --device_batch_size=1 --eval_tokens=512 --core_metric_every=-1"
    " --total_batch_size=512 --num_iterations=1"
)


def test_the_quick_script_has_its_published_flags() -> None:
    text = (ROOT / "scripts" / "local_cpu_own_gpt_transformer.sh").read_text()
    for flag in QUICK_FLAGS.split():
        assert f"    {flag} \\\n" in text


def pretend(clone: Path, status: int) -> None:
    """A Makefile whose environment is a python that only notes what it is asked; `learn` ends with status."""
    noting = f'#!/bin/sh\\necho "$$@" >> called\\n[ "$$2" != scripts.learn ] || exit {status}\\n'
    make = f"mkdir -p .venv/bin && printf '{noting}' > .venv/bin/python && chmod +x .venv/bin/python"
    (clone / "Makefile").write_text(f"environment:\n\t{make}\n")


@pytest.mark.parametrize("name", ["local_cpu_own_gpt_transformer.sh", "local_cpu_train.sh"])
def test_the_scripts_run_where_nothing_is_prepared(name: str, tmp_path: Path) -> None:
    """The commands of each script, with a python that only notes what it is asked."""
    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    (clone / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    pretend(clone, 0)
    for extra in ([], ["--num_iterations=3"]):
        subprocess.run(
            ["bash", str(clone / "scripts" / name), *extra], cwd=tmp_path, check=True, capture_output=True
        )
    called = (clone / "called").read_text().splitlines()
    first = ["scripts.learn"] if "own" in name else ["nanochat.dataset", "scripts.tok_train"]
    expected = [*first, "scripts.base_train"]
    assert [line.split()[1] for line in called] == 2 * expected
    assert called[-1].endswith("--num_iterations=3")
    flags = called[len(expected) - 1].split()[2:]
    values = {flag[2:].split("=")[0]: flag.split("=")[1] for flag in flags}
    kinds = {name: type(getattr(tiny_config(), name)) for name in values}
    TrainConfig(**{name: kinds[name](value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("chosen", "arguments", "whose"),
    [
        ("", [], "mine"),
        ("mine", [], "mine"),
        ("book", [], "book"),
        ("", ["--gpt=book"], "book"),
        ("", ["--num_iterations=3", "--gpt", "reference"], "reference"),
        ("book", ["--gpt=mine"], "mine"),
    ],
)
def test_whose_model_the_quick_script_tries_is_said(
    chosen: str, arguments: list[str], whose: str, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "own.sh"
    script.write_text((ROOT / "scripts" / "local_cpu_own_gpt_transformer.sh").read_text())
    pretend(tmp_path, 1)  # there is a gap
    environment = {name: value for name, value in os.environ.items() if name != "GPT"}
    if chosen:
        environment["GPT"] = chosen
    done = subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, check=False
    )
    called = [line.split()[1] for line in (tmp_path / "called").read_text().splitlines()]
    if whose == "mine":  # stops at the gap, before any data
        assert done.returncode == 1
        assert called == ["scripts.learn"]
    else:
        assert done.returncode == 0
        assert called == ["scripts.base_train"]
        assert f"--gpt={whose} " in (tmp_path / "called").read_text().splitlines()[-1] + " "


def test_the_quick_script_brings_a_learner_to_the_first_gap(tmp_path: Path) -> None:
    """The skeleton is copied, run with the trace on, and stopped at, before anything is prepared."""
    workshop, base = tmp_path / "workshop", tmp_path / "base"
    environment = {**os.environ, "NANOCHAT_WORKSHOP": str(workshop), "NANOCHAT_BASE_DIR": str(base)}
    environment.pop("GPT", None)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "local_cpu_own_gpt_transformer.sh")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    skeleton = (ROOT / "skeleton" / "normans_gpt.py").read_text()
    assert (workshop / "normans_gpt.py").read_text() == skeleton
    said = done.stdout
    assert said.index("[DEBUG] GPT.__init__() called") < said.index(
        "NotImplementedError: TODO: Implement GPT.__init__"
    )
    for word in ("missing", "why now", "read       lit/10-", "write      ", "normans_gpt.py:"):
        assert word in said
    assert not base.exists()
