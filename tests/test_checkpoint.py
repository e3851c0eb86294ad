"""Checkpoints are whole or invisible, verified when read, and never written over another run's."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nanochat import checkpoint_manager as cm
from nanochat.common import UserError


def tiny(seed: int = 0, steps: int = 3) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A model and two optimizers of different kinds, a few steps in."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False))
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(model[0].parameters(), lr=0.1, betas=(0.8, 0.95)),
        torch.optim.SGD(model[1].parameters(), lr=0.02, momentum=0.9),
    ]
    for _ in range(steps):
        model(torch.randn(4, 5)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, optimizers


def save(folder: Path, step: int, seed: int = 0) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    model, optimizers = tiny(seed)
    tensors = {"rng": torch.get_rng_state()}
    cm.save_checkpoint(folder, step, model, optimizers, {"min_val_bpb": 1.25, "tag": "d4"}, tensors)
    return model, optimizers


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizers = save(tmp_path, 7)
    loaded = cm.load_checkpoint(tmp_path)
    assert loaded.step == 7
    assert loaded.meta == {"min_val_bpb": 1.25, "tag": "d4"}
    assert torch.equal(loaded.tensors["rng"], torch.get_rng_state())
    assert loaded.model.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model[name], tensor)
    for original, state in zip(optimizers, loaded.optimizers, strict=True):
        expected = original.state_dict()
        assert state["param_groups"] == expected["param_groups"]  # betas are a tuple again, numbers are exact
        assert state["state"].keys() == expected["state"].keys()
        for parameter, entries in expected["state"].items():
            for key, value in entries.items():
                restored = state["state"][parameter][key]
                assert torch.equal(restored, value) if isinstance(value, torch.Tensor) else restored == value
    fresh_model, fresh = tiny(seed=1, steps=0)
    fresh_model.load_state_dict(loaded.model)
    for optimizer, state in zip(fresh, loaded.optimizers, strict=True):
        optimizer.load_state_dict(state)
    x = torch.randn(4, 5)
    for m, opts in ((model, optimizers), (fresh_model, fresh)):
        m(x).square().mean().backward()
        for optimizer in opts:
            optimizer.step()
    for a, b in zip(model.parameters(), fresh_model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_files_are_what_the_book_says(tmp_path: Path) -> None:
    save(tmp_path, 123)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["meta_000123.json", "model_000123.safetensors", "optim_000123.safetensors"]
    record = json.loads((tmp_path / "meta_000123.json").read_text())
    assert {"sha256", "format", "step", "files", "optimizers", "meta"} == set(record)


def test_bfloat16_weights_survive(tmp_path: Path) -> None:
    model = nn.Embedding(4, 3).bfloat16()
    cm.save_checkpoint(tmp_path, 0, model, [], {})
    weight = cm.load_checkpoint(tmp_path).model["weight"]
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, model.weight)


def flip_a_byte(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated": (cut_in_half, ("model", "optim", "meta")),
    "a byte flipped near the end": (lambda path: flip_a_byte(path, 0.95), ("model", "optim", "meta")),
    "a byte flipped in the middle": (lambda path: flip_a_byte(path, 0.5), ("model", "optim", "meta")),
    "a byte flipped in the header": (lambda path: flip_a_byte(path, 0.02), ("model", "optim", "meta")),
    "emptied": (lambda path: path.write_bytes(b""), ("model", "optim", "meta")),
    "missing": (Path.unlink, ("model", "optim")),
    "another JSON": (lambda path: path.write_text("[]"), ("meta",)),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\xfe{}"), ("meta",)),
}
CASES = [(name, kind) for name, (_, kinds) in DAMAGE.items() for kind in kinds]


@pytest.mark.parametrize(("damage", "kind"), CASES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    damage: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 10, seed=10)
    model, _ = save(tmp_path, 20, seed=20)
    save(tmp_path, 30, seed=30)
    path = tmp_path / cm.file_name(kind, 30)
    DAMAGE[damage][0](path)
    loaded = cm.load_checkpoint(tmp_path)
    assert loaded.step == 20
    assert torch.equal(loaded.model["0.weight"], model.state_dict()["0.weight"])
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    with pytest.raises(cm.Damaged, match=path.name):  # asked for this very step, no other is given
        cm.load_checkpoint(tmp_path, step=30)


def test_weights_alone_do_not_need_the_optimizers(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / cm.file_name("optim", 3)).unlink()
    loaded = cm.load_checkpoint(tmp_path, weights_only=True)
    assert loaded.optimizers == []
    assert "0.weight" in loaded.model


def test_nothing_good_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        cm.load_checkpoint(tmp_path)
    for step in (1, 2):
        save(tmp_path, step)
        cut_in_half(tmp_path / cm.file_name("model", step))
    with pytest.raises(UserError, match="all 2 checkpoints"):
        cm.load_checkpoint(tmp_path)
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(UserError, match="there are 1, 2"):
        cm.load_checkpoint(tmp_path, step=3)


def test_leftovers_of_an_interrupted_save_are_invisible(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / cm.file_name("meta", 20)).unlink()  # stopped before the description
    for name in (".meta_000030.json.tmp", "meta_000030.json.abc123", "meta_000030.json.tmp", "tmp1234"):
        (tmp_path / name).write_text("{}")
    assert cm.saved_steps(tmp_path) == [10]
    assert cm.load_checkpoint(tmp_path).step == 10


def test_a_renamed_description_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / cm.file_name("meta", 1)).rename(tmp_path / cm.file_name("meta", 2))
    with pytest.raises(cm.Damaged, match="was renamed"):
        cm.load_checkpoint(tmp_path, step=2)


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / cm.file_name("meta", 1)
    record = json.loads(path.read_text())
    del record["sha256"]
    record["format"] = 99
    path.write_text(json.dumps({"sha256": cm.digest(record), **record}))
    with pytest.raises(cm.Damaged, match="format 99"):
        cm.load_checkpoint(tmp_path, step=1)


def save_and_die(folder: Path, after: int, step: int) -> None:
    """Save a checkpoint of step 1, begin one of `step`, and be killed in place of rename number `after`."""
    model = nn.Linear(300, 300, bias=False)
    cm.save_checkpoint(folder, 1, model, [], {})
    rename, calls = os.replace, iter(range(1, 99))

    def rename_or_die(source: Path, target: Path) -> None:
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    nn.init.zeros_(model.weight)
    os.replace = rename_or_die  # type: ignore[assignment]
    cm.save_checkpoint(folder, step, model, [], {})


@pytest.mark.parametrize("step", [2, 1], ids=["a new step", "over the same step"])
@pytest.mark.parametrize("after", [1, 2, 3], ids=["before the model", "the optimizers", "the description"])
def test_a_kill_in_the_middle_of_a_save(after: int, step: int, tmp_path: Path) -> None:
    # Not "fork": a child of a process whose torch has started threads can wait for them for ever. The server
    # has started none, and has imported torch already (see tests/conftest.py).
    process = multiprocessing.get_context("forkserver").Process(
        target=save_and_die, args=(tmp_path, after, step)
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    loaded = cm.load_checkpoint(tmp_path)
    assert loaded.step == 1
    assert loaded.model["weight"].any()  # those of the first save, not the zeros of the second
    assert len(list(tmp_path.glob(".*.tmp"))) == 4 - after
    cm.save_checkpoint(tmp_path, step, nn.Linear(2, 2, bias=False), [], {})
    assert cm.load_checkpoint(tmp_path).model["weight"].shape == (2, 2)
    assert len(list(tmp_path.iterdir())) == (6 if step == 2 else 3)  # what nothing names is gone


def test_runs_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert [cm.new_run("", "d4").name for _ in range(3)] == ["d4", "d4-2", "d4-3"]
    assert cm.new_run("mine", "d4").name == "mine"
    with pytest.raises(UserError, match="--resume=mine"):
        cm.new_run("mine", "d4")
    for bad in ("../x", "a/b", ".hidden", "-x", "a b"):
        with pytest.raises(UserError, match="--model_tag"):
            cm.new_run(bad, "d4")


def test_runs_are_found_by_tag_or_by_their_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint yet"):
        cm.find_run()
    first, second = cm.new_run("", "d4"), cm.new_run("", "d4")
    save(second, 1)
    save(first, 1)
    os.utime(second / cm.file_name("meta", 1), (1, 1))
    assert cm.find_run() == first
    assert cm.find_run("d4-2") == second
    with pytest.raises(UserError, match="runs with a checkpoint: d4, d4-2"):
        cm.find_run("d9")
    with pytest.raises(UserError, match=r"no run '\.\./base_checkpoints'"):
        cm.find_run("../base_checkpoints")


class TestLaunches:
    """Which run a program goes on with that torchrun has started again."""

    @pytest.fixture(autouse=True)
    def launch(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")

    def test_a_launch_goes_on_with_its_own_run_once_that_has_saved(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = cm.new_run("", "d1")
        assert cm.run_of_this_launch() == ""
        assert cm.new_run("", "d1") == first  # killed before it had saved anything
        (first / "meta_000004.json").write_text("{}")
        assert cm.run_of_this_launch() == "d1"
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
        assert cm.run_of_this_launch() == ""
        assert cm.new_run("", "d1").name == "d1-2"
        with pytest.raises(UserError, match="already holds a run"):
            cm.new_run("d1", "")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
        monkeypatch.setattr("sys.argv", ["scripts/chat_sft.py"])  # another program of the same job
        assert cm.run_of_this_launch() == ""

    def test_a_launch_without_a_name_may_not_be_started_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        with pytest.raises(UserError, match="add --rdzv-id=NAME"):
            cm.run_of_this_launch()
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
        assert cm.run_of_this_launch() == ""
