"""The life of a run: saved before anything optional, ended well whatever ends it, resumed as what it was."""

from __future__ import annotations

import ast
import json
import math
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager, looks
from nanochat import run as run_module
from nanochat.agreement import Signals, one_fate
from nanochat.checkpoint_manager import load_checkpoint, saved_steps
from nanochat.common import CannotWrite, Ranks, UserError
from nanochat.dataset import corpus_folder, prepare_folder
from nanochat.run import differences
from nanochat.run_log import read_metrics
from nanochat.run_state import Decisions, Progress, read_state
from nanochat.step import Stepper
from nanochat.train_config import TrainConfig
from scripts import base_train
from scripts.base_train import train
from tests.tiny_run import Clock, flags, own_base, records, tiny_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield folder


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "peak_flops", lambda device, dtype: (1e11, "measured"))
    monkeypatch.setattr(run_module, "plot_metrics", lambda folder: None)


def broken(*arguments: object) -> Any:
    raise RuntimeError("out of luck\nand more lines of it")


# --- save first ----------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        (looks, "evaluate", "evaluation at step 0"),
        (looks, "sample", "samples at step 4"),
        (looks, "core_score", "core at step 4"),
        (run_module, "plot_metrics", "the picture of the loss"),
    ],
)
def test_what_is_optional_may_fail(
    module: Any, name: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tasks:
        title, whole = "CORE", True

    monkeypatch.setattr(looks, "load_tasks", lambda may_fetch: Tasks())
    if name != "core_score":
        monkeypatch.setattr(looks, "core_score", lambda *_: (_ for _ in ()).throw(UserError("none today")))
    monkeypatch.setattr(module, name, broken)
    config = tiny_config(num_iterations=4, save_every=2, sample_every=0, core_metric_every=4)
    result = train(config)
    assert result.finished
    assert result.failures[0] == f"{what}: RuntimeError: out of luck"
    out = capsys.readouterr().out
    assert f"did not work: {what}: RuntimeError: out of luck\n" in out
    assert out.count("out of luck") == len(result.failures)
    assert load_checkpoint(result.folder).step == 4
    with pytest.raises(SystemExit) as caught:
        result.leave()
    assert caught.value.code == 1


@pytest.mark.numerics
def test_a_checkpoint_comes_before_everything_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended as by SIGKILL in a look, a run has what it had learned; it looks again when it goes on."""
    unbroken = train(tiny_config(save_every=4, sample_every=4, model_tag="not-killed"))

    class Killed(BaseException):
        pass

    def kill(*_: object) -> Any:
        raise Killed

    for name, tag in (("evaluate", "killed-1"), ("sample", "killed-2")):
        with monkeypatch.context() as patch:
            real, calls = getattr(looks, name), iter(range(10))
            patch.setattr(
                looks, name, lambda *a, real=real, calls=calls: kill() if next(calls) == 1 else real(*a)
            )
            patch.setattr(run_module.Run, "rescue", lambda self: None)
            with pytest.raises(Killed):
                train(tiny_config(save_every=4, sample_every=4, model_tag=tag))
        folder = unbroken.folder.parent / tag
        step = {"evaluate": 4, "sample": 8}[name]
        assert saved_steps(folder)[-1] == step
        train(tiny_config(save_every=4, sample_every=4, resume=tag))
        assert records(folder) == records(unbroken.folder)
        assert (folder / "samples.txt").read_text() == (unbroken.folder / "samples.txt").read_text()


def test_what_was_seen_is_added_to_the_checkpoint() -> None:
    result = train(tiny_config(save_every=4, sample_every=4))
    for step in (4, 8):
        progress = load_checkpoint(result.folder, step).meta["progress"]
        assert progress["evaluated_at"] == progress["sampled_at"] == step
        assert progress["val_bpb"] is not None
        assert {"evaluation", "samples", "checkpoint"} <= set(progress["costs"])
    assert result.train_seconds < progress["seconds"] <= result.seconds
    assert progress["samples_size"] == (result.folder / "samples.txt").stat().st_size
    again = train(tiny_config(save_every=4, sample_every=4, resume=result.tag))
    assert (again.steps, again.core) == (8, None)
    assert (result.folder / "samples.txt").read_text().count("--- step") == 2


def test_seconds_hold_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only an evaluation and samples move."""
    clock = Clock(reading=0.0001)
    monkeypatch.setattr(run_module, "time", clock)
    monkeypatch.setattr(looks, "evaluate", lambda *_: clock.wait(7.0) and 2.0)
    monkeypatch.setattr(looks, "sample", lambda *_: clock.wait(30.0) and ["text"])
    result = train(tiny_config(num_iterations=2, eval_every=0, sample_every=0, save_every=0))
    kept = load_checkpoint(result.folder).meta["progress"]
    assert 37 < kept["seconds"] < 37.2
    assert kept["costs"]["evaluation"] == pytest.approx(7, abs=0.01)
    resumed = train(tiny_config(num_iterations=3, eval_every=-1, save_every=0, resume=result.tag))
    assert 37 < resumed.seconds < 37.4


def test_looking_does_not_move_the_random_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(model: object, tokenizer: object, place: Any) -> list[str]:
        with place.looking():
            torch.rand(3)
        return ["text"]

    plain = train(tiny_config(eval_every=-1))
    monkeypatch.setattr(looks, "sample", noisy)
    sampled = train(tiny_config(eval_every=-1, sample_every=1))
    a, b = (load_checkpoint(one.folder).tensors["cpu"] for one in (plain, sampled))
    assert torch.equal(a, b)


def test_checkpoints_by_the_clock_and_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which only steps take time, two seconds each."""
    clock = Clock(reading=0.0)
    real = Stepper.step
    monkeypatch.setattr(run_module, "time", clock)
    monkeypatch.setattr(Stepper, "step", lambda *a: (clock.wait(2.0), real(*a))[1])
    scores = iter([9.0, 3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(looks, "evaluate", lambda *_: next(scores))
    monkeypatch.setattr(run_module, "peak_flops", lambda device, dtype: (1e11, "measured"))
    config = tiny_config(num_iterations=15, eval_every=3, save_every=-1, save_seconds=6)
    assert saved_steps(train(config).folder) == [3, 6, 9, 12, 15]
    scores = iter([9.0, 3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    kept = train(replace(config, keep=2))
    assert saved_steps(kept.folder) == [6, 12, 15]  # the best one and the last two
    assert load_checkpoint(kept.folder).meta["progress"]["best_at"] == 6
    scores = iter([9.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3])
    assert saved_steps(train(replace(config, keep=1)).folder) == [15]


# --- what cannot be written, what is no number ----------------------------------------


def test_a_full_disk_costs_a_save_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, refused, waits = run_module.save_checkpoint, [2, 6, 6], list[float]()

    def save(folder: Path, step: int, *rest: Any) -> Path:
        if step in refused:
            refused.remove(step)
            raise CannotWrite("no space left")
        return real(folder, step, *rest)

    monkeypatch.setattr(run_module, "save_checkpoint", save)
    monkeypatch.setattr(checkpoint_manager.time, "sleep", waits.append)
    result = train(tiny_config(num_iterations=6, save_every=2, eval_every=-1))
    out = capsys.readouterr().out
    assert "did not work: the checkpoint of step 2: no space left" in out
    assert saved_steps(result.folder) == [4, 6]
    assert len(waits) == 2
    assert len(result.failures) == 1


def test_metrics_that_cannot_be_written_end_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = run_module.RunLog

    class Full(real):  # type: ignore[valid-type, misc]
        file: Any

        def write(self, step: int, **numbers: float) -> None:
            if self.records == 3 and not self.failure:
                self.file.close()
                self.file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
            super().write(step, **numbers)

    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    monkeypatch.setattr(run_module, "RunLog", Full)
    result = train(tiny_config(save_every=4))
    assert result.steps == 8
    assert result.failures == ["metrics.jsonl: OSError: [Errno 28] No space left on device"]
    assert load_checkpoint(result.folder).meta["progress"]["records"] == 3
    assert len(read_metrics(result.folder)) == 3
    monkeypatch.undo()
    again = train(tiny_config(num_iterations=9, save_every=4, resume=result.tag))
    assert [r["step"] for r in read_metrics(result.folder)][-1] == 9
    assert not again.failures


def test_weights_that_are_no_numbers_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Stepper.step

    def spoil(one: Stepper, batches: Any, passes: int, number: int, *rest: float) -> Any:
        outcome = real(one, batches, passes, number, *rest)
        if number == 4:
            with torch.no_grad():
                next(one.model.parameters())[0, 0] = math.inf
        return outcome

    monkeypatch.setattr(Stepper, "step", spoil)
    with pytest.raises(UserError, match=r"so step 5 is not saved: lower .* state is that of step 4"):
        train(tiny_config(save_every=1, eval_every=-1, model_tag="spoilt"))
    folder = checkpoint_manager.find_run("spoilt")
    assert saved_steps(folder) == [1, 2, 3, 4]


@pytest.mark.numerics
def test_an_error_between_two_steps_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = train(tiny_config(save_every=8, model_tag="no-error"))
    real = Stepper.step
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", lambda *a: broken() if a[3] == 5 else real(*a))
        with pytest.raises(RuntimeError, match="out of luck"):
            train(tiny_config(save_every=8, model_tag="error"))
    out = capsys.readouterr().out
    assert "the state of step 5 is saved" in out
    assert "to go on: python -m scripts.base_train --resume=error" in out
    train(tiny_config(save_every=8, resume="error"))
    folder = unbroken.folder.parent / "error"
    assert records(folder) == records(unbroken.folder)
    one, two = load_checkpoint(folder), load_checkpoint(unbroken.folder)
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)


def test_half_a_step_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.optim.AdamW.step
    calls = iter(range(20))
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda *a, **k: broken() if next(calls) == 5 else real(*a, **k)
    )
    with pytest.raises(RuntimeError):
        train(tiny_config(save_every=4, eval_every=-1, model_tag="half"))
    assert saved_steps(checkpoint_manager.find_run("half")) == [4]


# --- going on with what it was ----------------------------------------


@pytest.fixture
def run() -> Iterator[Path]:
    folder = train(tiny_config(num_iterations=2, save_every=2, eval_every=-1)).folder
    yield folder
    shutil.rmtree(folder)


def test_another_text_is_refused(run: Path, base: Path) -> None:
    """One word of one text has changed; the corpus has the name it had."""
    folder, text = corpus_folder("tiny"), base / "texts" / "07.txt"
    kept, before = folder.with_name("kept"), text.read_text()
    folder.rename(kept)
    try:
        text.write_text(before.replace("money", "honey", 1))
        prepare_folder(text.parent, "tiny")
        with pytest.raises(UserError, match=r"the text of tiny is not .* put the old files back") as caught:
            train(tiny_config(resume=run.name))
        assert "\n" not in str(caught.value)
    finally:
        text.write_text(before)
        shutil.rmtree(folder)
        kept.rename(folder)
    assert train(tiny_config(resume=run.name, eval_every=-1)).steps == 8


def change(run: Path, part: str, **changes: Any) -> None:
    """Rewrite what a run's checkpoints say of it, with checksums that match."""
    for step in saved_steps(run):
        record = checkpoint_manager.read_record(run, step)
        record["meta"][part] |= changes
        text = json.dumps({"sha256": checkpoint_manager.digest(record), **record})
        (run / checkpoint_manager.file_name("meta", step)).write_text(text)


def test_what_only_rounds_differently_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    train(tiny_config(num_iterations=3, resume=run.name, eval_every=-1))
    assert "not as it was saved" not in capsys.readouterr().out
    change(run, "decisions", threads=threads + 3, torch="1.0", world_size=4)
    train(tiny_config(num_iterations=4, resume=run.name, eval_every=-1))
    said = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("not as it was saved")
    )
    for part in (
        f"threads was {threads + 3} and is {threads}",
        f"torch was '1.0' and is '{torch.__version__}'",
        "world_size was 4 and is 1",
    ):
        assert part in said


def test_a_flag_with_another_value_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that was left out, too, which has its default again."""

    def said(**changes: Any) -> list[str]:
        config = tiny_config(num_iterations=2, save_every=2, eval_every=-1)
        train(replace(config, resume=run.name, **changes))
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith("flags with another value than before: ")]

    assert said() == []
    (line,) = said(matrix_lr=0.5, save_every=TrainConfig.save_every)
    assert line.endswith(": save_every was 2 and is 2000; matrix_lr was 0.02 and is 0.5")


def test_the_choice_to_compile_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(run_module, "compile_blocks", lambda model: compiled.append(True))
    monkeypatch.setattr(run_module, "worth_compiling", lambda *_: pytest.fail("it is decided already"))
    change(run, "decisions", compiled=True)
    assert train(tiny_config(num_iterations=3, resume=run.name, eval_every=-1, compile="auto")).compiled
    assert compiled == [True]


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("progress", {"step": "two"}, "step is 'two', wanted int"),
        ("progress", {"costs": None}, "costs is None, wanted dict"),
        ("progress", {"costs": {"core": "2"}}, "costs is {'core': '2'}, wanted dict"),
        ("progress", {"step": True}, "step is True, wanted int"),
        ("decisions", {"compiled": 1}, "compiled is 1, wanted bool"),
    ],
)
def test_a_state_of_wrong_types_is_refused(run: Path, part: str, changes: dict[str, Any], said: str) -> None:
    change(run, part, **changes)
    with pytest.raises(UserError, match=rf"{part}: {said}.*: go on from another"):
        train(tiny_config(resume=run.name))


def test_states_survive_json() -> None:
    progress = Progress(step=3, val_bpb=None, min_val_bpb=1, costs={"core": 2.0})
    there = json.loads(json.dumps(run_module.asdict(progress)))
    assert read_state(Progress, there, ROOT) == progress
    assert read_state(Progress, {"step": 4, "of a later version": 1}, ROOT) == Progress(step=4)
    with pytest.raises(UserError):
        read_state(Decisions, {"device": "cpu"}, ROOT)
    assert differences({"a": 2, "b": ""}, {"a": 4, "b": "x", "c": 1}, ["a", "c"]) == ["a was 2 and is 4"]


def test_samples_are_not_kept_twice(tmp_path: Path) -> None:
    size = looks.keep_samples(tmp_path, 2, ["one\n--- step 9\n"], 0)
    end = looks.keep_samples(tmp_path, 4, ["two"], size)
    text = (tmp_path / "samples.txt").read_text()
    assert (text.count("--- step 2"), text.count("--- step 4")) == (1, 1)
    assert looks.keep_samples(tmp_path, 4, ["two"], size) == end
    assert (tmp_path / "samples.txt").read_text() == text


# --- signals and ranks, in one process ----------------------------------------


def test_a_signal_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with Signals(Ranks()) as signals:
            signal.raise_signal(number)
            assert signals.received == number
        name = signal.Signals(number).name
        assert f"{name}: finishing this step, then saving" in capfd.readouterr().err


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(Ranks()) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_command_to_go_on_names_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(resume="d1")
    plain = run_module.command_line(config, "scripts.base_train")
    assert plain.startswith("python -m scripts.base_train --resume=d1 ")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    said = run_module.command_line(config, "scripts.base_train", 2)
    assert said.startswith("torchrun --nproc_per_node=2 -m scripts.base_train --resume=d1 ")
    assert run_module.command_line(config, "x", 4).startswith("torchrun --nnodes=2 --nproc_per_node=2 -m x ")


def test_one_fate(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Any] = []

    def gather(said: list[Any], own: Any) -> None:
        said[:] = [own, *others]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    two = Ranks(0, 0, 2)
    others = [("", 0)]
    with one_fate(two, Signals(two)):
        pass
    others = [("error no such file", 0)]
    with pytest.raises(UserError, match="process 1: no such file"), one_fate(two, Signals(two)):
        pass
    others, signals = [("stop", 15)], Signals(two)
    with pytest.raises(run_module.Interrupted), one_fate(two, signals):
        pass
    assert signals.received == 15
    others = [("", 0)]
    with pytest.raises(KeyError), one_fate(two, Signals(two)):
        raise KeyError("own")


# --- the house ----------------------------------------


def test_the_loop_and_its_methods_are_short() -> None:
    for path in ("run", "looks", "agreement", "workplace", "step", "run_log"):
        tree = ast.parse((ROOT / "nanochat" / f"{path}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                assert length <= (40 if node.name in ("rounds", "live") else 60), (path, node.name, length)
                taken = [one.arg for one in node.args.args if one.arg != "self"]
                assert len(taken) <= 6, (path, node.name)
                assert not any(isinstance(part, ast.Nonlocal) for part in ast.walk(node))


def test_base_train_ends_with_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "evaluate", broken)
    monkeypatch.setattr(sys, "argv", ["base_train", *flags(tiny_config())])
    with pytest.raises(SystemExit) as caught:
        base_train.main()
    assert caught.value.code == 1


def test_a_copied_run_is_not_the_latest(run: Path, base: Path) -> None:
    copy = run.with_name("a copy of it")
    shutil.copytree(run, copy)
    try:
        assert checkpoint_manager.find_run("latest") == run
        assert checkpoint_manager.find_run("a copy of it") == copy
        change(copy, "run", saved=4e9)
        assert checkpoint_manager.find_run("latest") == copy
        with pytest.raises(UserError, match="no run"):
            checkpoint_manager.find_run("../base_checkpoints")
    finally:
        shutil.rmtree(copy)


def test_a_missing_tokenizer_is_not_replaced(run: Path) -> None:
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(UserError, match="tokenizer is missing, and no other tokenizer fits"):
        train(tiny_config(resume=run.name, vocab_size=0))
    assert train(tiny_config(resume=run.name, num_iterations=3, eval_every=-1)).steps == 3
