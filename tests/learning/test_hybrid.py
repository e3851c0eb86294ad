"""Functions of one file in the model of another."""

import ast
import re
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nanochat.learning.hybrid import (
    Source,
    Unjudgeable,
    check_signature,
    graft,
    is_unwritten,
    load,
    read_source,
)
from nanochat.learning.steps import PHASES, STEPS, section_of, step_named
from tests.learning.rewriting import BOOK, verdict_on, with_function

LIT = Path(__file__).resolve().parents[2] / "lit"


def test_the_book_itself_passes_every_step() -> None:
    for step in STEPS:
        verdict = verdict_on(BOOK, step.id)
        assert verdict.status == "passed", verdict
        assert verdict.remark is None


def test_only_the_named_function_is_taken() -> None:
    text = re.sub(r"return F\.rms_norm.*", "return x * 2", BOOK.text).replace(".square()", "")
    learner = Source("mine.py", text)
    x = torch.tensor([[3.0, 4.0]])
    assert torch.equal(graft(BOOK, learner, ["norm"]).norm(x), x * 2)
    assert torch.equal(graft(BOOK, learner, ["MLP.forward"]).norm(x), load(BOOK).norm(x))


def test_imports_constants_helpers_and_extra_methods_come_along() -> None:
    learner = with_function(
        "MLP.forward",
        """
        def forward(self, x):
            return self.c_proj(self._bend(self.c_fc(x)))

        def _bend(self, h):
            return squared(h * ONE)
        """,
        top="""
        import math as m
        ONE = m.exp(0)
        def squared(h: "Nowhere"):
            return clip(h) ** TWO
        def clip(h):
            return h.clamp(min=0)
        TWO: int = 2
        UNUSED = 1 / 0
        """,
    )
    assert verdict_on(learner, "MLP.forward").status == "passed"


def test_a_constant_of_the_learner_counts_where_it_is_used() -> None:
    learner = Source("mine.py", BOOK.text.replace("SOFTCAP = 15.0", "SOFTCAP = 30.0"))
    assert verdict_on(learner, "GPT.forward").mistake == "softcap-of-30"
    assert verdict_on(learner, "GPT.generate").status == "passed"


def test_super_works_in_a_grafted_constructor() -> None:
    m = graft(BOOK, BOOK, ["Block.__init__"])
    assert isinstance(m.Block(m.GPTConfig(n_embd=8, n_head=2, n_kv_head=2), 0), torch.nn.Module)


def test_tracebacks_name_the_learners_file_and_line() -> None:
    learner = with_function(
        "MLP.forward", "def forward(self, x):\n    y = [missing for _ in x]\n    return y"
    )
    m = graft(BOOK, learner, ["MLP.forward"])
    config = m.GPTConfig(n_embd=8, n_head=2, n_kv_head=2)
    with pytest.raises(NameError) as caught:
        m.MLP(config)(torch.zeros(1, 1, 8))
    frames = [f for f in traceback.extract_tb(caught.value.__traceback__) if f.filename == learner.path]
    wanted = learner.text.split("\n").index("        y = [missing for _ in x]") + 1
    assert {frame.lineno for frame in frames} == {wanted}


def test_own_attribute_names_are_judged_together_with_the_own_constructor() -> None:
    text = (
        BOOK.text.replace("self.c_fc(x)", "self.up(x)")
        .replace("self.c_fc = nn", "self.up = nn")
        .replace("self.n_head", "self.heads")
    )
    learner = Source("mine.py", text)
    for step_id in ("CausalSelfAttention.__init__", "CausalSelfAttention.forward"):
        verdict = verdict_on(learner, step_id)
        assert verdict.status == "passed", verdict
        assert "together with your" in (verdict.remark or "")
    for step_id in ("MLP.__init__", "MLP.forward"):  # names of weights are those of checkpoints
        verdict = verdict_on(learner, step_id)
        assert verdict.status in ("failed", "error")
        assert "c_fc" in (verdict.difference or "") or "those of weights" in (verdict.explanation or "")


def test_a_missing_attribute_is_explained_while_the_other_function_is_unwritten() -> None:
    text = BOOK.text.replace("self.head_dim = config", "self.size = config")
    text = text.replace("self.n_kv_head * self.head_dim", "self.n_kv_head * self.size")
    learner = with_function("CausalSelfAttention.forward", FORWARD_TODO, Source("mine.py", text))
    verdict = verdict_on(learner, "CausalSelfAttention.__init__")
    assert verdict.status == "passed"  # whose names are used is open until both are there
    assert "CausalSelfAttention.forward" in (verdict.remark or "")
    wrong = "def forward(self, x, cos_sin, kv_cache=None):\n    return x * self.head_dim"
    verdict = verdict_on(
        with_function("CausalSelfAttention.forward", wrong, learner), "CausalSelfAttention.__init__"
    )
    assert verdict.status == "error"
    assert "head_dim" in (verdict.difference or "")
    assert "gives the object layer_idx, n_head, n_kv_head, size, c_q" in (verdict.explanation or "")


FORWARD_TODO = """
def forward(self, x, cos_sin, kv_cache=None):
    raise NotImplementedError("TODO: Implement it")
"""


@pytest.mark.parametrize(
    ("body", "unwritten"),
    [
        ("raise NotImplementedError('TODO: x')", True),
        ("'doc'\n    raise NotImplementedError", True),
        ("pass", True),
        ("...", True),
        ("return 1", False),
        ("raise ValueError", False),
    ],
)
def test_unwritten_functions_are_known(body: str, unwritten: bool) -> None:
    node = ast.parse(f"def f():\n    {body}\n").body[0]
    assert isinstance(node, ast.FunctionDef)
    assert is_unwritten(node) is unwritten


@pytest.mark.parametrize(
    ("signature", "complaint"),
    [
        ("x, cos_sin", "kv_cache"),
        ("self, x, cos_sin, kv_cache", "give kv_cache a default"),
        ("self, x, tables, kv_cache=None", "names and order"),
        ("self, x, cos_sin, kv_cache=None, *, dropout", "remove it or give it a default"),
    ],
)
def test_a_signature_that_callers_cannot_use_is_refused(signature: str, complaint: str) -> None:
    learner = with_function("CausalSelfAttention.forward", f"def forward({signature}):\n    return x")
    with pytest.raises(Unjudgeable, match=complaint):
        check_signature(learner, BOOK, "CausalSelfAttention.forward")


def test_a_further_parameter_with_a_default_is_accepted() -> None:
    check_signature(with_function("norm", "def norm(x, eps=1e-6):\n    return x"), BOOK, "norm")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unjudgeable, match="make learn"):
        read_source(tmp_path / "none.py")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Unjudgeable, match="null bytes: saved as UTF-16"):
        read_source(tmp_path / "binary.py")
    with pytest.raises(Unjudgeable, match=r"mine.py:2: Python cannot read this line \(def g\(\)\)"):
        Source("mine.py", "x = 1\ndef g()\n    pass\n").parse()
    with pytest.raises(Unjudgeable, match="null bytes"):
        Source("mine.py", "x = '\0'").parse()


def test_the_steps_are_eighteen_and_in_the_book() -> None:
    assert len(STEPS) == 18
    assert {step.phase for step in STEPS} == set(PHASES)
    assert sum(len(step.questions) for step in STEPS) == 12
    for step in STEPS:
        assert BOOK.find(step.id) is not None
        section = section_of(step, LIT)
        assert section is not None, f"{step.chapter} has no fragment {step.fragment}"
        assert section.path.read_text().split("\n")[section.line - 1].lstrip("# ") == section.heading
        assert all(companion in {s.id for s in STEPS} for companion in step.companions)


def test_hints_do_not_contain_the_answer() -> None:
    for step in STEPS:
        first, last = BOOK.segment(step.id)
        code = {line.strip() for line in BOOK.text.split("\n")[first - 1 : last] if len(line.strip()) > 15}
        for hint in step.hints:
            assert not [line for line in code if line in hint]


def test_a_step_is_found_by_its_short_name() -> None:
    assert step_named("MLP.forward").id == "MLP.forward"
    assert step_named("apply_rotary_emb()").id == "apply_rotary_emb"
    assert step_named("generate").id == "GPT.generate"
    with pytest.raises(KeyError):
        step_named("forward")
    with pytest.raises(KeyError):
        step_named("nothing")


def test_one_file_is_parsed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 may fail when two threads parse at once."""
    parsing: list[int] = []

    def parse(*_: object, **__: object) -> ast.Module:
        assert not parsing
        parsing.append(1)
        time.sleep(0.01)
        parsing.pop()
        return ast.Module([], [])

    monkeypatch.setattr(ast, "parse", parse)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda i: Source(f"{i}.py", "").parse(), range(8)))) == 8
