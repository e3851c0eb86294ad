"""Several processes under torchrun compute what one process with more accumulation computes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import load_checkpoint
from scripts.base_train import train
from tests.bounds import sum_error
from tests.tiny_run import flags, own_base, records, tiny_config

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")

PATIENCE = 900  # seconds: two processes that wait for each other in vain would take 30 minutes


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield folder / "base_checkpoints"


def torchrun(arguments: list[str], restarts: int = 0, **environment: str) -> subprocess.Popen[str]:
    """Two processes on this machine; the rendezvous takes a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max-restarts={restarts}"]
    return subprocess.Popen(
        [*command, "-m", "scripts.base_train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def faulty(what: str, folder: Path, restarts: int = 0, **changes: Any) -> subprocess.Popen[str]:
    """Two processes of which the second has a fault (see ranks_gpt.py)."""
    config = tiny_config(gpt=str(Path(__file__).with_name("ranks_gpt.py")), total_batch_size=64, **changes)
    return torchrun(flags(config), restarts, RANK_TEST=what, RANK_TEST_FOLDER=str(folder))


def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    """What the processes had at the end."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.numerics
def test_two_ranks_are_one_with_twice_the_passes(base: Path) -> None:
    """Two passes of 32 tokens in one process, one pass in each of two, a thread for each: the same bits.

    Halving is exact in binary, so a/2 + b/2 and (a + b)/2 round alike. More passes or threads would sum in
    another order, and agree only up to rounding.
    """
    process = torchrun(flags(tiny_config(model_tag="two", total_batch_size=64)))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert len(re.findall(r"^step \d", out, re.MULTILINE)) == 8  # only the first process prints
    assert "1 pass of 2 x 16 on each of 2 processes" in out
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has
    try:
        train(tiny_config(model_tag="one", total_batch_size=64))
    finally:
        torch.set_num_threads(threads)
    one, two = load_checkpoint(base / "one"), load_checkpoint(base / "two")
    for name in one.model:
        assert torch.equal(two.model[name], one.model[name]), name
    assert [r for r in records(base / "one") if "loss" in r] == [
        r for r in records(base / "two") if "loss" in r
    ]
    for a, b in zip(records(base / "one"), records(base / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert one.meta["loader"] == two.meta["loader"]


def test_two_ranks_save_together_when_asked_to_stop(base: Path) -> None:
    """torchrun passes SIGTERM on to both; they agree on the step to stop at, and one process can go on.

    Weights lie in pieces here. Both have written theirs, between looks, in the background; the last is whole.
    """
    often = {"shard": 2, "eval_every": 2, "sample_every": 2, "save_every": 1, "keep": 1}
    process = torchrun(flags(tiny_config(model_tag="stopped", num_iterations=100_000, **often)))
    folder = base / "stopped"
    deadline = time.monotonic() + PATIENCE
    while not (folder / "metrics.jsonl").exists() or not records(folder):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    step = load_checkpoint(folder).step
    assert f"stopped by SIGTERM at step {step}" in out, err
    assert "did not work" not in out + err
    assert load_checkpoint(folder).meta["decisions"]["shards"] == 2
    assert len(list((folder / f"pieces_{step:06d}").iterdir())) == 2
    assert "to go on: torchrun --nproc_per_node=2 -m scripts.base_train --resume=stopped" in out
    assert "SIGTERM: finishing this step, then saving" in err
    result = train(tiny_config(resume="stopped", num_iterations=step + 1, eval_every=-1))
    assert result.steps == step + 1


def test_an_error_is_one_line_here_too(base: Path) -> None:
    process = torchrun([*flags(tiny_config()), "--total_batch_size=96"])
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "error: --total_batch_size=96 is no multiple of" in err
    assert "UserError" not in err


@pytest.mark.numerics
def test_a_slow_rank_and_a_fast_one_keep_the_same_weights(base: Path, tmp_path: Path) -> None:
    """Clocks that differ end the run for both, and the first process alone writes samples and checkpoints."""
    process = faulty(
        "slow",
        tmp_path,
        model_tag="slow",
        num_iterations=100_000,
        time_limit=120,  # of the second process's clock, less what the last look takes
        eval_every=10,
        sample_every=10,
        save_every=10,
        keep=2,
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    first, second = weights(tmp_path)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    rates = [r["lrm"] for r in records(base / "slow") if "lrm" in r]
    assert len(rates) > 10
    assert 0 < rates[-1] < 1  # the clock was felt
    assert out.count("Validation bpb") > 2
    state = load_checkpoint(base / "slow")
    assert state.step == len(rates)
    assert torch.equal(state.model["lm_head.weight"], first["lm_head.weight"])


def test_an_error_on_one_rank_ends_both_with_its_message(base: Path, tmp_path: Path) -> None:
    process = faulty("fail", tmp_path, model_tag="failing", num_iterations=100_000, eval_every=-1)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "MemoryError: there is no more memory on this one" in err  # of the second, with its traceback
    assert "error: process 1: there is no more memory on this one" in err  # of the first
    assert "the state of step 5 is saved" in out
    assert load_checkpoint(base / "failing").step == 5


def test_an_evaluation_that_fails_on_one_rank_ends_nothing(base: Path, tmp_path: Path) -> None:
    process = faulty("evaluation", tmp_path, model_tag="unseen", save_every=4)
    out, err = process.communicate(timeout=PATIENCE)
    assert "did not work: evaluation at step 4: process 1: a shard cannot be read" in out, err
    assert process.returncode != 0
    assert load_checkpoint(base / "unseen").step == 8
    first, second = weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_signal_to_one_rank_stops_both(base: Path) -> None:
    process = torchrun(flags(tiny_config(model_tag="one-signal", num_iterations=100_000, eval_every=-1)))
    folder = base / "one-signal"
    deadline = time.monotonic() + PATIENCE
    while not (folder / "metrics.jsonl").exists() or not records(folder):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not tell which processes a process has started")
    os.kill(int(children.read_text().split()[1]), signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert f"stopped by SIGTERM at step {load_checkpoint(folder).step}" in out, err


@pytest.mark.numerics
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(base: Path, tmp_path: Path) -> None:
    """Both are started again, go on from what they had written in pieces, and end as if nobody had died."""
    changes: dict[str, Any] = {"save_every": 2, "eval_every": -1, "grad_clip": 0}
    process = faulty("kill", tmp_path, restarts=1, model_tag="killed", shard=2, **changes)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert re.findall(r"going on at step (\d+)", out) in (["2"], ["4"])  # what was written by then
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(tiny_config(model_tag="unbroken", total_batch_size=64, **changes))
    finally:
        torch.set_num_threads(threads)
    killed, unbroken = load_checkpoint(base / "killed"), load_checkpoint(base / "unbroken")
    assert killed.step == unbroken.step == 8
    for name in unbroken.model:
        assert torch.equal(killed.model[name], unbroken.model[name]), name
    # A gradient's length is a sum of squares, here of two sums; its root is off by half as much, in both.
    terms = sum(tensor.numel() for tensor in unbroken.model.values())
    for a, b in zip(records(base / "killed"), records(base / "unbroken"), strict=True):
        assert a.pop("grad_norm") == pytest.approx(b.pop("grad_norm"), rel=sum_error(terms, torch.float32))
        assert a == b
    assert killed.meta["loader"] == unbroken.meta["loader"]


def test_a_process_that_hangs_is_found_and_all_say_where_they_stand(base: Path, tmp_path: Path) -> None:
    process = faulty("hang", tmp_path, model_tag="hanging", num_iterations=100_000, eval_every=-1)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    said = err.split("error: no process has moved for 540 s (--patience); process ")
    places = {place[0]: place for place in said[1:]}
    assert "in fall_asleep" in places["1"]
    assert "in backward" in places["0"] or "in forward" in places["0"]
    assert out.count("\nstep ") == 5
