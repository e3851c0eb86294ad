"""Every script runs with --gpt=reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanochat.machine import this_machine
from scripts import bench
from scripts.base_train import train
from scripts.learn_via_debug.debug_gpt_components import WalkConfig, walk
from scripts.sample import load_model
from tests.tiny_run import make_base, records, tiny_config

pytest.importorskip("transformers", reason="the reference is in the transformers library")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        make_base(folder)
        yield folder


@pytest.mark.usefixtures("base")
def test_training_and_its_checkpoints():
    """Same seed, same data: the losses are the book's but for rounding; a checkpoint is for either model."""
    results = {gpt: train(tiny_config(gpt=gpt, sample_every=8, n_kv_head=1)) for gpt in ("book", "reference")}
    book, reference = (records(results[gpt].folder) for gpt in ("book", "reference"))
    for mine, theirs in zip(book, reference, strict=True):
        assert mine.keys() == theirs.keys()
        for key in {"loss", "val_bpb"} & mine.keys():
            assert mine[key] == pytest.approx(theirs[key], abs=2e-3)
    folder = results["reference"].folder
    meta = json.loads(max(folder.glob("meta_*.json")).read_text())["meta"]
    assert meta["gpt"]["name"] == "reference"
    own, tokenizer = load_model(folder.name, torch.device("cpu"))
    other, _ = load_model(folder.name, torch.device("cpu"), gpt="book")
    assert type(own).__module__ == "nanochat.gpt"
    assert type(other).__module__ == "nanochat.normans_gpt"
    ids = torch.tensor([tokenizer.encode("the state of the union", prepend=tokenizer.bos)])
    torch.testing.assert_close(own(ids), other(ids), atol=2e-2, rtol=0)
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
