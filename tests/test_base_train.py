"""The training program: what it refuses, what it computes, and that stopping it changes nothing."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import core_tasks, looks, muon, normans_gpt, tokenizer, workplace
from nanochat import run as run_module
from nanochat import step as step_module
from nanochat.agreement import Signals, largest
from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import Ranks, UserError
from nanochat.run import planned_steps
from nanochat.run_log import RunLog, plot_metrics, read_metrics
from nanochat.step import Schedule, Stepper, muon_momentum
from nanochat.train_config import (
    TrainConfig,
    accumulation_steps,
    evaluation_steps,
    model_shape,
    open_tokenizer,
    refuse_a_short_split,
)
from scripts import base_train
from scripts.base_train import train
from tests.bounds import sum_error
from tests.core_questions import zipped_bundle
from tests.tiny_run import Clock, flags, own_base, records, tiny_config

QUICK_FLAGS = [
    "--depth=4",
    "--max_seq_len=512",
    "--device_batch_size=1",
    "--eval_tokens=512",
    "--core_metric_every=-1",
    "--total_batch_size=512",
    "--num_iterations=1",
]


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base folder with a tiny corpus, for all tests of this file."""
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield folder


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No torchrun around us, and no time for measuring and drawing but in the tests of these."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if "real_everything" not in request.fixturenames:
        monkeypatch.setattr(run_module, "peak_flops", lambda device, dtype: (1e11, "measured"))
        monkeypatch.setattr(run_module, "plot_metrics", lambda folder: None)


@pytest.fixture
def real_everything() -> None:
    """Ask for this to measure and draw."""


# --- flags ----------------------------------------


def test_the_flags_of_the_reference_and_their_defaults() -> None:
    reference = {
        "run": "dummy",
        "device_type": "",
        "depth": 20,
        "max_seq_len": 2048,
        "num_iterations": -1,
        "target_flops": -1.0,
        "target_param_data_ratio": 20,
        "device_batch_size": 32,
        "total_batch_size": 524288,
        "embedding_lr": 0.2,
        "unembedding_lr": 0.004,
        "weight_decay": 0.0,
        "matrix_lr": 0.02,
        "grad_clip": 1.0,
        "warmup_ratio": 0.0,
        "warmdown_ratio": 0.2,
        "final_lr_frac": 0.0,
        "eval_every": 250,
        "eval_tokens": 10485760,
        "core_metric_every": 2000,
        "core_metric_max_per_task": 500,
        "sample_every": 2000,
        "model_tag": "",
    }
    config = TrainConfig()
    assert {name: getattr(config, name) for name in reference} == reference
    assert all(field.metadata["help"] for field in fields(TrainConfig))


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (
        {"total_batch_size": 500},
        r"no multiple of --device_batch_size=2 \* --max_seq_len=16 = 32: take 480 or 512",
    ),
    ({"total_batch_size": 20}, "= 32: take 32"),
    ({"total_batch_size": -64}, "--total_batch_size=-64: must be at least 1"),
    ({"eval_tokens": 100}, "--eval_tokens=100 is no multiple .* take 96 or 128"),
    ({"eval_tokens": 0}, "--eval_tokens=0 is no multiple .* take 32"),
    ({"eval_tokens": -2}, "--eval_tokens=-2 is no multiple"),
    ({"n_embd": 30, "n_head": 2}, "30 does not divide into 2 heads of even size .15 each"),
    ({"n_embd": 32, "n_head": 3}, "32 does not divide into 3 heads .*: take --n_head=2$"),
    ({"n_embd": 65, "n_head": 0}, "65 does not divide into 65 heads .*: take --n_embd=66$"),
    ({"n_head": 4, "n_kv_head": 3}, "--n_head=4 is no multiple of --n_kv_head=3, .* --n_kv_head=2$"),
    ({"n_kv_head": -1}, "--n_kv_head=-1: must be at least 0"),
    ({"n_head": -2}, "--n_head=-2: must be at least 0"),
    ({"depth": 0}, "--depth=0: must be at least 1"),
    ({"seed": -1}, "--seed=-1: must be at least 0"),
    ({"seed": 2**64}, f"--seed={2**64}: must be at most {2**63 - 1}"),
    ({"n_embd": 10**9}, "--n_embd=1000000000: must be at most 65536"),
    ({"max_seq_len": 10**8}, "--max_seq_len=100000000: must be at most 1048576"),
    ({"max_seq_len": 0}, "--max_seq_len=0: must be at least 1"),
    ({"device_batch_size": 0}, "--device_batch_size=0"),
    ({"log_every": 0}, "--log_every=0"),
    ({"shuffle_window": 0}, "--shuffle_window=0"),
    ({"shuffle_window": 10**9}, "--shuffle_window=1000000000: must be at most 131072"),
    ({"matrix_lr": -0.1}, "--matrix_lr=-0.1: must be at least 0"),
    ({"vocab_size": -5}, "--vocab_size=-5: must be at least 0"),
    ({"warmup_ratio": 1.5}, "--warmup_ratio=1.5: must be at most 1"),
    ({"warmup_ratio": 0.6, "warmdown_ratio": 0.6}, "must not exceed the whole run"),
    ({"num_iterations": -1, "target_param_data_ratio": -1}, "this run has no end"),
    ({"num_iterations": 0, "target_param_data_ratio": 0, "time_limit": 5}, "this run has no end"),
    ({"resume": "d4", "model_tag": "mine"}, "leave out --model_tag"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE, ids=[str(c) for c, _ in IMPOSSIBLE])
def test_impossible_flags_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny_config(**changes)
    assert "\n" not in str(caught.value)


def test_several_processes_count_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    assert (accumulation_steps(config, 1), accumulation_steps(config, 2)) == (4, 2)
    assert evaluation_steps(config, 2) == 2
    assert evaluation_steps(replace(config, eval_tokens=-1), 1) == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"\* 3 processes = 96: take 96 or 192"):
        tiny_config()


def run_and_tell(arguments: list[str]) -> tuple[int, str, bool]:
    """Run scripts.base_train in a process of its own: exit status, stderr, whether torch was imported."""
    program = (
        "import runpy, sys\nsys.argv[1:] = sys.argv[1:]\nstatus = 0\n"
        "try: runpy.run_module('scripts.base_train', run_name='__main__')\n"
        "except SystemExit as error: status = error.code\n"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    status, imported = done.stdout.splitlines()[-1].split()
    return int(status), done.stderr, imported == "True"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--total-batch-size=500"], "take 480 or 512"),
        (["--dept=4"], "did you mean --depth"),
        (["--data=nowhere"], "there is no corpus 'nowhere'"),
        (["--vocab_size=264"], "--vocab_size=264: the smallest possible is 265"),
        (
            ["--eval_tokens=32000000"],
            "tokens to predict. Take --eval_tokens=-1 (all of them), or --eval_tokens=",
        ),
        (["--statistics"], "--statistics says more about what --trace prints: add --trace"),
        (["--trace", "--compile=true"], "--trace cannot look into compiled blocks: leave out --compile=true"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_torch_is_loaded(arguments: list[str], message: str) -> None:
    small = ["--device_batch_size=2", "--max_seq_len=16", "--data=tiny", "--vocab_size=300"]
    status, stderr, imported = run_and_tell(small + arguments)
    assert status == 2
    assert stderr.startswith("error: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not imported


def test_an_evaluation_must_fit_the_validation_text() -> None:
    wanted = 1_000_000 // 32 * 32
    with pytest.raises(
        UserError, match=rf"--eval_tokens={wanted}: .* has [\d,]+ tokens to predict"
    ) as caught:
        train(tiny_config(eval_tokens=wanted))
    have = int(re.search(r"has ([\d,]+) tokens", str(caught.value))[1].replace(",", ""))  # type: ignore[index]
    tokenizer = open_tokenizer(tiny_config())
    check = refuse_a_short_split
    fitting = have // 32 * 32
    assert str(caught.value).endswith(f"Take --eval_tokens=-1 (all of them), or --eval_tokens={fitting}")
    check(tiny_config(eval_tokens=fitting), tokenizer)
    with pytest.raises(UserError):
        check(tiny_config(eval_tokens=fitting + 32), tokenizer)
    check(tiny_config(eval_tokens=-1), tokenizer)
    check(tiny_config(eval_every=-1, eval_tokens=wanted), tokenizer)


def test_what_was_asked_for_is_missed_first() -> None:
    """A run or device that is not there is named before the size of an evaluation is."""
    too_many = 1_000_000 // 32 * 32
    with pytest.raises(UserError, match="no run 'nothing'"):
        train(tiny_config(eval_tokens=too_many, resume="nothing"))
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UserError, match=f"--device_type={absent}"):
        train(tiny_config(eval_tokens=too_many, device_type=absent))


# --- shape, horizon, schedule ----------------------------------------


def test_the_shape_follows_from_depth() -> None:
    for depth in range(1, 33):
        shape = model_shape(tiny_config(depth=depth, n_embd=0, n_head=0), 300)
        assert shape["n_embd"] == 64 * depth
        assert shape["n_embd"] % shape["n_head"] == 0
        assert shape["n_embd"] // shape["n_head"] % 2 == 0
        asked = max(1, math.ceil(64 * depth / 128))
        if 64 * depth % asked == 0:
            assert shape["n_head"] == asked
        assert shape["n_kv_head"] == shape["n_head"]
    assert model_shape(tiny_config(depth=5, n_embd=0, n_head=0), 300)["n_head"] == 4


def test_the_first_positive_horizon_decides() -> None:
    steps = planned_steps
    config = TrainConfig(num_iterations=7, target_flops=1e30)
    assert steps(config, 10**6, 10**6) == 7
    config = TrainConfig(target_flops=3e16)
    assert steps(config, 10**6, 10**8) == round(3e16 / (1e8 * 524288))
    for parameters, expected in ((36_700_160, 1400), (185_597_952, 7080), (560_988_160, 21400)):
        assert steps(TrainConfig(), parameters, 1) == expected  # the reference's table
    assert steps(TrainConfig(), 1, 1) == 1


def starts_moved(relative: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every weight begins that much above or below where it should."""
    start = normans_gpt.GPT.init_weights
    rng = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def moved(model: normans_gpt.GPT) -> None:
        start(model)
        for weight in model.parameters():
            weight.mul_(1 + relative * (torch.randint(2, weight.shape, generator=rng) * 2 - 1))

    monkeypatch.setattr(normans_gpt.GPT, "init_weights", moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.numerics
def test_accumulation_does_not_change_a_run(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of another size add the same numbers in another order, and Muon rounds the sum to its format.

    How much that may come to after four steps, the run itself tells: it is done again with all weights moved,
    at the beginning, by what rounding is worth in the longest sum, that over all positions.
    """
    monkeypatch.setattr(muon, "fastest_format", lambda device: dtype)

    def run(size: int) -> dict[str, torch.Tensor]:
        result = train(tiny_config(device_batch_size=size, num_iterations=4, save_every=-1, eval_every=-1))
        return {name: weight.detach().clone() for name, weight in result.model.named_parameters()}

    one, four = run(8), run(2)
    bound = dict.fromkeys(one, 0.0)
    for seed in range(3):
        with monkeypatch.context() as patch:
            starts_moved(sum_error(tiny_config().total_batch_size), seed, patch)
            for name, weight in run(8).items():
                bound[name] = max(bound[name], float((weight - one[name]).norm()))
    for name, weight in four.items():
        size = one[name].norm()
        assert (weight - one[name]).norm() <= bound[name], name
        assert bound[name] < (1e-4 if dtype == torch.float32 else 0.1) * size, "a mistake must be larger"


# --- a run ----------------------------------------

STEP_LINE = re.compile(
    r"step \d{5}/\d{5} \(\d+\.\d\d%\) \| loss: \d+\.\d{6} \| lrm: \d\.\d\d \| dt: \d+\.\d\dms"
    r" \| tok/sec: [\d,]+ \| mfu: \d+\.\d\d \| total time: \d+\.\d\dm"
)


def call_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["base_train", *arguments])
    base_train.main()


def test_the_quick_command(
    real_everything: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call_main([*QUICK_FLAGS, "--data=tiny", "--vocab_size=300"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 1
    assert STEP_LINE.fullmatch(steps[0])
    assert steps[0].startswith(f"step 00000/00001 (0.00%) | loss: {math.log(300):.4f}"[:-2])
    assert [line[:30] for line in lines if line.startswith("Step ")] == [
        "Step 00000 | Validation bpb: " + line[29]
        for line in (x for x in lines if x.startswith("Step 00000"))
    ] + ["Step 00001 | Validation bpb: " + next(x for x in lines if x.startswith("Step 00001"))[29]]
    for beginning in ("Peak memory usage: ", "Total training time: ", "Minimum validation bpb: "):
        assert sum(line.startswith(beginning) for line in lines) == 1
    assert not any("CORE" in line for line in lines)
    assert lines[-1].endswith("for a model that learns: --num_iterations=3")


def test_the_quick_command_takes_the_tokenizer_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    """As after `make train`, which made one of another size than the default."""
    call_main([*QUICK_FLAGS, "--data=tiny", "--save_every=1"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tokenizer: the one of 300 tokens that tiny has is taken")
    assert "vocabulary 300" in lines[1]
    run = max((base / "base_checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    assert load_checkpoint(run).meta["config"]["vocab_size"] == 300


def test_the_quick_command_makes_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer, "TRAINING_CHARS", 100_000)
    call_main([*QUICK_FLAGS, "--depth=1"], monkeypatch)
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == f"corpus: sotu is not here yet, so it is made in {tmp_path / 'base_data' / 'sotu'}"
    made = tmp_path / "tokenizers" / "sotu-4096"
    assert second == f"tokenizer: sotu has none of 4,096 tokens yet, so one is trained in {made}"
    assert "vocabulary 4,096" in third


def test_a_size_that_is_asked_for_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    train(tiny_config(vocab_size=290, num_iterations=1, save_every=-1))
    assert "tokenizer: tiny has none of 290 tokens yet" in capsys.readouterr().out
    train(tiny_config(vocab_size=290, num_iterations=1, save_every=-1))
    assert "tokenizer:" not in capsys.readouterr().out
    shutil.rmtree(base / "tokenizers" / "tiny-290")


def test_a_resumed_run_goes_on_with_its_own_tokenizer(base: Path) -> None:
    train(tiny_config(vocab_size=290, num_iterations=1, model_tag="own-tokenizer"))
    shutil.rmtree(base / "tokenizers" / "tiny-290")
    resumed = train(tiny_config(vocab_size=0, num_iterations=2, resume="own-tokenizer"))
    assert resumed.steps == 2
    assert not (base / "tokenizers" / "tiny-290").exists()


def test_core_is_said_to_be_missing_and_nothing_is_fetched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("download_bundle", "fetch_package"):
        monkeypatch.setattr(core_tasks, name, lambda: pytest.fail("a training run downloads"))
    assert train(tiny_config(core_metric_every=2, num_iterations=2)).core is None
    said = capsys.readouterr().out.splitlines()
    assert sum("CORE metric: its questions are not here" in line for line in said) == 1
    assert train(tiny_config(core_metric_every=3, num_iterations=2)).core is None
    assert "CORE" not in capsys.readouterr().out  # shorter than the interval


def test_core_is_asked_when_its_questions_are_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "eval_bundle.zip"
    bundle.write_bytes(zipped_bundle())
    monkeypatch.setattr(core_tasks, "saved_bundle", lambda: bundle)
    flags = {"core_metric_every": 3, "core_metric_max_per_task": 4, "eval_every": -1}
    result = train(tiny_config(num_iterations=7, max_seq_len=32, total_batch_size=64, **flags))
    title = "CORE subset (3 of 22 tasks)"
    said = [line for line in capsys.readouterr().out.splitlines() if "CORE" in line]
    assert [line.split(": ")[0] for line in said] == [
        f"Step {step:05d} | {title} metric" for step in (3, 6, 7)
    ]
    kept = [record for record in read_metrics(result.folder) if "core_subset" in record]
    assert [record["step"] for record in kept] == [3, 6, 7]
    assert [f"{record['core_subset']:.4f}" for record in kept] == [line.split(": ")[1] for line in said]
    assert result.core is not None
    assert (result.core.score, result.core.title) == (kept[-1]["core_subset"], title)
    assert [task.items + task.left_out for task in result.core.tasks] == [4, 4, 4]
    short = train(tiny_config(num_iterations=3, max_seq_len=4, device_batch_size=8, **flags))
    assert short.finished
    assert short.core is not None
    assert (len(short.core.tasks), len(short.core.left_out)) == (1, 2)
    out = capsys.readouterr().out
    assert "CORE subset (1 of 22 tasks) metric: 0." in out
    assert "; no item of copa fits into the model's context" in out


def test_the_trace_shows_the_model_up_to_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []
    real = looks.evaluate

    def evaluate(*arguments: Any) -> float:
        seen.append(sys.getprofile() is None)
        return real(*arguments)

    monkeypatch.setattr(looks, "evaluate", evaluate)
    traced = train(tiny_config(trace=True, num_iterations=2, eval_every=1, compile="auto"))
    lines = capsys.readouterr().out.splitlines()
    debug = [line for line in lines if line.startswith("[DEBUG]")]
    called = [line.removeprefix("[DEBUG] ") for line in debug if line.endswith("() called")]
    outermost = [line for line in called if not line.startswith(" ")]
    passes = accumulation_steps(tiny_config(), 1)
    assert [line for line in outermost if line.startswith("GPT")] == [
        "GPTConfig.__post_init__() called",
        "GPT.__init__() called",
        "GPT.init_weights() called",
        "GPT.setup_optimizers() called",
        "GPT.estimate_flops() called",
        *["GPT.forward() called"] * passes,
    ]
    assert "[DEBUG]   idx.shape: torch.Size([2, 16]) int64" in debug
    assert not any(" std " in line for line in debug)
    assert lines.index(debug[-1]) < next(i for i, line in enumerate(lines) if line.startswith("step 00000"))
    assert seen == [True, True, True]  # off during evaluation
    assert not traced.compiled
    plain = train(tiny_config(num_iterations=2, eval_every=1))
    assert "[DEBUG]" not in capsys.readouterr().out
    assert records(plain.folder) == records(traced.folder)  # looking changes nothing
    train(tiny_config(trace=True, statistics=True, num_iterations=1, eval_every=-1))
    assert re.search(r"DEBUG\].*float32 mean \S+ std \S+ max ", capsys.readouterr().out)


def test_a_run_learns_and_leaves_its_records(
    real_everything: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tiny_config(num_iterations=30, sample_every=30, eval_every=10, log_every=10))
    assert result.finished
    assert (result.steps, result.tokens) == (30, 30 * 128)
    kept = read_metrics(result.folder)
    losses = [r["loss"] for r in kept if "loss" in r]
    assert losses[0] == pytest.approx(math.log(300), abs=1e-5)
    assert losses[-1] < losses[0] - 1
    scores = {r["step"]: r["val_bpb"] for r in kept if "val_bpb" in r}
    assert list(scores) == [0, 10, 20, 30]
    assert result.val_bpb == scores[30]
    assert result.min_val_bpb == min(scores.values())
    assert {"loss", "smooth_loss", "lrm", "grad_norm", "dt_ms", "tok_per_sec", "mfu", "seconds"} <= set(
        kept[1]
    )
    assert (result.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(result.samples) == len(looks.PROMPTS)
    assert "--- step 30" in (result.folder / "samples.txt").read_text()
    assert (result.folder / "tokenizer" / "tokenizer.json").exists()
    out = capsys.readouterr().out.splitlines()
    assert [line[:16] for line in out if line.startswith("step ")] == [
        f"step {n:05d}/00030" for n in (0, 10, 20)
    ]
    state = load_checkpoint(result.folder)
    assert state.step == 30
    assert state.meta["model"]["n_embd"] == 32
    assert state.meta["config"]["depth"] == 1


@pytest.mark.numerics
def test_gradients_reach_every_parameter_by_the_third_step() -> None:
    config = tiny_config(num_iterations=3, depth=2, save_every=1, warmdown_ratio=0)
    result = train(config)
    first, last = (load_checkpoint(result.folder, step).model for step in (1, 3))
    assert len(first) == 2 + 2 * 6
    for name in first:
        assert not torch.equal(first[name], last[name]), name


class Faulty:
    """Makes some steps of a run fail as they would if their gradients were no numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
        real = Stepper.step

        def step(one: Stepper, batches: Any, passes: int, number: int, *more: float) -> Any:
            if number in steps:
                with torch.no_grad():
                    hook = next(one.model.parameters()).register_hook(lambda gradient: gradient * math.nan)
            outcome = real(one, batches, passes, number, *more)
            if number in steps:
                hook.remove()
            return outcome

        monkeypatch.setattr(Stepper, "step", step)


def test_a_step_without_numbers_is_left_out_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Faulty(monkeypatch, (2, 5, 7))
    result = train(tiny_config(save_every=1))
    out = capsys.readouterr().out
    for step in (2, 5, 7):
        assert re.search(rf"step {step} has a loss of \S+ and a gradient of length nan: it is left out", out)
    assert result.steps == 8
    assert math.isfinite(result.loss)
    for step in range(1, 9):
        assert all(weight.isfinite().all() for weight in load_checkpoint(result.folder, step).model.values())
    lines = (result.folder / "metrics.jsonl").read_text()
    assert "NaN" not in lines
    assert [r["step"] for r in read_metrics(result.folder) if "skipped" in r] == [2, 5, 7]
    assert [r["step"] for r in read_metrics(result.folder) if "loss" in r] == [0, 1, 3, 4, 6]


def test_two_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Faulty(monkeypatch, (3, 4))
    with pytest.raises(UserError, match=r"step 4 has .* lower the learning rates .* state is that of step 5"):
        train(tiny_config(save_every=3))


@pytest.mark.numerics
def test_the_clock_can_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which every reading takes a twentieth of a second."""
    monkeypatch.setattr(run_module, "time", Clock(reading=0.05))
    result = train(tiny_config(num_iterations=1_000_000, time_limit=3, eval_every=1_000_000, save_every=-1))
    assert result.finished
    assert 2.5 < result.seconds < 3.5
    rates = [r["lrm"] for r in read_metrics(result.folder) if "lrm" in r]
    assert 10 < len(rates) < 30
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.3  # the warmdown happened although only some steps of a million did


def test_the_limit_holds_the_last_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(reading=0.02)

    def slow(*arguments: object) -> float:
        clock.wait(1.5)
        return 2.0

    monkeypatch.setattr(run_module, "time", clock)
    monkeypatch.setattr(looks, "evaluate", slow)
    result = train(tiny_config(num_iterations=1_000_000, time_limit=4, eval_every=1_000_000, save_every=-1))
    begun = [r["seconds"] for r in read_metrics(result.folder) if "loss" in r]
    assert 2 < begun[-1] < 4 - 1.5  # a step begun later would have pushed the evaluation over the limit
    assert result.seconds < 4 + 0.2  # and what is read of the clock after it


def test_all_processes_take_the_latest_clock_and_any_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(values: torch.Tensor, operation: object) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        values.copy_(torch.maximum(values, torch.tensor([9.5, 15.0], dtype=values.dtype)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    device = torch.device("cpu")
    assert largest([3.0, 0.0], Ranks(0, 0, 2), device) == [9.5, 15.0]
    assert largest([10.0, 2.0], Ranks(0, 0, 2), device) == [10.0, 15.0]
    assert largest([3.0, 0.0], Ranks(), device) == [3.0, 0.0]


def test_a_fresh_run_takes_a_fresh_folder() -> None:
    names = [train(tiny_config(num_iterations=1, depth=2, eval_every=-1)).tag for _ in range(2)]
    number = [int(name.removeprefix("d2-")) if name != "d2" else 1 for name in names]
    assert number[1] == number[0] + 1
    assert train(tiny_config(num_iterations=1, model_tag="mine", eval_every=-1)).tag == "mine"
    with pytest.raises(UserError, match="already holds a run"):
        train(tiny_config(num_iterations=1, model_tag="mine", eval_every=-1))


# --- stopping and going on ----------------------------------------


def same_state(a: Path, b: Path) -> None:
    """Assert that the last checkpoints of two runs hold the same bits, and their metrics the same numbers."""
    left, right = load_checkpoint(a), load_checkpoint(b)
    assert left.step == right.step
    assert left.model.keys() == right.model.keys()
    for name in left.model:
        assert torch.equal(left.model[name], right.model[name]), name
    for x, y in zip(left.optimizers, right.optimizers, strict=True):
        assert x["param_groups"] == y["param_groups"]
        assert x["state"].keys() == y["state"].keys()
        for number, entries in x["state"].items():
            for name, value in entries.items():
                assert torch.equal(value, y["state"][number][name]), (number, name)
    assert torch.equal(left.tensors["cpu"], right.tensors["cpu"])
    assert left.meta["loader"] == right.meta["loader"]
    for key in ("min_val_bpb", "smooth_loss", "evaluated_at"):
        assert left.meta["progress"][key] == right.meta["progress"][key]
    assert records(a) == records(b)


@pytest.fixture(scope="module")
def unstopped(base: Path) -> Path:
    """The folder of a run of 8 steps that nobody stopped."""
    return train(tiny_config(save_every=3, sample_every=4, shuffle_window=8)).folder


def copy_of(run: Path, name: str, last_step: int) -> Path:
    """The run as it was when it had just saved `last_step`, but with metrics it wrote later."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    for path in copy.glob("*_0*"):
        if int(path.name.split("_")[1].split(".")[0]) > last_step:
            path.unlink()
    return copy


RESUMED = {"save_every": 3, "sample_every": 4, "shuffle_window": 8}


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.numerics
def test_a_resumed_run_ends_with_the_same_bits(unstopped: Path, step: int) -> None:
    copy = copy_of(unstopped, f"copy-{step}", step)
    result = train(tiny_config(**RESUMED, resume=copy.name))
    assert result.folder == copy
    same_state(copy, unstopped)
    assert (copy / "metrics-abandoned.jsonl").exists()


def test_a_damaged_checkpoint_costs_only_its_steps(
    unstopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(unstopped, "copy-damaged", 6)
    path = copy / "optim_000006.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    train(tiny_config(**RESUMED, resume=copy.name))
    captured = capsys.readouterr()
    assert captured.err.count("warning: ") == 1
    assert "optim_000006.safetensors" in captured.err
    assert "going on at step 3" in captured.out
    same_state(copy, unstopped)


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, at_call: int, number: int) -> None:
    """Send this process a signal when `name`, as in "step.update", is called for the at_call-th time."""
    place, name = name.split(".")
    module = {"step": step_module, "looks": looks}[place]
    real: Callable[..., Any] = getattr(module, name)
    calls = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            os.kill(os.getpid(), number)
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, wrapper)


@pytest.mark.parametrize(
    ("where", "at_call", "step", "number"),
    [
        ("step.accumulate_gradients", 6, 5, signal.SIGINT),
        ("step.whole", 6, 6, signal.SIGTERM),
        ("looks.evaluate", 2, 4, signal.SIGHUP),
        ("looks.sample", 1, 4, signal.SIGINT),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_was(
    unstopped: Path,
    where: str,
    at_call: int,
    step: int,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt(patch, where, at_call, number)
        stopped = train(tiny_config(save_every=-1, sample_every=4, shuffle_window=8))
    assert not stopped.finished
    assert (stopped.signal, stopped.steps) == (number, step)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(stopped.folder).step == step
    out = capsys.readouterr().out
    assert f"stopped by {signal.Signals(number).name} at step {step}" in out
    command = next(line for line in out.splitlines() if line.startswith("to go on: "))
    arguments = command.removeprefix("to go on: python -m scripts.base_train ").split()
    assert f"--resume={stopped.tag}" in arguments
    call_main([*arguments, "--save_every=3"], monkeypatch)
    same_state(stopped.folder, unstopped)


def test_a_signal_before_the_first_step_saves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, "looks.evaluate", 1, signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        call_main(flags(tiny_config()), monkeypatch)
    assert caught.value.code == 130
    assert "to go on" not in capsys.readouterr().out


def test_the_second_signal_is_not_caught() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals(Ranks()) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 2}, "--depth is 2 here and 1 there"),
        ({"n_embd": 64}, "--n_embd is 64 here and 32 there"),
        ({"max_seq_len": 32, "n_kv_head": 1}, "--max_seq_len is 32 here and 16 there; --n_kv_head is 1 here"),
        ({"seed": 7}, "--seed is 7 here and 42 there"),
        ({"shuffle_window": 4}, "--shuffle_window is 4 here and 8 there"),
    ],
)
def test_another_models_checkpoint_is_refused_by_field(
    unstopped: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        train(tiny_config(**({"shuffle_window": 8} | changes), resume=unstopped.name))


def test_resuming_what_is_not_there() -> None:
    with pytest.raises(UserError, match="no run 'nothing'"):
        train(tiny_config(resume="nothing"))


def test_the_schedules_reach_the_optimizers(unstopped: Path) -> None:
    adamw, muon = load_checkpoint(unstopped).optimizers
    last = Schedule(warmdown=tiny_config().warmdown_ratio).multiplier(7 / 8, 1 / 8)
    assert 0 < last < 1
    for group in adamw["param_groups"] + muon["param_groups"]:
        assert group["lr"] == group["initial_lr"] * last
    assert muon["param_groups"][0]["momentum"] == muon_momentum(7)


def test_a_resumed_run_obeys_new_learning_rates(unstopped: Path) -> None:
    copy = copy_of(unstopped, "copy-rates", 6)
    train(tiny_config(**RESUMED, resume=copy.name, matrix_lr=0.5, warmdown_ratio=0))
    muon = load_checkpoint(copy).optimizers[1]["param_groups"][0]
    assert (muon["initial_lr"], muon["lr"]) == (0.5, 0.5)


# --- metrics, peaks, compiling ----------------------------------------


def test_metrics_after_a_crash(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for step in range(4):
        log.write(step=step, loss=5.0 - step, smooth_loss=5.0)
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # the machine stopped here
    assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1, 2, 3]
    log = RunLog(tmp_path, 2)
    log.write(step=2, loss=1.0, smooth_loss=5.0)
    log.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(0, 5.0), (1, 4.0), (2, 1.0)]
    abandoned = (tmp_path / "metrics-abandoned.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in abandoned[:2]] == [3.0, 2.0]
    assert plot_metrics(tmp_path) == tmp_path / "loss.png"
    silent = RunLog(tmp_path / "nowhere", 0, enabled=False)
    silent.write(step=0, loss=1.0)
    silent.close()
    assert not (tmp_path / "nowhere").exists()


def test_one_point_is_no_curve(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0, "smooth_loss": 1.0}\n')
    assert plot_metrics(tmp_path) is None


def test_when_compiling_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "compiler_works", lambda device: True)
    cpu, cuda, mps = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
    pays = workplace.worth_compiling
    auto = tiny_config(compile="auto")
    assert [pays(auto, cpu, 1), pays(auto, cpu, 1e4), pays(auto, cuda, 1), pays(auto, mps, 1e4)] == [
        0,
        1,
        1,
        0,
    ]
    assert pays(tiny_config(compile="true"), cpu, 1)
    assert not pays(tiny_config(compile="false"), cuda, 1e4)
    monkeypatch.setattr(workplace, "compiler_works", lambda device: False)
    assert not pays(auto, cpu, 1e4)


def test_a_missing_compiler_is_survived(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no C++ compiler\nand forty more lines")

    monkeypatch.setattr(torch, "compile", broken)
    assert not workplace.compiler_works(torch.device("cpu"))
    assert capsys.readouterr().out.count("\n") == 1


# --- memory ---------------------------------------


# Four processes, each as if it had imported PyTorch itself and made no tensor yet.
LARGE_TENSORS = """
import os, resource, sys, torch
from nanochat.workplace import prepare_memory
def look(how):
    if how == "refused":
        os.environ["THP_MEM_ALLOC_ENABLE"] = "0"
    if how != "unprepared":
        prepare_memory(torch.device("cpu"), reuse=how == "reuse")
    kept = torch.ones(2**24)
    flags, inside = "", False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            inside = low <= kept.data_ptr() + kept.nbytes // 2 < high
        elif inside and line.startswith("VmFlags:"):
            flags = line
    torch.ones(2**24)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    print(how, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began, "hg" in flags.split(), flush=True)
for how in sys.argv[1:]:
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        look(how)
        os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux counts them")
def test_large_tensors_are_cheap_to_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)

    ways = ["unprepared", "reuse", "return", "refused"]
    command = [sys.executable, "-c", LARGE_TENSORS, *ways]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in said] == ways
    # Of each: page faults of four tensors of 64 MiB, and whether large pages were asked for.
    seen = {how: (int(faults), large) for how, faults, large in map(str.split, said)}
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    there = str(folder.exists())
    unasked = folder.exists() and "[always]" in (folder / "enabled").read_text()
    pages = 4 * 2**26 // os.sysconf("SC_PAGESIZE")
    faults, large = seen["unprepared"]
    assert (faults >= pages or unasked, large) == (True, "False"), "the count works"
    faults, large = seen["reuse"]
    assert (faults < pages / 100, large) == (True, there)
    assert seen["return"][1] == there
    faults, large = seen["refused"]
    assert (faults >= pages or unasked, large) == (True, "False"), "what a person sets holds"


RELEASED = """
import torch
from nanochat.workplace import prepare_memory, release_memory
prepare_memory(torch.device("cpu"))
def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))
began = held()
kept = []
for _ in range(4):
    large = torch.ones(2**24)
    kept.append(torch.ones(2**10))  # so that what is freed is a gap, and not the top of the heap
    kept.append(large)
del large
kept = kept[::2]
print(held() - began)
release_memory(torch.device("cpu"))
print(held() - began)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
def test_freed_memory_is_kept_until_it_is_released() -> None:
    command = [sys.executable, "-c", RELEASED]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(before) > 4 * 64 - 16, "MiB"
    assert int(after) < 32


def test_memory_is_released_after_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    really = step_module.accumulate_gradients

    def accumulate(*args: Any) -> Any:
        events.append("step")
        return really(*args)

    monkeypatch.setattr(step_module, "accumulate_gradients", accumulate)
    monkeypatch.setattr(run_module, "release_memory", lambda device: events.append("release"))
    train(tiny_config(num_iterations=9, eval_every=4, save_every=6, sample_every=-1, model_tag="released"))
    steps = [events[:place].count("step") for place, event in enumerate(events) if event == "release"]
    assert steps == [0, 1, 4, 6, 8], "after the first evaluation, the first step, an evaluation, a checkpoint"
