"""scripts.sample: streams whole characters, prints samples in order, refuses wrong input in one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.common import run_program
from nanochat.engine import Engine
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer
from scripts.sample import main, print_texts

SHAPE = {"sequence_len": 16, "vocab_size": 265, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "n_embd": 16}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer([bytes([b]) for b in range(256)])


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> GPT:
    """A run `tiny` whose model writes ASCII letters, mostly, and never stops by itself."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE))
    model.init_weights()
    torch.nn.init.normal_(model.lm_head.weight)
    folder = tmp_path / "base_checkpoints" / "tiny"
    tokenizer.save(folder / "tokenizer")
    save_checkpoint(folder, 3, model, [], {"model": SHAPE, "tokenizer": tokenizer.fingerprint()})
    return model


def sample(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """Run the script's main in this process; returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["sample", "--device_type=cpu", *flags])
    try:
        run_program(main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_text_is_the_models(
    run: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--run=tiny", "--prompt=Fellow", "--max_tokens=9", "--temperature=0.5", "--top_k=7", "--seed=3")
    assert sample(monkeypatch, *flags, "--num_samples=2") == 0
    prompt = tokenizer.encode("Fellow", prepend=tokenizer.bos)
    expected = ""
    for i in range(2):
        tokens = list(run.generate(prompt, 9, 0.5, 7, seed=3 + i))
        tokens = tokens[: tokens.index(tokenizer.bos)] if tokenizer.bos in tokens else tokens
        expected += f"--- sample {i + 1} of 2\nFellow{tokenizer.decode(tokens)}\n"
    assert capsys.readouterr().out == expected
    assert sample(monkeypatch, *flags) == 0  # one sample has no title
    assert capsys.readouterr().out == expected.split("\n")[1] + "\n"


def test_greedy_and_the_whole_vocabulary(
    run: GPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for flags in (("--temperature=0", "--seed=1"), ("--temperature=0", "--seed=2"), ("--top_k=0",)):
        assert sample(monkeypatch, "--max_tokens=12", *flags) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run=nosuch"], "error: no run 'nosuch' in"),
        (["--temperature=-1"], "error: --temperature=-1.0: must be at least 0"),
        (["--temperature=1e39"], "error: --temperature=1e+39: must be at most 1000"),
        (["--seed=-1"], "error: --seed=-1: must be at least 0"),
        ([f"--seed={2**64}"], f"error: --seed={2**64}: must be at most {2**63 - 1}"),
        (["--top_k=-1"], "error: --top_k=-1: must be at least 0"),
        (["--max_tokens=0"], "error: --max_tokens=0: must be at least 1"),
        (["--num_samples=0"], "error: --num_samples=0: must be at least 1"),
        (["--max_tokens=many"], "error: --max_tokens: wants a whole number, not 'many'"),
        (["--promt=x"], "did you mean --prompt?"),
        (["--max_tokens=200"], "need 200 positions, but the rotary tables have 160"),
    ],
)
def test_wrong_input_is_one_line(
    run: GPT,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sample(monkeypatch, *flags) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_any_run_it_says_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert sample(monkeypatch) == 2
    assert "no checkpoint yet" in capsys.readouterr().err


def test_another_tokenizer_is_refused(
    run: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base_checkpoints" / "tiny" / "tokenizer"
    for file in folder.iterdir():
        file.unlink()
    Tokenizer([bytes([b]) for b in reversed(range(256))]).save(folder)
    assert sample(monkeypatch) == 2
    assert "is not the one this model was trained with" in capsys.readouterr().err


class Recorder(io.StringIO):
    """A stdout that remembers each write that wrote something."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str, /) -> int:
        if text:
            self.writes.append(text)
        return len(text)


def stream(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, *columns: list[int | None]) -> list[str]:
    """What print_texts writes, piece by piece, for texts that begin with A, B, …"""
    recorder = Recorder()
    monkeypatch.setattr(sys, "stdout", recorder)
    beginnings = [chr(ord("A") + i) for i in range(len(columns[0]))]
    print_texts(beginnings, iter(columns), tokenizer)
    return recorder.writes


def test_a_character_is_never_split(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    text = "xé€🙂y"
    columns: list[list[int | None]] = [[byte] for byte in text.encode()]
    assert stream(monkeypatch, tokenizer, *columns) == ["A", "x", "é", "€", "🙂", "y", "\n"]


def test_bytes_that_are_no_character_become_the_replacement(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    first_of_two: int = "é".encode()[0]
    assert stream(monkeypatch, tokenizer, [first_of_two]) == ["A", "\ufffd\n"]
    assert "".join(stream(monkeypatch, tokenizer, [first_of_two], [120])) == "A\ufffdx\n"


def test_samples_come_in_order_and_each_as_early_as_it_can(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    a, b, c, d = b"abcd"
    writes = stream(monkeypatch, tokenizer, [a, b], [a, None], [None, None])
    assert writes == ["A", "a", "a", "\n", "Bb\n"]
    writes = stream(monkeypatch, tokenizer, [a, b], [None, c], [None, d])
    assert writes == ["A", "a", "\n", "Bbc", "d", "\n"]


def test_the_prompt_shows_before_the_first_token_is_made(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(sys, "stdout", recorder)

    def slow() -> Iterator[list[int | None]]:
        assert recorder.writes == ["A"]
        yield [120]

    print_texts(["A"], slow(), tokenizer)


def test_a_reader_who_leaves_is_no_error(
    run: GPT, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("scripts.sample.print_texts", broken)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert sample(monkeypatch, "--max_tokens=3") == 0


def test_wrong_flags_do_not_wait_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "__init__", engine)
    assert sample(monkeypatch, "--top_k=-3") == 2


def test_a_new_document_ends_the_text(
    run: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a temperature that makes all tokens alike, the one that ends a text soon comes."""
    for seed in range(99):
        tokens = list(run.generate([tokenizer.bos], 60, 100.0, seed=seed))
        if tokenizer.bos in tokens:
            break
    assert sample(monkeypatch, f"--seed={seed}", "--max_tokens=60", "--temperature=100", "--top_k=0") == 0
    assert capsys.readouterr().out == tokenizer.decode(tokens[: tokens.index(tokenizer.bos)]) + "\n"
