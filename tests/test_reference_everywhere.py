"""Every script runs with --gpt=reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import muon, normans_gpt
from nanochat.machine import this_machine
from nanochat.trained import load_model
from scripts import bench
from scripts.base_train import train
from scripts.learn_via_debug.debug_gpt_components import WalkConfig, walk
from tests.bounds import moved, unit_roundoff
from tests.tiny_run import own_base, records, tiny_config

pytest.importorskip("transformers", reason="the reference is in the transformers library")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield folder


def with_moved_tables(seed: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The book's training with rotary tables that are all off by what bfloat16 may round of a number."""
    whole = normans_gpt.GPT._precompute_rotary_embeddings
    rng = torch.Generator().manual_seed(seed)

    def off(table: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(2, table.shape, generator=rng) * 2 - 1
        return table.float() * (1 + unit_roundoff(torch.bfloat16) * signs)

    def tables(model: normans_gpt.GPT, *arguments: Any, **named: Any) -> list[torch.Tensor]:
        return [off(table) for table in whole(model, *arguments, **named)]

    with monkeypatch.context() as patch:
        patch.setattr(normans_gpt.GPT, "_precompute_rotary_embeddings", tables)
        return train(tiny_config(n_kv_head=1))


@pytest.mark.usefixtures("base")
@pytest.mark.numerics
def test_training_and_its_checkpoints(monkeypatch):
    """Same seed, same data: the losses are the book's but for rounding; a checkpoint is for either model.

    What is rounded otherwise are the rotary tables, to bfloat16 in the book's model. Muon's products, which
    in the library's are bfloat16 everywhere, are so here in both.
    """
    monkeypatch.setattr(muon, "fastest_format", lambda device: torch.bfloat16)
    results = {gpt: train(tiny_config(gpt=gpt, sample_every=8, n_kv_head=1)) for gpt in ("book", "reference")}
    book, reference = (records(results[gpt].folder) for gpt in ("book", "reference"))
    shaken = [records(with_moved_tables(seed, monkeypatch).folder) for seed in range(3)]
    for key in ("loss", "val_bpb"):
        mine, theirs, *others = (
            [record[key] for record in run if key in record] for run in (book, reference, *shaken)
        )
        bound = max(abs(a - b) for other in others for a, b in zip(mine, other, strict=True))
        assert 0 < bound < 1e-3
        assert theirs == pytest.approx(mine, abs=3 * bound), "a fourth of their kind"
    folder = results["reference"].folder
    meta = json.loads(max(folder.glob("meta_*.json")).read_text())["meta"]
    assert meta["gpt"]["name"] == "reference"
    own, tokenizer = load_model(folder.name, torch.device("cpu"))
    other, _ = load_model(folder.name, torch.device("cpu"), gpt="book")
    assert type(own).__module__ == "nanochat.gpt"
    assert type(other).__module__ == "nanochat.normans_gpt"
    ids = torch.tensor([tokenizer.encode("the state of the union", prepend=tokenizer.bos)])
    mine, theirs = other(ids), own(ids)
    other.cos, other.sin = other.cos.float(), other.sin.float()
    (bound,) = moved([other.cos, other.sin], lambda: [other(ids)], unit_roundoff(torch.bfloat16))
    torch.testing.assert_close(theirs, mine, atol=3 * bound, rtol=0)
    going_on = train(tiny_config(gpt="reference", n_kv_head=1, num_iterations=10, resume=folder.name))
    assert going_on.steps == 10


def test_the_walk_tells_the_same_story():
    def story(gpt: str) -> list[str]:
        return walk(WalkConfig(text="four score and seven", gpt=gpt))

    mine, theirs = "\n".join(story("book")).split(), "\n".join(story("reference")).split()
    assert len(mine) == len(theirs)
    differing = [pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1]]
    assert len(differing) < len(mine) / 20, differing  # the last digit, where the tables round


@pytest.mark.parametrize("group", ["steps", "decoding"])
def test_the_benchmark(group):
    config = bench.BenchConfig(device_type="cpu", cases=group, repeats=1, quick=True, gpt="reference")
    for case in config.groups(this_machine(torch.device("cpu")))[group]:
        facts, turn = bench.WORK[case.work](case, torch.device("cpu"))
        assert facts["tokens"] > 0
        assert turn()["total"] > 0
