"""scripts.compare runs, its record has the promised form, its tables and numbers follow from the record."""

from __future__ import annotations

import copy
import json
import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.common import UserError
from nanochat.loss import SMALLEST_TILE
from nanochat.machine import this_machine
from nanochat.turns import held_memory_bytes
from scripts import compare
from tests.bounds import sum_error
from tests.programs import answer

pytest.importorskip("transformers", reason="the reference is in the transformers library")
ROOT = Path(__file__).parents[1]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return answer(compare.main, *flags)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    path = tmp_path_factory.mktemp("compare") / "quick.json"
    flags = "--quick", "--device_type=cpu", "--steps=6", "--seeds=2", "--eval_sequences=2", f"--out={path}"
    return run(*flags), path


@pytest.fixture
def record(quick) -> dict[str, Any]:
    return dict(json.loads(quick[1].read_text()))


def test_a_run_prints_tables_and_keeps_its_record(quick, record):
    done, path = quick
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "\n\n".join(compare.tables(record).values())
    assert run(f"--show={path}").stdout == done.stdout
    assert [side["key"] for side in record["sides"]] == ["reference", "book", "book-float32"]
    for side in record["sides"]:
        assert [run["seed"] for run in side["runs"]] == [1, 2]
        for one in side["runs"]:
            assert len(one["loss"]) == len(one["seconds"]) == 6
            assert one["peak"] >= one["held"] > 50e6
            assert 1 < one["bpb"] < 10
    # Logits are below 15, and the longest sum behind them has four times the width of 32.
    assert record["numbers"]["logits-float32-most"] <= 15 * sum_error(4 * 32)
    assert 1e-5 < record["numbers"]["logits-bfloat16"] < 5e-3
    assert not list(path.parent.glob("*.partial.json"))
    assert str(Path.home()) not in json.dumps({**record, "command": "", "config": ""})


def mean_distance(losses: list[float], others: list[float]) -> float:
    """How far two trainings are apart, in nats, as a mean over the steps."""
    return sum(abs(a - b) for a, b in zip(losses, others, strict=True)) / len(losses)


def test_all_sides_begin_alike_and_stay_near_each_other(record):
    reference, book, narrow = (
        [run["loss"] for run in next(s for s in record["sides"] if s["key"] == key)["runs"]]
        for key in ("reference", "book-float32", "book")
    )
    # The first step moves the head alone, each weight by AdamW's rate. In either format the loss is a sum
    # over the vocabulary; in bfloat16 each logit, a sum over 32 channels of such a weight and a number of
    # size one, has had three roundings. From the second step on Muon rounds to its format, and AdamW, whose
    # epsilon is 1e-10, makes whole steps of a rounding in weights with hardly any gradient.
    added = 2 * sum_error(record["shape"]["vocab_size"])
    logit = 32 * 0.004 * (32 / 768) ** -0.5
    for theirs, mine, rounded in zip(reference, book, narrow, strict=True):
        assert mine[:2] == pytest.approx(theirs[:2], rel=added)
        assert rounded[0] == pytest.approx(theirs[0], rel=added)
        assert rounded[1] == pytest.approx(theirs[1], abs=sum_error(3, torch.bfloat16) * logit)
    # What is left afterwards is far below what other batches and weights do.
    seeds = mean_distance(*reference)
    for theirs, mine, rounded in zip(reference, book, narrow, strict=True):
        assert mean_distance(mine, theirs) < seeds / 8
        assert mean_distance(rounded, theirs) < seeds / 3


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells on Linux")
def test_what_is_held_falls_when_memory_goes():
    device, size = torch.device("cpu"), 2**26
    before = held_memory_bytes(device)
    with mmap.mmap(-1, size) as block:  # not malloc's: whether that gives back is a setting of the process
        for _ in range(64):
            block.write(b"1" * (size // 64))
        during = held_memory_bytes(device)
    after = held_memory_bytes(device)
    assert during - before > 0.9 * size
    assert during - after > 0.9 * size


def a_record() -> dict[str, Any]:
    """Two seeds, six steps; the book takes a third of the time and half of the memory."""

    def side(key: str, seconds: float, peak: float, shift: float) -> dict[str, Any]:
        runs = [
            {
                "seed": seed,
                "loss": [5.0, 4.0, 3.0, 2.0, 1.5 + seed + shift, 1.0 + seed + shift],
                "seconds": [9.0, 9.0, 9.0, seconds, 2 * seconds, 3 * seconds],
                "peak": peak,
                "held": peak / 4,
                "bpb": 2.0 + seed + shift,
            }
            for seed in (1, 2)
        ]
        return {"key": key, "name": key, "whole": True, "failed": "", "runs": runs}

    sides = [side("reference", 0.3, 2e9, 0.0), side("book", 0.1, 1e9, 0.25)]
    for one, points in zip(sides, ([1, 0, 0.5], [1, 1, 0.5]), strict=True):
        one["runs"][0] |= {"core": 0.1, "title": "CORE subset", "stderr": 0.2, "points": points}
    return {"sides": sides, "tables": {"logits-float32": 0.0}}


def test_numbers_follow_from_the_repetitions():
    n = compare.numbers(a_record())
    assert n["step-book"] == pytest.approx(0.2)
    assert n["speed-book"] == pytest.approx(3)
    assert n["memory-book"] == 0.5
    assert n["held-book"] == 0.25e9
    assert n["least-memory-book"] == 0.125
    assert n["gap-book"] == n["gap-book-last"] == n["bpb-gap-book"] == 0.25
    assert n["range-reference"] == n["bpb-range-reference"] == 1
    assert n["loss-reference"] == 2.5
    assert (n["core-same-book"], n["core-items"]) == (2, 3)


def test_a_side_that_failed_is_a_line_of_the_table(record):
    record["sides"][2] |= {"failed": "ValueError: no", "runs": [{"seed": 1, "loss": [], "seconds": []}]}
    record["numbers"] = compare.numbers(record)
    assert "ValueError: no" in compare.tables(record)["sides"]
    broken = copy.deepcopy(record)
    broken["sides"][0]["failed"] = "out of memory"
    broken["numbers"] = compare.numbers(broken)
    assert compare.tables(broken)["answer"].startswith("Not measured")


def test_unlike_weights_are_refused():
    class Pretender:
        def __init__(self, weights: str) -> None:
            self.weights = weights

        def take_turn(self, *order: Any) -> dict[str, Any]:
            return {"weights": self.weights, "loss": 1.0}

    def start(*weights: str) -> None:
        children: list[Any] = [Pretender(name) for name in weights]
        compare.train_in_turns(children, [1, 1], 1, [None])

    start("a", "a")
    with pytest.raises(UserError, match="do not begin with the same weights"):
        start("a", "b")


def test_sizes_and_targets():
    config = compare.CompareConfig()
    shape, batch_size = config.sizes("cpu")
    assert (shape["n_layer"], shape["n_embd"], shape["n_head"], shape["sequence_len"]) == (4, 256, 2, 512)
    assert (shape["vocab_size"], batch_size) == (65536, 1)
    assert config.sizes("cuda")[0]["n_layer"] == 12
    machine = this_machine(torch.device("cpu"))
    gpu, emulating = replace(machine, type="cuda", bfloat16=True), replace(machine, bfloat16=False)
    multiplying = replace(machine, bfloat16=True)
    assert config.target(replace(gpu, played="")) == Path("results/compare-cuda.json")
    assert compare.CompareConfig(quick=True).target(machine) is None
    mine = compare.CompareConfig(gpt="mine")
    assert {side.gpt for side in mine.taking_part(machine)} == {"mine", "reference"}
    assert mine.target(machine) is None  # the record is the book's
    some = compare.CompareConfig(sides="book")
    assert [side.key for side in some.taking_part(machine)] == ["reference", "book"]
    assert some.target(machine) is None
    formats = {side.key: side.dtype for side in config.taking_part(multiplying)}
    assert formats["book"] == formats["reference-compiled"] == "bfloat16"
    assert formats["book-compiled"] == formats["reference"] == "float32"
    slow = config.taking_part(emulating)  # it would emulate bfloat16, which nobody trains in
    assert {side.dtype for side in slow} == {"float32"}
    assert "book-compiled" not in {side.key for side in slow}  # which is the book as it trains there


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=3"], "error: --steps=3: must be at least 4"),
        (["--gpt=mien"], "error: --gpt=mien is none of book, reference, mine"),
        (["--seed=3"], "error: there is no flag --seed; did you mean --seeds?"),
        (["--device_type=tpu"], 'error: Invalid value "tpu" for --device_type. Choose from: '),
        (["--sides=bok"], "error: --sides: there is no side 'bok'; there are reference, book,"),
        (["--show=nowhere.json"], "error: nowhere.json: there is no such file"),
    ],
)
def test_wrong_flags_are_one_line(flags, message):
    done = run(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.gpu
def test_two_seeds_on_cuda(tmp_path):
    """The second training begins where the embedding is bfloat16 already; its weights must be the same."""
    path = tmp_path / "cuda.json"
    done = run(
        "--quick", "--device_type=cuda", "--steps=6", "--seeds=2", "--eval_sequences=2", f"--out={path}"
    )
    assert done.returncode == 0, done.stderr
    assert all(len(side["runs"]) == 2 for side in json.loads(path.read_text())["sides"])


def test_the_chapters_arithmetic():
    text = (ROOT / "lit" / "70-equal-to-the-reference.md").read_text(encoding="utf-8")
    V, C, T = 65536, 256, 512
    assert round(2 * V * C / 1e6, 1) == 33.6
    assert round(4 * 4 * 2 * V * C / 1e6) == round(4 * 4 * T * V / 1e6) == 537
    assert text.count("537 MB") == 2
    assert round(T * V * 2 / 1e6) == round(SMALLEST_TILE * 4 / 1e6) == 67
    assert "67 MB of them in bfloat16 and a tile of 67 MB in float32" in " ".join(text.split())
    assert "$2VC = 33.6$ million" in text
    below = torch.tensor(15.999)
    assert (torch.nextafter(below, torch.tensor(16.0)) - below).item() == pytest.approx(2**-20)
    shares = 0.0
    bench = json.loads((ROOT / "results" / "bench-cpu-bfloat16.json").read_text())
    for turn in bench["groups"]["steps"][4]["turns"]:
        shares += sum(turn[part] for part in ("clipping", "AdamW", "Muon")) / turn["total"]
    assert bench["groups"]["steps"][4]["name"] == "bfloat16, compiled"
    assert 0.2 < shares / len(bench["groups"]["steps"][4]["turns"]) < 0.3, "a quarter of the step"
