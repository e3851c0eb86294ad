"""scripts.base_loss: both splits measured alike, for runs and for folders of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import load_checkpoint
from nanochat.dataset import documents
from nanochat.normans_gpt import GPT
from nanochat.tokenizer import Tokenizer
from nanochat.trained import load_model, load_trained
from scripts import base_loss, export_hf
from scripts.base_train import train
from tests.programs import run_main
from tests.tiny_run import own_base, tiny_config


@pytest.fixture(scope="module", autouse=True)
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run that evaluated itself on all of the validation text; nothing else in its base folder."""
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield train(tiny_config(eval_tokens=-1, model_tag="told", num_iterations=4))


def measure(*flags: str) -> int:
    """Run the script's main in this process; returns the exit status."""
    return run_main(base_loss.main, "--device_type=cpu", "--dtype=float32", *flags)


def record(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_number_of_training_again(
    trained: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert measure("--eval_tokens=-1", f"--record={tmp_path / 'r.json'}", "--max_tokens=5") == 0
    out = capsys.readouterr().out
    kept = record(trained.folder / "loss_000004.json")
    assert kept == record(tmp_path / "r.json")
    assert kept["numbers"]["val"] == pytest.approx(trained.val_bpb, abs=1e-6)
    tokenizer = Tokenizer.load(trained.folder / "tokenizer")
    tokens = sum(1 + len(tokenizer.encode(text)) for text in documents("tiny", "val")) - 1
    assert kept["numbers"]["val_tokens"] == tokens
    assert tokens <= kept["numbers"]["train_tokens"] < tokens + 16 * 16
    assert f"val bpb: {trained.val_bpb:.4f} ({tokens:,} tokens of tiny)" in out
    assert "train bpb: " in out
    assert len(kept["samples"]) == 5
    assert kept["samples"][0].startswith("The state of the Union is")
    assert measure("--eval_tokens=300", "--max_tokens=0") == 0
    fewer = record(trained.folder / "loss_000004-2.json")
    assert (fewer["numbers"]["val_tokens"], fewer["samples"]) == (512, [])  # whole passes of 16 x 16
    assert record(trained.folder / "loss_000004.json") == kept


def test_what_is_measured_is_not_rounded(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the embedding of init_weights either, which on CUDA is bfloat16; here it is made so."""
    usual = GPT.init_weights

    def as_on_cuda(model: GPT) -> None:
        usual(model)
        model.transformer.wte.bfloat16()

    monkeypatch.setattr(GPT, "init_weights", as_on_cuda)
    saved = load_checkpoint(trained.folder).model
    found = load_trained("told", torch.device("cpu"))[0].state_dict()
    assert found.keys() == saved.keys()
    for name, weight in saved.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_what_writes_on_cuda_is(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def on_the_cpu(tag: str, device: torch.device, gpt: str) -> Any:
        asked.append(device)
        return load_trained(tag, torch.device("cpu"), gpt)

    monkeypatch.setattr("nanochat.trained.load_trained", on_the_cpu)
    model, _ = load_model("told", torch.device(device))
    assert asked == [torch.device(device)]
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_the_same_model_as_a_folder_of_transformers(trained: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5")
    export_hf.export("told", tmp_path / "theirs")
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    assert measure(f"--record={ours}") == 0
    flags = (f"--hf_path={tmp_path / 'theirs'}", "--data=tiny", f"--out={tmp_path / 'o'}")
    assert measure(*flags, f"--record={theirs}") == 0
    a, b = record(ours)["numbers"], record(theirs)["numbers"]
    assert {name: a[name] for name in a if "tokens" in name} == {
        name: b[name] for name in b if "tokens" in name
    }
    for split in ("train", "val"):
        assert b[split] == pytest.approx(a[split], abs=1e-3)  # the book's rotary tables are bfloat16
    assert len(record(theirs)["samples"]) == 5


def test_the_bytes_of_foreign_tokens(trained: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    export_hf.export("told", tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ours = Tokenizer.load(trained.folder / "tokenizer")
    foreign = base_loss.ForeignTokenizer(theirs, 310, "theirs")
    assert foreign.token_bytes().tolist() == [*ours.token_bytes().tolist(), *[0] * 10]
    text = "Grüße, 年!"
    assert foreign.encode([text, "we"], foreign.bos) == ours.encode([text, "we"], prepend=ours.bos)
    theirs.add_tokens("  é")
    assert base_loss.ForeignTokenizer(theirs, 310, "theirs").token_bytes()[300] == 4


class Stub:
    """As much of a tokenizer as is looked at."""

    bos_token_id: int | None = None
    eos_token_id: int | None = 0
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 2

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return ["a", "▁the"]


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert measure(*flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_tokens_that_are_not_spelt_in_bytes() -> None:
    with pytest.raises(base_loss.UserError, match="token 1, '▁the', is not spelt in bytes"):
        base_loss.ForeignTokenizer(Stub(), 2, "x")
    stub = Stub()
    stub.eos_token_id = None
    with pytest.raises(base_loss.UserError, match="no token that begins a document"):
        base_loss.ForeignTokenizer(stub, 2, "x")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--eval_tokens=0"], "--eval_tokens=0: at least 1"),
        (["--device_batch_size=0"], "must be at least 1"),
        (["--temperature=-1"], "--temperature=-1.0: must be at least 0"),
        (["--hf_path=x", "--run=told"], "leave out --run and --gpt"),
        (["--max_seq_len=1"], "--max_seq_len=1: a token and one before it"),
        (["--max_seq_len=5000"], "--max_seq_len=5000: the model's rotary tables end at 160 positions"),
        (["--temperature=1e39"], "--temperature=1e+39: must be at most 1000"),
        (["--run=tolld"], "no run 'tolld'"),
        (["--data=nothing"], "there is no corpus 'nothing'"),
        (["--hf_path=nowhere"], "there is no config.json"),
    ],
)
def test_wrong_flags(capsys: pytest.CaptureFixture[str], flags: list[str], reason: str) -> None:
    assert reason in refused(capsys, *flags)


def test_a_foreign_model_needs_a_text(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", minversion="5")
    export_hf.export("told", tmp_path / "theirs")
    assert "Give the name of a corpus with --data" in refused(capsys, f"--hf_path={tmp_path / 'theirs'}")
