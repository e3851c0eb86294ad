"""The judge in its own process, and what learners may do to it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.learning.hybrid import Source
from nanochat.learning.judge import Judge, Verdict, judge
from nanochat.learning.steps import STEPS
from tests.learning.rewriting import BOOK, verdict_on, with_function, written


@pytest.fixture(scope="module")
def court() -> Iterator[Judge]:
    with Judge(time_limit=20) as made:
        yield made


def verdicts(court: Judge, folder: Path, source: Source, *steps: str) -> list[Verdict]:
    return list(court.judge(written(folder, source), steps or None))


def mlp(body: str) -> Source:
    return with_function("MLP.forward", f"def forward(self, x):\n    {body}")


@pytest.mark.numerics
def test_the_book_passes_in_the_worker_and_verdicts_are_json(court: Judge, tmp_path: Path) -> None:
    given = verdicts(court, tmp_path, BOOK)
    assert [v.step for v in given] == [step.id for step in STEPS]
    assert {v.status for v in given} == {"passed"}
    assert [Verdict(**json.loads(json.dumps(v.to_json()))) for v in given] == given


def test_an_endless_loop_is_stopped_and_located(tmp_path: Path) -> None:
    source = mlp("while True:\n        x = x + 1")
    norm, hung, block = judge(
        written(tmp_path, source), ["norm", "MLP.forward", "Block.forward"], time_limit=4
    )
    assert (norm.status, hung.status, block.status) == ("passed", "error", "passed")
    assert "still running after 4 s" in (hung.difference or "")
    assert hung.line in {source.text.split("\n").index("        while True:") + n for n in (1, 2)}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os; os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
def test_a_dying_process_is_reported_and_replaced(
    court: Judge, tmp_path: Path, body: str, words: str
) -> None:
    dead, alive = verdicts(court, tmp_path, mlp(body), "MLP.forward", "norm")
    assert (dead.status, alive.status) == ("error", "passed")
    assert words in (dead.difference or "")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.exit(1)", "SystemExit"),
        ("return self.forward(x)", "RecursionError"),
        ("input(); return x", "EOFError"),
        ("x.nothing", "AttributeError"),
        ("return undefined", "NameError"),
        ("raise KeyError('x')", "KeyError"),
    ],
)
def test_an_exception_names_its_line(court: Judge, tmp_path: Path, body: str, words: str) -> None:
    bad, alive = verdicts(court, tmp_path, mlp(body), "MLP.forward", "norm")
    assert (bad.status, alive.status) == ("error", "passed"), bad
    assert words in (bad.difference or "")
    assert bad.line
    assert "those of weights" not in (bad.explanation or "")  # no attribute of the model is missing


def test_what_a_learner_prints_is_kept_and_breaks_nothing(court: Judge, tmp_path: Path) -> None:
    source = mlp("import os; print('here', x.shape); os.write(1, b'{}\\n'); return x")
    bad, alive = verdicts(court, tmp_path, source, "MLP.forward", "norm")
    assert "here torch.Size" in (bad.printed or "")
    assert (bad.status, alive.status) == ("failed", "passed")


def test_memory_has_an_end(court: Judge, tmp_path: Path) -> None:
    (bad,) = verdicts(court, tmp_path, mlp("return torch.zeros(10**12)"), "MLP.forward")
    assert bad.status == "error"


def test_nan_is_named() -> None:
    bad = verdict_on(mlp("return x * float('nan')"), "MLP.forward")
    assert "is NaN at index (0, 0, 0); 320 of 320" in (bad.difference or "")


def test_a_syntax_error_stops_all_steps_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, Source("x", BOOK.text.replace("return F.rms_norm", "return = F.rms_norm")))
    given = judge(path)
    assert len(given) == 18
    assert {v.status for v in given} == {"not judged"}
    line = next(n for n, text in enumerate(path.read_text().split("\n"), 1) if "return = F" in text)
    assert all(f"normans_gpt.py:{line}: Python cannot read this line" in (v.difference or "") for v in given)


def test_missing_files_classes_and_functions_are_named(tmp_path: Path) -> None:
    assert "make learn" in (judge(tmp_path / "none.py", ["norm"])[0].difference or "")
    no_mlp = Source("x", BOOK.text.replace("class MLP(", "class FeedForward("))
    assert "no class MLP (its classes are GPTConfig," in (verdict_on(no_mlp, "MLP.forward").difference or "")
    assert verdict_on(no_mlp, "Block.forward").status == "passed"
    no_norm = Source("x", BOOK.text.replace("def norm(", "def rms("))
    assert "has no norm; it defines GPTConfig, Cache, rms" in (verdict_on(no_norm, "norm").difference or "")
    no_method = Source("x", BOOK.text.replace("def estimate_flops(", "def count("))
    assert "class GPT has no estimate_flops" in (verdict_on(no_method, "GPT.estimate_flops").difference or "")


def test_another_architecture_gets_a_clear_answer_for_every_step() -> None:
    text = (
        "import torch.nn as nn\nclass LlamaModel(nn.Module):\n    def forward(self, x):\n        return x\n"
    )
    other = Source("llama.py", text)
    for step in STEPS:
        verdict = verdict_on(other, step.id)
        assert verdict.status == "error"
        assert "skeleton" in (verdict.difference or "")
        assert "LlamaModel" in (verdict.difference or "")


def test_an_unwritten_step_says_why_it_is_needed() -> None:
    verdict = verdict_on(mlp('raise NotImplementedError("TODO: Implement MLP.forward")'), "MLP.forward")
    assert verdict.status == "todo"
    assert verdict.explanation
    assert verdict.line
    half = mlp('h = self.c_fc(x)\n    raise NotImplementedError("TODO: the rest")')
    assert verdict_on(half, "MLP.forward").status == "todo"


def test_an_import_that_fails_is_named() -> None:
    text = "def norm(x):\n    return einops.f(x)"
    source = with_function("norm", text, top="import einops_of_nowhere as einops")
    verdict = verdict_on(source, "norm")
    assert verdict.status == "error"
    assert "No module named 'einops_of_nowhere'" in (verdict.difference or "")
    assert verdict_on(source, "MLP.forward").status == "passed"


def test_a_file_that_moves_torchs_defaults_does_not_blame_the_next_step(court: Judge, tmp_path: Path) -> None:
    source = mlp("torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); return x")
    bad, alive = verdicts(court, tmp_path, source, "MLP.forward", "CausalSelfAttention.forward")
    assert (bad.status, alive.status) == ("error", "passed")


def test_an_unknown_step_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        judge(written(tmp_path, BOOK), ["GPT.backward"])


def test_a_difference_tells_where_what_and_how_much() -> None:
    bad = verdict_on(mlp("return self.c_proj(F.relu(self.c_fc(x)).square()) + 0.25"), "MLP.forward")
    assert bad.mistake is None
    assert bad.magnitude == pytest.approx(0.25, rel=1e-3)
    assert "at index (0, 0, 0) should be" in (bad.difference or "")
    assert "100% of the numbers are off, by up to 0.25" in (bad.difference or "")
