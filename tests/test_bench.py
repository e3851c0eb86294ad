"""The benchmark runs, its record has the promised form, its tables are the chapter's. No time is tested."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nanochat import decoding, engine
from nanochat.common import UserError
from nanochat.machine import this_machine
from scripts import bench
from tests.bounds import results_error
from tests.programs import answer

ROOT = Path(__file__).parents[1]
CHAPTER = ROOT / "lit" / "68-benchmarks.md"
HERE = replace(this_machine(torch.device("cpu")), played="")
RECORD = ROOT / "results" / "bench-cpu-bfloat16.json"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return answer(bench.main, *flags)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    flags = "--quick", "--device_type=cpu", "--cases=steps", "--repeats=3", f"--out={path}"
    return run(*flags), path


def test_a_run_prints_tables_and_keeps_its_record(quick):
    done, path = quick
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert done.stdout == bench.tables(record)
    assert record["command"].startswith("python -m scripts.bench --device_type=cpu --cases=steps")
    assert record["text"] == "none"
    assert set(record["machine"]["versions"]) >= {"python", "torch", "tiktoken", "pyarrow"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert list(record["groups"]) == ["steps"]
    assert str(Path.home()) not in json.dumps({**record, "command": "", "config": ""})
    yardstick, first, second = record["groups"]["steps"]
    assert yardstick["work"] == "machine"
    assert set(yardstick["rates"]) == {"float32", "bfloat16", "copy"}
    assert [first["name"], second["name"]] == ["float32, eager", "bfloat16, eager"]
    for case in (first, second):
        assert not case["failed"]
        assert len(case["turns"]) == 3
        assert {"total", "forward", *bench.PARTS[1:]} == set(case["turns"][0])
        assert set(case["facts"]["bounds"]) == set(bench.PARTS)
        assert case["seconds"]["low"] <= case["seconds"]["median"] <= case["seconds"]["high"]
        assert case["peak_memory_bytes"] > 50e6
        turn = case["turns"][0]
        assert turn["loss"] < turn["forward"] < turn["total"]
    size = bench.TINY
    assert first["facts"]["tokens"] == size.B * size.T


def test_shares_and_ratios_are_taken_within_each_round(quick):
    record = json.loads(quick[1].read_text())
    yardstick, first, second = record["groups"]["steps"]
    rate = yardstick["facts"]["flops"]
    shares = [
        second["facts"]["flops"] / turn["total"] / (rate / one["bfloat16"])
        for turn, one in zip(second["turns"], yardstick["turns"], strict=True)
    ]
    ratios = [a["total"] / b["total"] for a, b in zip(first["turns"], second["turns"], strict=True)]
    assert second["share_of_machine"]["median"] == pytest.approx(sorted(shares)[1])
    assert second["speed_to_first"]["median"] == pytest.approx(sorted(ratios)[1])
    assert first["speed_to_first"]["median"] == 1


def test_the_tables_can_be_printed_again(quick):
    done, path = quick
    assert run(f"--show={path}").stdout == done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cases=stepz"], "error: --cases: there is no group 'stepz'; there are steps, loss,"),
        (["--case=steps"], "error: there is no flag --case; did you mean --cases?"),
        (["--repeats=-1"], "error: --repeats=-1: must be positive"),
        (["--repeats=few"], "error: --repeats: wants a whole number, not 'few'"),
        (["--quick", "--device_type=cpu", "--cases=d12"], "error: --cases: d12 is not measured on --quick;"),
        (
            ["--show=nowhere.json"],
            "error: nowhere.json: there is no such file: records are in results/",
        ),
        (["--gpt=mien"], "error: --gpt=mien is none of book, reference, mine"),
        (["--show=LICENSE"], "error: LICENSE is no record (Expecting"),
    ],
)
def test_wrong_flags_are_one_line(flags, message):
    done = run(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_the_bounds_of_all_parts_are_the_arithmetic_of_a_step() -> None:
    """What the parts of forward and backward need is what the model counts; Muon's share is the chapter's."""
    size = bench.Size(n_layer=3, n_embd=64, n_head=2, vocab_size=512, T=32, B=4)
    case = bench.Case("steps", "a step", "step", size, "float32")
    model, bounds = bench.build_model(case, torch.device("cpu")), bench.bounds_of_parts(case)
    passes = ("blocks, forward", "loss", "blocks, backward")
    assert sum(bounds[part]["flops"] for part in passes) == size.B * size.T * model.estimate_flops()
    assert bounds["Muon"]["flops"] == 300 * size.n_layer * size.n_embd**3
    assert bounds["AdamW"]["bytes"] == 28 * 2 * model.lm_head.weight.numel()
    assert bounds["clipping"]["bytes"] == 12 * sum(p.numel() for p in model.parameters())
    narrow = bench.bounds_of_parts(replace(case, dtype="bfloat16"))
    assert all(narrow[part]["flops"] == bounds[part]["flops"] for part in bounds)
    assert narrow["blocks, forward"]["bytes"] == bounds["blocks, forward"]["bytes"] / 2


def test_the_table_of_parts_sets_each_beside_its_bounds(quick) -> None:
    record = json.loads(quick[1].read_text())
    yardstick, case, _ = record["groups"]["steps"]
    yardstick["facts"], case["facts"]["bounds"] = {"flops": 1000, "bytes": 1000}, {}
    for part in bench.PARTS:
        case["facts"]["bounds"][part] = {"flops": 2000, "bytes": 500}
    for one, turn in zip(yardstick["turns"], case["turns"], strict=True):
        one.update(float32=0.001, copy=0.002)
        turn.update({"total": 0.04, "forward": 0.009, "loss": 0.005, "blocks, backward": 0.008})
        turn.update({"clipping": 0.002, "AdamW": 0.002, "Muon": 0.002})
    rows = {line.split("|")[1].strip(): line for line in bench.parts_table(case, yardstick).splitlines()}
    cells = [cell.strip() for cell in rows["blocks, forward"].split("|")[2:-1]]
    assert cells == ["4.00", "2.00", "1.00", "10%", "50%"]
    for turn in case["turns"]:
        del turn["loss"]  # as another model's
    rows = {line.split("|")[1].strip(): line for line in bench.parts_table(case, yardstick).splitlines()}
    assert "loss" not in rows
    assert rows["blocks, forward"].split("|")[2].strip() == "9.00"


def test_only_a_full_run_replaces_the_record():
    assert bench.BenchConfig().target(replace(HERE, type="cuda")) == Path("results/bench-cuda.json")
    assert bench.BenchConfig(cases="steps").target(HERE) is None
    assert bench.BenchConfig(quick=True).target(HERE) is None
    assert bench.BenchConfig(quick=True, out="x.json").target(HERE) == Path("x.json")
    assert bench.BenchConfig(gpt="mine").target(HERE) is None


def test_another_model_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case builds the chosen file's model; a gap in it is explained before anything starts."""
    source = (ROOT / "nanochat" / "normans_gpt.py").read_text()
    mine = tmp_path / "normans_gpt.py"
    mine.write_text(source)
    groups = bench.BenchConfig(gpt=str(mine), quick=True).groups(HERE)
    assert {case.gpt for cases in groups.values() for case in cases} == {str(mine)}
    step = next(case for case in groups["steps"] if case.work == "step")
    model = bench.build_model(step, torch.device("cpu"))
    assert Path(sys.modules[type(model).__module__].__file__ or "") == mine
    bench.try_model(str(mine))
    bench.compile_as_asked(replace(step, loss="all at once"), model)
    assert sys.modules[type(model).__module__].softcapped_cross_entropy is bench.all_at_once
    monkeypatch.setenv("NANOCHAT_WORKSHOP", str(tmp_path / "workshop"))
    (tmp_path / "workshop").mkdir()
    (tmp_path / "workshop" / "normans_gpt.py").write_text((ROOT / "skeleton" / "normans_gpt.py").read_text())
    with pytest.raises(UserError, match=r"TODO: Implement GPT\.__init__"):
        bench.try_model("mine")


def test_every_group_has_cases_on_some_device():
    machines = [
        replace(HERE, type=device, bfloat16=has) for device in ("cpu", "cuda") for has in (True, False)
    ]
    groups = {case.group for machine in machines for case in bench.cases_for(machine, quick=False)}
    assert groups == set(bench.GROUPS) == set(bench.TITLES)
    for machine in machines:
        cases = bench.cases_for(machine, quick=False)
        assert len({(case.group, case.name) for case in cases}) == len(cases)
        assert all(case.work in bench.WORK for case in cases)
        with pytest.raises(UserError, match="there are steps"):
            bench.BenchConfig(cases="steps,nothing")


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return bench.prepare_text(quick=True)


def works(work: str) -> list[bench.Case]:
    return [case for case in bench.cases_for(HERE, quick=True) if case.work == work]


def one_turn(case: bench.Case) -> tuple[dict[str, Any], dict[str, float]]:
    facts, turn = bench.WORK[case.work](case, torch.device("cpu"))
    return facts, turn()


def test_loading_and_encoding_count_their_tokens(text, monkeypatch):
    name, tokenizer = bench.open_text()
    assert name == text[0] == "made-up"
    facts, seconds = one_turn(works("encode")[0])
    assert facts["bytes"] > facts["tokens"] > facts["bytes"] / 8
    assert seconds["total"] > 0
    loading = replace(works("load")[0], size=replace(bench.TINY, T=2048, B=8))
    facts, seconds = one_turn(loading)
    assert facts["tokens"] == 2**19
    assert seconds["total"] > 0
    assert tokenizer.decode(tokenizer.encode("any text")) == "any text"


@pytest.fixture
def restored(monkeypatch):
    """What a process that decodes for the benchmark replaces, put back afterwards."""
    for module, name in ((F, "linear"), (decoding, "load_kernel"), (engine, "sample_next")):
        monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.parametrize("case", works("decode"), ids=lambda case: case.name)
def test_decoding_counts_its_tokens_and_times_its_parts(case, restored):
    facts, seconds = one_turn(case)
    assert facts["tokens"] == 32 * case.count
    L, C, V = bench.TINY.n_layer, bench.TINY.n_embd, bench.TINY.vocab_size
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[case.weights or case.dtype]
    width = max(C, 16 * 4 // size)  # of a row that is filled up to sixteen words
    twin = (V + 8 * L * C) * width + L * C * max(4 * C, width)
    scales = 4 * (V + 9 * L * C) if case.weights == "int8" else 0
    assert facts["bytes"] == 32 * (size * (twin if case.weights else V * C + 12 * L * C * C) + scales)
    if not case.cached:
        assert facts["bounds"] == {}
        return
    parts = [bench.seconds_of(part, seconds) for part in facts["bounds"]]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(seconds["total"], rel=1e-6)
    products = [facts["bounds"][part]["bytes"] for part in facts["bounds"] if part.startswith("product")]
    assert sum(products) == facts["bytes"]


@pytest.mark.parametrize("case", works("multiply"), ids=lambda case: case.name)
def test_every_way_to_multiply_is_timed(case):
    facts, seconds = one_turn(case)
    assert set(seconds) == {"total", *facts["ways"]}
    assert {f"our kernel, {weights}" for weights in bench.TWINS} < set(facts["ways"])
    assert facts["ways"]["F.linear, float32"] == 4 * facts["ways"]["our kernel, int8"]


def test_tables_of_decoding_and_of_products():
    """Made of turns that nobody measured."""
    groups = bench.BenchConfig(cases="products,decoding", quick=True).groups(HERE)
    yardstick = bench.Case("decoding", "yardstick", "machine", bench.TINY)
    one = {"float32": 1.0, "bfloat16": 1.0, "copy": 1.0}
    machine = {"facts": {"flops": 1e9, "bytes": 1e9}, "turns": [one], "failed": "", **asdict(yardstick)}
    row = {**machine, **asdict(groups["products"][0]), "facts": {"ways": {"a": 5e8, "b": 1e9}}}
    row["turns"] = [{"a": 0.5, "b": 4.0}]
    lines = bench.ways_table([machine, row]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines]
    assert cells == [["a", "500.0", "500", "100%"], ["b", "1000.0", "4,000", "25%"]]
    case = next(case for case in groups["decoding"] if case.count == 8)
    decoded = {**machine, **asdict(case)}
    decoded["facts"] = {"tokens": 256, "bounds": {"choosing": {"flops": 0, "bytes": 32e6}}}
    decoded["turns"] = [{"total": 0.64, "choosing": 0.32}]
    last = [cell.strip() for cell in bench.parts_table(decoded, machine).splitlines()[-1].split("|")]
    assert last[1:-1] == ["choosing", "10.0", "0.00", "1.00", "50%", "10%"]


def test_the_rival_computes_the_same_loss():
    from nanochat.loss import softcapped_cross_entropy

    torch.manual_seed(0)
    x = torch.randn(12, 8, requires_grad=True)
    weight = torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(40, (12,))
    targets[3] = -1
    expected = torch.autograd.grad(softcapped_cross_entropy(x, weight, targets, 15.0), (x, weight))
    got = torch.autograd.grad(bench.all_at_once(x, weight, targets, 15.0), (x, weight))

    def run() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(bench.all_at_once(x, weight, targets, 15.0), (x, weight))

    for a, b, bound in zip(expected, got, results_error([x, weight], run, terms=40), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


def test_a_case_that_fails_is_one_line_in_the_table(quick):
    record = json.loads(quick[1].read_text())
    impossible = replace(works("decode")[0], size=replace(bench.TINY, n_head=3))
    children = bench.measure_group([impossible], "cpu", 2)
    assert children[0].failed.startswith("ValueError: GPTConfig: n_embd 32 does not divide")
    record["groups"] = {"decoding": [bench.describe(impossible, children[0], children[0], None)]}
    assert "ValueError: GPTConfig" in bench.tables(record)
