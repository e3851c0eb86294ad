"""The table of what follows what: its parts, its training against counting, its chapter's numbers."""

from __future__ import annotations

import ast
import gzip
import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.bigram import (
    START,
    alphabet_of,
    bits_per_byte,
    counted,
    draw_batch,
    mean_loss,
    new_table,
    pairs,
    step,
    write,
)
from nanochat.common import UserError
from nanochat.dataset import documents, prepare_sotu
from scripts import bigram as program
from tests.programs import run_main
from tests.test_book_numbers import says
from tests.test_shown import PRINTED

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "lit" / "03-a-table-of-what-follows-what.md"
WORD = ["abracadabra"]
LETTERS = alphabet_of(WORD)

Pairs = tuple[Tensor, Tensor]
Speeches = tuple[bytes, Pairs, Pairs]


def shares(inputs: Tensor, V: int) -> Tensor:
    """How much of the text each row belongs to."""
    return torch.bincount(inputs, minlength=V).double() / len(inputs)


def share_and_follow(inputs: Tensor, targets: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """s of each row, (V, 1), and how often what came after it, (V, V)."""
    times = torch.zeros(V, V, dtype=torch.float64)
    for a, b in zip(inputs.tolist(), targets.tolist(), strict=True):
        times[a, b] += 1
    return shares(inputs, V)[:, None], times / times.sum(-1, keepdim=True).clamp(min=1)


# ---- the parts


def test_every_byte_is_a_target_once_and_no_pair_joins_two_documents() -> None:
    texts = ["añb", "", "b"]
    alphabet = alphabet_of(texts)
    assert alphabet == b"ab\xb1\xc3"
    inputs, targets = pairs(texts, alphabet)
    assert inputs.dtype == targets.dtype == torch.int64
    assert targets.tolist() == [1, 4, 3, 2, 2]
    assert inputs.tolist() == [START, 1, 4, 3, START]


def test_a_byte_that_training_never_had_is_no_byte_of_the_alphabet() -> None:
    inputs, targets = pairs(["axb"], b"ab")
    assert (inputs.tolist(), targets.tolist()) == ([START, 1, START], [1, START, 2])


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_an_error_that_says_so(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        pairs(texts, b"a")


def test_the_loss_is_pytorchs_cross_entropy() -> None:
    inputs, targets = pairs(WORD, LETTERS)
    table = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = F.cross_entropy(table[inputs], targets)
    torch.testing.assert_close(mean_loss(table, inputs, targets), theirs)
    assert bits_per_byte(table, inputs, targets) == pytest.approx(theirs.item() / math.log(2))


def test_the_gradient_is_the_share_times_what_is_expected_minus_what_came() -> None:
    inputs, targets = pairs(WORD, LETTERS)
    table = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table.requires_grad_()
    (found,) = torch.autograd.grad(mean_loss(table, inputs, targets), table)
    s, q = share_and_follow(inputs, targets, 6)
    torch.testing.assert_close(found, (s * (table.softmax(-1) - q)).detach())


def test_a_step_goes_against_the_gradient_once() -> None:
    inputs, targets = pairs(WORD, LETTERS)
    table, twin = new_table(LETTERS), new_table(LETTERS)
    for _ in range(2):  # a gradient that is not cleared would show in the second
        (gradient,) = torch.autograd.grad(mean_loss(twin, inputs, targets), twin)
        before = mean_loss(table, inputs, targets).item()
        assert step(table, inputs, targets, 0.7) == before
        assert table.grad is None
        twin = (twin - 0.7 * gradient).detach().requires_grad_()
        torch.testing.assert_close(table, twin)
        assert mean_loss(table, inputs, targets).item() < before


def test_a_step_that_is_recorded_is_refused_in_the_words_of_the_chapter() -> None:
    says(3, 'PyTorch refuses: "a leaf Variable that requires grad is being used in an in-place operation"')
    table = new_table(LETTERS)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
        table -= torch.ones_like(table)


def test_a_batch_is_drawn_from_the_pairs_by_a_seed() -> None:
    inputs, targets = pairs(WORD, LETTERS)
    first = draw_batch(inputs, targets, 500, torch.Generator().manual_seed(1))
    again = draw_batch(inputs, targets, 500, torch.Generator().manual_seed(1))
    assert all(map(torch.equal, first, again))
    real = set(zip(inputs.tolist(), targets.tolist(), strict=True))
    assert set(zip(first[0].tolist(), first[1].tolist(), strict=True)) == real


def test_counting_gives_the_frequencies_and_no_table_has_less_loss() -> None:
    inputs, targets = pairs(WORD, LETTERS)
    best = counted(inputs, targets, LETTERS, extra=1e-9)
    _, q = share_and_follow(inputs, targets, 6)
    torch.testing.assert_close(best.exp()[1:], q[1:], atol=1e-8, rtol=0)
    least = mean_loss(best, inputs, targets).item()
    assert least == pytest.approx(4 / 11 * 1.5 * math.log(2), abs=1e-7)
    rng = torch.Generator().manual_seed(0)
    for spread in (0.01, 0.1, 1.0):
        other = best + spread * torch.randn(6, 6, generator=rng, dtype=torch.float64)
        assert mean_loss(other, inputs, targets).item() > least
    smooth = counted(inputs, targets, LETTERS, extra=0.5)
    torch.testing.assert_close(smooth.exp().sum(-1), torch.ones(6, dtype=torch.float64))
    assert smooth.exp()[1, 2].item() == pytest.approx((2 + 0.5) / (4 + 6 * 0.5))


def test_gradient_descent_approaches_what_counting_gives() -> None:
    """A function that is bent upwards, by at most L, ends within |w|²/(2 η k) of its least value after k
    steps of η <= 1/L from 0, w being the best place: Nesterov, Introductory Lectures, theorem 2.1.14. By
    exercise 8 L is at most half of the largest share."""
    inputs, targets = pairs(WORD, LETTERS)
    V, tenth = 6, 10
    every = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T
    inputs = torch.cat([inputs.repeat(tenth), every[0]])  # ten times the text and each pair once
    targets = torch.cat([targets.repeat(tenth), every[1]])  # is the text with a tenth of each pair more
    best = counted(*pairs(WORD, LETTERS), LETTERS, extra=1 / tenth)
    least = mean_loss(best, inputs, targets).item()
    far = (best - best.mean(-1, keepdim=True)).square().sum().item()
    rate = 2 / shares(inputs, V).max().item()
    table, last = new_table(LETTERS), math.inf
    for number in range(200):
        loss = step(table, inputs, targets, rate)
        assert least - 1e-12 <= loss <= last
        if number:
            assert loss - least <= far / (2 * rate * number)
        last = loss + 1e-15
    torch.testing.assert_close(table.softmax(-1).detach(), best.exp(), atol=0.01, rtol=0)


def test_what_is_sure_is_written_and_what_is_no_text_is_shown_as_such() -> None:
    alphabet = alphabet_of(["ban"])
    inputs, targets = pairs(["banana"], alphabet)
    sure = counted(inputs, targets, alphabet, extra=1e-12)
    assert write(sure, alphabet, 9, random.Random(0)) == "bananana" + "n"
    half = alphabet_of(["é"])[1:]
    assert write(torch.zeros(2, 2), half, 2, random.Random(0)) == "\ufffd\ufffd"


def test_bytes_are_drawn_as_often_as_the_row_says() -> None:
    """3,000 draws of probability 0.9 are within six standard deviations of 2,700."""
    table = torch.tensor([[50.0, math.log(0.9), math.log(0.1)]] * 3)  # START is never drawn, however likely
    text = write(table, b"ab", 3000, random.Random(0))
    assert set(text) == {"a", "b"}
    assert abs(text.count("a") - 2700) < 6 * math.sqrt(3000 * 0.9 * 0.1)
    assert text == write(table, b"ab", 3000, random.Random(0)) != write(table, b"ab", 3000, random.Random(1))


# ---- the program


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base folder with the speeches; one thread, as the program has it."""
    folder = tmp_path_factory.mktemp("bigram")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        prepare_sotu()
        yield folder
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--steps=-1", "--steps=-1: must be at least 0"),
        ("--batch_size=0", "--batch_size=0: must be at least 1"),
        ("--eval_every=0", "--eval_every=0: must be at least 1"),
        ("--length=-1", "--length=-1: must be at least 0"),
        ("--learning_rate=0", "--learning_rate=0.0: must be above 0"),
        ("--rate=1", "there is no flag --rate"),
        ("--data=nothing", "there is no corpus 'nothing'"),
        ("--learning_rate=1e308", "the loss is inf at step 200: lower --learning_rate"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flag: str, told: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(program.main, flag, *(["--steps=200"] if "e308" in flag else [])) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_corpus_of_ones_own_can_be_given(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("a né " * (number + 1))
    from nanochat.dataset import prepare_folder

    prepare_folder(folder, "mine")
    assert run_main(program.main, "--data=mine", "--steps=3", "--eval_every=2", "--length=0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine: 18 bytes to learn from, 18 kept back"
    assert lines[1].startswith("5 different bytes")
    assert [line[:9] for line in lines[2:5]] == ["step    0", "step    2", "step    3"]
    assert "it writes:" not in lines


def test_another_kind_of_vector_instruction_prints_the_same(base: Path) -> None:
    """Sums are rounded otherwise there, by some 1e-16. A step on a function that is bent upwards does not
    make a difference larger while its rate is below 2/λ, so after a thousand they are far below 1e-5."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bigram"], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    (command, printed), *_ = PRINTED.findall(CHAPTER.read_text(encoding="utf-8"))
    assert command == "scripts.bigram"
    assert done.stdout == printed


# ---- the numbers of the chapter


@pytest.fixture(scope="module")
def speeches(base: Path) -> Speeches:
    """The alphabet, the training pairs and those of validation."""
    texts = list(documents("sotu", "train"))
    alphabet = alphabet_of(texts)
    return alphabet, pairs(texts, alphabet), pairs(documents("sotu", "val"), alphabet)


@pytest.fixture(scope="module")
def train(speeches: Speeches) -> Callable[..., Tensor]:
    """A function that trains as the program does, once for each rate, number of steps and size."""
    alphabet, (inputs, targets), _ = speeches

    @cache
    def trained(rate: float = 50.0, steps: int = 1000, size: int = 4096) -> Tensor:
        table, rng = new_table(alphabet), torch.Generator().manual_seed(42)
        for _ in range(steps):
            step(table, *draw_batch(inputs, targets, size, rng), rate)
        return table.detach()

    return trained


def shown(byte: bytes) -> str:
    """A byte as the chapter names it."""
    return "a space" if byte == b" " else byte.decode()


def test_numbers_of_the_text(speeches: Speeches) -> None:
    alphabet, (inputs, targets), (val_inputs, val_targets) = speeches
    V = len(alphabet) + 1
    says(3, f"only {len(alphabet)} of those occur", f"$\\ln {V} = {math.log(V):.4f}$")
    says(3, f"$\\log_2 {V} = {math.log2(V):.3f}$", f"| 1/{V} | {math.log(V):.3f} | {math.log2(V):.3f} |")
    says(3, f"$109 \\cdot 109 = {V * V:,}$", f"| which bytes occur | {math.log2(V):.3f} |")
    assert [f"{-math.log(p):.3f}" for p in (1 / 2, 1 / 4)] == ["0.693", "1.386"]
    says(3, "| 1/2 | 0.693 | 1 |", "| 1/4 | 1.386 | 2 |", f"$1/\\ln 2 = {1 / math.log(2):.3f}$ bits")
    says(3, f"saves $\\ln (0.9/0.5) = {math.log(0.9 / 0.5):.3f}$", f"$\\ln(0.25/0.05) = {math.log(5):.3f}$")
    says(3, f"itself, ${-400 * math.log(10):.0f}$", f"costs a {len(inputs) // 4096 // 100 * 100:,}th")
    floor = 1.5 * math.log(2)
    says(3, f"\\cdot {floor:.3f} = {4 / 11 * floor:.3f}$ nats a letter")
    says(3, "$109^3 = 1,295,029$ scores", "With three bytes there are 141 million scores")
    assert round(109**4 / 1e6) == 141
    assert 109**6 > 1e12
    seen = torch.bincount(inputs * V + targets, minlength=V * V) > 0
    says(3, f"Of the {V * V:,} pairs only {int(seen.sum()):,} occur")
    assert not seen[val_inputs * V + val_targets].all(), "without `extra` the loss is infinite"
    never = bits_per_byte(counted(inputs, targets, alphabet, extra=0.0), val_inputs, val_targets)
    assert never == math.inf
    text = "".join(documents("sotu", "val")).encode()
    says(3, f"| `gzip -9` | {8 * len(gzip.compress(text, 9)) / len(text):.3f} |")
    often = (torch.bincount(targets, minlength=V) + 1).double()
    each = -(often / often.sum()).log2()[val_targets].mean().item()
    says(3, f"| how often each byte occurs | {each:.3f} |")
    of_counting = [bits_per_byte(counted(inputs, targets, alphabet), *p) for p in speeches[1:]]
    says(3, f"has {of_counting[0]:.4f} on the training speeches and {of_counting[1]:.4f} on these")
    says(3, f"| the table of this chapter, counted | {of_counting[1]:.3f} |", "11.5 million pairs")


def test_the_model_has_less_than_fifty_lines() -> None:
    source = (ROOT / "nanochat" / "bigram.py").read_text()
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            told |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = [line for number, line in enumerate(source.split("\n"), 1) if line.strip() and number not in told]
    assert 40 <= len(lines) < 50


def test_numbers_of_the_steepest_valley(speeches: Speeches) -> None:
    alphabet, (inputs, targets), _ = speeches
    V = len(alphabet) + 1
    q, s = counted(inputs, targets, alphabet, extra=0.0).exp().nan_to_num(0), shares(inputs, V)
    steepest = [torch.linalg.eigvalsh(row.diag() - row.outer(row))[-1].item() for row in q]
    assert all(0 <= value <= 0.5 for value in steepest)
    bends = s * torch.tensor(steepest)
    e = alphabet.index(b"e") + 1
    assert bends.argmax().item() == e
    says(3, f"its $\\lambda$ is {bends[e].item():.4f}", f"$2/0.0248 = {2 / bends[e].item():.0f}$")
    says(3, f"it is {steepest[e]:.4f}, times the share {s[e].item():.4f} is {bends[e].item():.4f}")

    def loss_after(rate: float) -> float:
        """Steps with the exact gradient of the whole text, of which counting knows everything."""
        table = torch.zeros(V, V, dtype=torch.float64)
        for _ in range(1000):
            table -= rate * s[:, None] * (table.softmax(-1) - q)
        return mean_loss(table, inputs, targets).item()

    assert loss_after(40) > loss_after(80) < loss_after(100), "just below 81 is best, above it is worse"


@pytest.mark.slow
def test_too_long_steps_make_a_difference_in_the_last_digits_large(speeches: Speeches) -> None:
    alphabet, train, val = speeches
    for rate, limit in ((50.0, 1e-9), (500.0, math.inf)):
        ends = []
        for first in (0.0, 1e-13):
            table, rng = new_table(alphabet), torch.Generator().manual_seed(42)
            with torch.no_grad():
                table[1:, 1] += first
            for _ in range(1000):
                step(table, *draw_batch(*train, 4096, rng), rate)
            ends.append(table.detach())
        difference = (ends[0] - ends[1]).abs().max().item()
        assert difference < limit
        if limit == math.inf:
            assert difference > 1
            assert min(bits_per_byte(end, *val) for end in ends) > math.log2(len(alphabet) + 1)
    says(3, f"the {math.log2(len(alphabet) + 1):.2f} bits of one that says nothing")


@pytest.mark.slow
def test_numbers_of_training(speeches: Speeches, train: Callable[..., Tensor]) -> None:
    alphabet, (inputs, targets), val = speeches
    for rate in (1, 5, 50, 100):
        says(3, f"| {rate} | {bits_per_byte(train(rate), *val):.4f} |")
    says(3, f"over all training pairs the trained table has {bits_per_byte(train(), inputs, targets):.4f}")
    after = [bits_per_byte(train(steps=steps), *val) for steps in (1000, 2000, 4000)]
    says(3, f"After 2,000 of them validation is {after[1]:.4f}, after 4,000 it is {after[2]:.4f}")
    gaps = [bits - bits_per_byte(counted(inputs, targets, alphabet), *val) for bits in after]
    assert all(0.55 < later / earlier < 0.65 for earlier, later in itertools.pairwise(gaps))
    says(3, f"validation ends at {bits_per_byte(train(size=64), *val):.2f} bits per byte instead of")


def test_numbers_of_the_rows(speeches: Speeches, train: Callable[..., Tensor]) -> None:
    alphabet, (inputs, targets), _ = speeches
    V = len(alphabet) + 1
    count, found = counted(inputs, targets, alphabet).exp(), train().softmax(-1)
    s = shares(inputs, V)
    for byte in (b" ", b"e", b"h", b"q", b"Z"):
        a = alphabet.index(byte) + 1
        b = int(count[a].argmax())
        share = f"{100 * s[a].item():.4f}" if byte == b"Z" else f"{100 * s[a].item():.2f}"
        says(3, f"| {shown(byte)} | {share} % | {shown(alphabet[b - 1 : b])} | {count[a, b].item():.4f} | "
             f"{found[a, b].item():.4f} |")  # fmt: skip
    space, rare = (s[alphabet.index(byte) + 1].item() for byte in (b" ", b"Z"))
    says(3, f"{round(space / rare, -2):,.0f} times as fast", f"about {1000 * 4096 * rare:.0f} begin with")
    times = torch.bincount(inputs * V + targets, minlength=V * V).view(V, V)
    wasted = (s * (found * (times == 0)).sum(-1)).sum().item()
    says(3, f"gives {100 * wasted:.1f} % of its guesses to what never comes")
    likeliest, at, text = found.argmax(-1).tolist(), START, b""
    for _ in range(14):
        at = likeliest[at]
        text += alphabet[at - 1 : at]
    says(3, f'writes "{text.decode()}"')


def test_numbers_of_the_exercises(speeches: Speeches) -> None:
    alphabet, (inputs, targets), val = speeches
    V = len(alphabet) + 1
    says(3, f"{0.5:.1f} + {0.5 * math.log2(100):.2f} = {0.5 + 0.5 * math.log2(100):.2f}$ bits")
    says(3, f"${0.5:.1f} + {0.5 * math.log2(10):.2f} = {0.5 + 0.5 * math.log2(10):.2f}$")

    def first_below(factor: float) -> int:
        return next(n for n in range(1000) if factor**n < 0.01)

    says(3, f"{math.log(100) / -math.log(0.99):.1f}$: {first_below(0.99)} steps", f"/{-math.log(0.99):.5f}")
    says(
        3,
        f"multiplied by 0.981: {first_below(0.981)} steps",
        f"$0.9^n < 0.01$ needs {first_below(0.9)} steps",
    )
    rng = torch.Generator().manual_seed(0)
    noise = [torch.randn(V, V, generator=rng, dtype=torch.float64) for _ in range(3)]
    first, second, third = (f"{mean_loss(table, inputs, targets).item():.2f}" for table in noise)
    says(3, f"({first}, {second} and {third} with three seeds)")
    table = torch.zeros(4096, 4096)
    says(3, f"for a batch {table.numel() * 8 / 1e6:.0f} MB")

    def wide(inputs: Tensor) -> Tensor:
        before = torch.cat([torch.tensor([START]), inputs[:-1]])
        before[inputs == START] = START
        return before * V + inputs

    triples = torch.bincount(wide(inputs) * V + targets, minlength=V**3).view(V * V, V).double()
    log_p = ((triples + 0.1) / (triples + 0.1).sum(-1, keepdim=True)).log2()
    bits = -log_p[wide(val[0]), val[1]].mean().item()
    says(3, f"For the speeches it is {bits:.3f} bits per byte", f"it reaches {bits:.3f} bits per byte")
    says(3, f"{int((triples > 0).sum()):,} of the {V**3:,} triples occur")
