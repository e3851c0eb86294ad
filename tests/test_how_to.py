"""The guides are true: each command in them can be given as it stands, and the cheap ones keep their word."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nanochat import flags
from tests.programs import run_main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "lit" / "how-to").glob("*.md"), *(ROOT / "lit").glob("*.md"), ROOT / "README.md"])
SMALL = {  # what makes a command cheap enough to be run here
    "scripts.base_train": [
        "--depth=1",
        "--n_embd=32",
        "--n_head=2",
        "--num_iterations=2",
        "--device_type=cpu",
        "--dtype=float32",
        "--compile=false",
        "--sample_every=-1",
    ],
    "scripts.sample": ["--max_tokens=5", "--device_type=cpu"],
}
ELSEWHERE = ("scripts.quickstart",)  # has tests of its own


@dataclass(frozen=True)
class Command:
    """A line after a `$` in a block of console, with the lines that continue it."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def module(self) -> str:
        """What `-m` names."""
        return self.words[self.words.index("-m") + 1] if "-m" in self.words else ""

    @property
    def arguments(self) -> list[str]:
        """What follows it."""
        return list(self.words[self.words.index("-m") + 2 :])


def blocks(path: Path, language: str) -> Iterator[tuple[int, str]]:
    """The shown blocks of a language, each with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


def commands(path: Path) -> list[Command]:
    """All commands of a page."""
    found = []
    for line, block in blocks(path, "console"):
        joined = re.sub(r"\\\n *", "\v", block)
        for text in joined.split("\n"):
            if text.startswith("$ "):
                for part in text.removeprefix("$ ").replace("\v", "").split(" && "):
                    words = shlex.split(part, comments=True)
                    found.append(Command(path.relative_to(ROOT).as_posix(), line, tuple(words)))
            line += 1 + text.count("\v")
    return found


EVERY = [command for page in PAGES for command in commands(page)]


def run(module: str, *arguments: str) -> int:
    """Run a program's main in this process; returns the exit status."""
    return run_main(importlib.import_module(module).main, *arguments)


def test_there_are_commands_to_check() -> None:
    assert len({command.page for command in EVERY if "how-to" in command.page}) == 8
    assert len(EVERY) > 30


@pytest.mark.parametrize("command", EVERY, ids=str)
def test_a_command_can_be_given(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = list(command.words)
    while re.fullmatch(r"[A-Z_]+=\S*|nice|time", words[0]):
        words.pop(0)
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):.*?##", (ROOT / "Makefile").read_text(), re.M)
        for word in words[1:]:
            assert re.match(r"[A-Z]+=", word) or word in targets, f"make {word}"
    elif program in ("python", "torchrun", "python3"):
        if program == "torchrun":
            count = next(word for word in words if word.startswith("--nproc_per_node="))
            monkeypatch.setenv("WORLD_SIZE", count.partition("=")[2])
        assert command.module, "without -m"
        check_flags(command.module, command.arguments, monkeypatch)
    else:
        assert program in (
            "git",
            "scripts/local_cpu_own_gpt_transformer.sh",
            "scripts/local_cpu_train.sh",
            "bash",
            "curl",
            "sbatch",
        )


def check_flags(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program read its flags, and stop it there."""
    found = importlib.import_module(module)
    if not any(
        hasattr(found, reader) for reader in ("parse_flags", "parse_command", "App", "ArgumentParser")
    ):
        assert not arguments, f"{module} reads no flags"
        return

    class Enough(Exception):
        pass

    def stop_behind(reads: Callable[..., Any]) -> Callable[..., Any]:
        def read(*given: Any) -> None:
            reads(*given)
            raise Enough

        return read

    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    for reader in ("parse_flags", "parse_command"):
        if hasattr(found, reader):
            monkeypatch.setattr(found, reader, stop_behind(getattr(flags, reader)))
    with pytest.raises((Enough, SystemExit)) as end:
        found.main()
    assert not isinstance(end.value, SystemExit) or end.value.code == 0, "the program refuses these flags"


def give(page: str, **replaced: str) -> Iterator[Command]:
    """Run the commands of a guide, small, in the order of the page."""
    for command in commands(ROOT / "lit" / "how-to" / page):
        if command.module in ELSEWHERE:
            continue
        arguments = []
        for argument in command.arguments:
            for old, new in replaced.items():
                argument = argument.replace(old, new)
            arguments.append(argument)
        assert run(command.module, *arguments, *SMALL.get(command.module, [])) == 0, command
        yield command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base folder with a folder of letters in it."""
    folder = tmp_path_factory.mktemp("guides")
    rng = random.Random(0)
    syllables = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "o", "u", "ai", "ou")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    (folder / "letters").mkdir()
    for number in range(30):
        text = "Dear " + " ".join(rng.choices(words, k=400)) + ".\n"
        (folder / "letters" / f"{number}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        patch.chdir(folder)
        assert run("nanochat.dataset", f"--from={folder / 'letters'}", "--name=letters") == 0
        yield folder


def test_train_on_your_own_text(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = [command.module for command in give("train-on-your-own-text.md", **{"~": str(base)})]
    assert len(done) == 4
    out = capsys.readouterr().out
    assert "corpus letters in" in out
    assert out.splitlines()[-1].startswith("Dear")
    assert [path.name for path in (base / "base_checkpoints").iterdir()] == ["d1"]


def test_a_small_text_is_refused_in_the_words_of_the_guide(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("scripts.tok_train", "--data=letters", "--vocab_size=8192") == 2
    said = capsys.readouterr().err.removeprefix("error: ").strip()
    page = " ".join((ROOT / "lit" / "how-to" / "train-on-your-own-text.md").read_text().split())
    quoted = re.search(r"`(the texts give only [^`]*)`", page)
    assert quoted
    assert re.fullmatch(re.escape(quoted[1]).replace("…", r"[\d,]+"), said)


def test_use_your_model_elsewhere(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", minversion="5")
    assert len(list(give("use-your-model-elsewhere.md"))) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("My fellow")
    ((_, program),) = blocks(ROOT / "lit" / "how-to" / "use-your-model-elsewhere.md", "python")
    exec(program.replace("max_new_tokens=50", "max_new_tokens=3"), {})
    assert capsys.readouterr().out.startswith("My fellow")


def test_every_guide_is_linked_from_the_home_page() -> None:
    home = (ROOT / "lit" / "index.md").read_text()
    for path in (ROOT / "lit").rglob("*.md"):
        name = path.relative_to(ROOT / "lit").as_posix()
        assert name == "index.md" or f"({name})" in home, f"{name} is not linked from index.md"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        shown = r"^(```|~~~).*?^\1$|`[^`\n]*`"  # what is only an example of a link
        text = re.sub(shown, "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#\s:]+\.(?:md|svg|sh))(?:#[^)]*)?\)", text):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


# ---- the tutorial


def marked(page: str, mark: str) -> tuple[dict[str, Any], str]:
    """The record that a comment names, and the block of text behind the comment."""
    text = (ROOT / "lit" / page).read_text()
    match = re.search(rf"<!-- {mark}: (\S+) -->\n\n```text\n(.*?)```", text, re.S)
    assert match
    return json.loads((ROOT / match[1]).read_text()), match[2]


def test_the_transcript_is_what_the_recorded_run_printed() -> None:
    record, text = marked("02-five-minutes.md", "transcript")
    metrics, shape = record["metrics"], record["model"]
    seen = 0
    for line in text.splitlines():
        if match := re.match(
            r"step (\d+)/(\d+) .*\| loss: ([\d.]+) \| lrm: ([\d.]+) \| .*total time: ([\d.]+)m$", line
        ):
            at = metrics["step"].index(int(match[1]))
            assert int(match[2]) == record["config"]["num_iterations"]
            assert float(match[3]) == pytest.approx(metrics["smooth_loss"][at], abs=1e-4)
            assert float(match[4]) == pytest.approx(metrics["lrm"][at], abs=0.0051)
            seen += 1
        elif match := re.fullmatch(r"Step (\d+) \| Validation bpb: ([\d.]+)", line):
            scores = {entry["step"]: entry["val_bpb"] for entry in record["validation"]}
            assert float(match[2]) == pytest.approx(scores[int(match[1])], abs=1e-4)
            seen += 1
    assert seen == 7
    assert f"{shape['n_layer']} blocks, width {shape['n_embd']}, {shape['n_head']} heads" in text
    assert f"vocabulary {shape['vocab_size']:,}: {record['numbers']['parameters']:,} parameters" in text
    assert f"{record['config']['total_batch_size']:,} tokens" in text
    page = (ROOT / "lit" / "02-five-minutes.md").read_text()
    assert rf"$\ln {shape['vocab_size']} = {math.log(shape['vocab_size']):.2f}$" in page


def test_the_transcript_has_the_lines_that_training_prints_today(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words and their order, with numbers left out, from a run of a moment."""
    own_tokenizer = ["--vocab_size=300", "--data=letters"]
    assert run("scripts.tok_train", *own_tokenizer) == 0
    capsys.readouterr()
    small = ["--max_seq_len=16", "--device_batch_size=2", "--total_batch_size=32", "--eval_tokens=-1"]
    assert run("scripts.base_train", *own_tokenizer, *small, *SMALL["scripts.base_train"]) == 0
    printed = capsys.readouterr().out.splitlines()

    def pattern(line: str) -> str:
        return re.sub(r"[\d.,]+", "#", line).replace("bfloat#", "dtype").replace("float#", "dtype")

    _, text = marked("02-five-minutes.md", "transcript")
    kinds = {pattern(line) for line in printed}
    for line in text.splitlines()[1:]:
        known = pattern(line).replace("compiled;", "not compiled;")
        assert line == "…" or known in kinds, f"training prints no line like: {line}"


def test_the_samples_are_the_recorded_ones() -> None:
    record, text = marked("02-five-minutes.md", "samples")
    for sample in text.split("\n\n"):
        assert any(" ".join(sample.split()) in " ".join(whole.split()) for whole in record["samples"])
