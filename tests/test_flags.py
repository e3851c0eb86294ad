"""nanochat.flags: a dataclass becomes flags, and every mistake one line."""

import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

import pytest

from nanochat.common import UserError
from nanochat.flags import REQUIRED, flag, parse_command, parse_flags

C = TypeVar("C")


@dataclass(frozen=True)
class Example:
    """Every kind of flag there is."""

    depth: int = flag(20, "number of layers, 100% of them", alias="-n")
    matrix_lr: float = flag(0.02, "learning rate")
    model_tag: str = ""
    compile: bool = True
    resume: bool = False
    dtype: Literal["auto", "float32"] = "auto"
    device_type: str = flag("", "", choices=("", "cuda", "cpu"), group="where")
    source: str | None = flag(None, "", name="--from")
    n_kv_head: int | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"--depth is {self.depth}; at least 1 layer is needed")


def parse(*argv: str) -> Example:
    return parse_flags(Example, argv, "example", "An example.")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Example()),
        (["--depth=4"], Example(depth=4)),
        (["--depth", "4"], Example(depth=4)),
        (["-n", "4"], Example(depth=4)),
        (["-n4"], Example(depth=4)),
        (["--depth=4", "--depth=5"], Example(depth=5)),
        (["--matrix_lr=1e-3"], Example(matrix_lr=0.001)),
        (["--matrix-lr=1"], Example(matrix_lr=1.0)),
        (["--matrix_lr", "-1"], Example(matrix_lr=-1.0)),
        (["--model-tag=my-run_1=x"], Example(model_tag="my-run_1=x")),
        (["--model_tag="], Example(model_tag="")),
        (["--resume"], Example(resume=True)),
        (["--resume", "--compile=false"], Example(resume=True, compile=False)),
        (["--compile=No"], Example(compile=False)),
        (["--resume", "--resume=false"], Example()),
        (["--dtype=float32"], Example(dtype="float32")),
        (["--device-type=cpu"], Example(device_type="cpu")),
        (["--from=a b"], Example(source="a b")),
        (["--n-kv-head=2"], Example(n_kv_head=2)),
    ],
)
def test_flags_become_fields(argv: list[str], expected: Example) -> None:
    got = parse(*argv)
    assert got == expected
    assert [type(value) for value in vars(got).values()] == [type(value) for value in vars(expected).values()]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dept=4"], "there is no flag --dept; did you mean --depth?"),
        (["--matrix-rl=4"], "there is no flag --matrix-rl; did you mean --matrix_lr?"),
        (["--dep=4"], "there is no flag --dep; did you mean --depth?"),  # no abbreviations
        (["--zzzzz"], "there is no flag --zzzzz ("),
        (["-q"], "there is no flag -q ("),
        (["--source=x"], "there is no flag --source"),
        (["depth=4"], "'depth=4' is no flag; flags look like --name=value"),
        (["--resume", "--", "x"], "no flag"),
        (["--depth=four"], "--depth: wants a whole number, not 'four' ("),
        (["--depth=4.0"], "wants a whole number, not '4.0'"),
        (["--depth="], "wants a whole number, not ''"),
        (["--depth"], "Parameter --depth requires an argument ("),
        (["--matrix_lr=nan"], "--matrix_lr: wants a number, not 'nan' ("),
        (["--matrix_lr=inf"], "--matrix_lr: wants a number, not 'inf' ("),
        (["--resume=maybe"], '--resume: unable to convert "maybe" into bool ('),
        (
            ["--dtype=float16"],
            'Invalid value "float16" for --dtype. Choose from: "auto", "float32". Did you mean',
        ),
        (["--device_type=gpu"], 'Invalid value "gpu" for --device_type. Choose from: '),
        (["--depth=0"], "--depth is 0; at least 1 layer is needed"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert caught.value.code == 0
    assert "--depth, -n INT: number of layers, 100% of them [default: 20]" in text
    assert "--matrix_lr FLOAT: learning rate [default: 0.02]" in text
    assert "--resume: [default: False]" in text
    assert "--dtype CHOICE: [choices: auto, float32] [default: auto]" in text
    assert "--from STR" in text
    assert text.startswith("Usage: example [OPTIONS] An example.")
    assert text.index("--dtype") < text.index("where: --device_type CHOICE: [choices: cuda, cpu]")
    assert "--n_kv_head INT:" in text
    assert "--model_tag STR: --compile: [default: True]" in text  # nothing is said of an empty default
    assert text.index("where:") < text.index("--from")


@dataclass(frozen=True)
class Bare:
    depth: int


@dataclass(frozen=True)
class Told:
    depth: int = flag(REQUIRED, "number of layers")


@pytest.mark.parametrize("kind", [Bare, Told])
def test_a_required_flag(kind: type[Bare] | type[Told]) -> None:
    assert parse_flags(kind, ["--depth=3"], "p", "d") == kind(3)
    with pytest.raises(TypeError, match="depth"):
        kind()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [Bare, Told])
def test_a_required_flag_that_is_missing(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(kind, [], "p", "d")
    assert "error: Parameter --depth requires an argument" in capsys.readouterr().err


def test_a_field_knows_its_help_text() -> None:
    assert dict(fields(Example)[0].metadata) == {"help": "number of layers, 100% of them", "alias": "-n"}
    assert Example.depth == 20


def test_inherited_fields_are_flags_too(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Heir(Example):
        more: int = flag(1, "of its own")
        depth: int = flag(3, "layers of the heir", alias="-n")

    got = parse_flags(Heir, ["--more=2", "--matrix-lr=1", "--from=x"], "p", "d")
    assert got == Heir(more=2, matrix_lr=1.0, source="x")
    assert got.depth == 3
    with pytest.raises(SystemExit):
        parse_flags(Heir, ["--help"], "p", "d")
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert (
        "--depth, -n INT: layers of the heir [default: 3] --matrix_lr" in text
    )  # where it was declared first
    assert "100%" not in text


@dataclass(frozen=True)
class Look:
    """Look at what is named."""

    names: tuple[str, ...] = flag((), "what to look at", positional=True)
    closely: bool = flag(False, "with care")


@dataclass(frozen=True)
class Touch:
    """Touch one thing."""

    name: str = flag(REQUIRED, "what to touch", positional=True)
    times: int = flag(1, "how often")


COMMANDS = {"touch": Touch, "look": Look}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["touch", "it"], Touch("it")),
        (["touch", "it", "--times=3"], Touch("it", 3)),
        (["touch", "--times=3", "it"], Touch("it", 3)),
        (["look"], Look()),
        (["look", "a", "b", "--closely"], Look(("a", "b"), True)),
    ],
)
def test_a_command_is_a_class(argv: list[str], expected: object) -> None:
    assert parse_command(COMMANDS, argv, "p", "d") == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tuch"], "there is no command 'tuch'; did you mean touch? (there are touch, look)"),
        (["zzz"], "there is no command 'zzz' (there are touch, look)"),
        (["touch"], "parameter NAME requires an argument"),
        (["touch", "it", "that"], "'that' is no flag"),
        (["touch", "it", "--time=3"], "there is no flag --time; did you mean --times?"),
        (["look", "--closely=x"], "--closely"),
    ],
)
def test_a_wrong_command_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command(COMMANDS, argv, "p", "d")
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_help_lists_the_commands_and_each_ones_flags(capsys: pytest.CaptureFixture[str]) -> None:
    shown: tuple[tuple[list[str], str], ...] = (
        ([], "touch: Touch one thing. look: Look at"),
        (["touch"], "Usage: p touch NAME [OPTIONS]"),
        (["touch"], "NAME: what to touch [required]"),
        (["touch"], "--times INT: how often"),
    )
    for argv, words in shown:
        with pytest.raises(SystemExit) as caught:
            parse_command(COMMANDS, [*argv, "--help"], "p", "d")
        assert caught.value.code == 0
        assert words in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_page_of_help_has_the_width_of_the_terminal_and_needs_no_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    for argv in (["--help"], ["--depth=x", "-h"]):
        with pytest.raises(SystemExit):
            parse(*argv)
        lines = capsys.readouterr().out.splitlines()
        assert lines[5:7] == ["  --depth, -n INT: number of layers,", "      100% of them [default: 20]"]
        assert max(map(len, lines)) <= 40


def test_the_library_is_imported_when_a_command_line_is_read_and_pytorch_is_not() -> None:
    program = (
        "import sys\nfrom nanochat.train_config import TrainConfig\nfrom nanochat.flags import parse_flags\n"
        "before = 'cyclopts' in sys.modules\n"
        "parse_flags(TrainConfig, ['--eval_tokens=-1'], 'p', 'd')\n"
        "print(before, 'cyclopts' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True False"


def test_a_bug_in_the_dataclass_is_not_disguised() -> None:
    @dataclass(frozen=True)
    class Buggy:
        depth: int = 1

        def __post_init__(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parse_flags(Buggy, [], "p", "d")


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("scripts.base_eval", "EvalConfig"),
        ("scripts.base_loss", "LossConfig"),
        ("scripts.bench", "BenchConfig"),
        ("scripts.compare", "CompareConfig"),
        ("scripts.learn_via_debug.debug_gpt_components", "WalkConfig"),
        ("scripts.quickstart", "QuickConfig"),
        ("scripts.sample", "SampleConfig"),
        ("nanochat.train_config", "TrainConfig"),
    ],
)
def test_every_program_that_builds_a_model_can_build_any(module: str, config: str) -> None:
    made = getattr(importlib.import_module(module), config)()
    assert made.gpt in ("book", "")  # "": the one that trained
