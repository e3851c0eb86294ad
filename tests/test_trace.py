"""The trace sees every call of the model, in order, from outside; and finds the first wrong tensor."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nanochat import normans_gpt
from nanochat.common import UserError
from nanochat.trace import Trace, first_difference, trace
from scripts.learn_via_debug import debug_gpt_components as walk

SHAPE = normans_gpt.GPTConfig(sequence_len=8, vocab_size=31, n_layer=4, n_head=2, n_kv_head=1, n_embd=16)
IDX = torch.arange(8)[None] % 31


def a_model(module: ModuleType = normans_gpt) -> normans_gpt.GPT:
    torch.manual_seed(0)
    model: normans_gpt.GPT = module.GPT(module.GPTConfig(**vars(SHAPE)))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def changed(tmp_path: Path, old: str, new: str) -> ModuleType:
    """The model's file with one edit, as a module of its own."""
    source = Path(normans_gpt.__file__).read_text()
    assert source.count(old) == 1
    path = tmp_path / f"changed_{abs(hash(new))}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def lines_of(run, **settings: bool) -> list[str]:
    lines: list[str] = []
    with trace(normans_gpt, out=lines.append, **settings):
        run()
    return lines


def recorded(module: ModuleType) -> Trace:
    model = a_model(module)
    with trace(module, out=None, keep=True) as recording, torch.no_grad():
        model(IDX)
    return recording


def test_forward_reads_as_a_print_in_every_method_would() -> None:
    model = a_model()
    lines = lines_of(lambda: model(IDX))
    assert lines[:2] == [
        "[DEBUG] GPT.forward() called",
        "[DEBUG]   idx.shape: torch.Size([1, 8]) int64",
    ]
    assert "[DEBUG]     cos_sin[1].shape: torch.Size([1, 8, 1, 4]) bfloat16" in lines
    assert lines[-1] == "[DEBUG]   returns.shape: torch.Size([1, 8, 31]) float32"


def test_every_call_in_order_with_its_depth() -> None:
    with trace(normans_gpt, out=None, keep=True) as recording:
        a_model()(IDX)
    names = [(call.name, call.depth) for call in recording.calls]
    built = ["Block.__init__", "CausalSelfAttention.__init__", "MLP.__init__"]
    assert [n for n, _ in names if n.endswith("__init__") and n in built] == built * 4
    forward = names[next(i for i, (n, _) in enumerate(names) if n == "GPT.forward") :]
    block = [
        ("Block.forward", 1),
        ("norm", 2),
        ("CausalSelfAttention.forward", 2),
        *[("apply_rotary_emb", 3)] * 2,
        *[("norm", 3)] * 2,
        ("norm", 2),
        ("MLP.forward", 2),
    ]
    assert forward == [("GPT.forward", 0), ("norm", 1), *block * 4, ("norm", 1)]
    assert len(forward) == 39  # the chapter says so
    assert "there are 39 calls in all" in " ".join(Path("lit/83-the-trace.md").read_text().split())


def test_functions_that_are_not_modules_are_seen() -> None:
    lines = lines_of(lambda: a_model().init_weights())
    called = [line.split()[-2] for line in lines if line.endswith(" called")]
    for name in ("GPT.init_weights()", "GPT._init_weights()", "GPT._precompute_rotary_embeddings()"):
        assert name in called
    assert any(line.startswith("[DEBUG]   config: GPTConfig(sequence_len=8,") for line in lines)


def test_statistics_on_demand() -> None:
    x = torch.tensor([[3.0, -4.0]])
    plain, full = (lines_of(lambda: normans_gpt.norm(x), statistics=s) for s in (False, True))
    assert plain[1] == "[DEBUG]   x.shape: torch.Size([1, 2]) float32"
    assert full[1] == plain[1] + " mean -0.5 std 3.5 max 4"


def test_a_generator_is_called_once_and_then_resumed() -> None:
    model = a_model()
    lines = lines_of(lambda: list(model.generate([1, 2], 2)))
    own = [line for line in lines if line.startswith(("[DEBUG] GPT", "[DEBUG]   yields"))]
    assert [line.split(":")[0] for line in own] == [
        "[DEBUG] GPT.generate() called",
        "[DEBUG]   yields",
        "[DEBUG] GPT.generate() resumed",
        "[DEBUG]   yields",
        "[DEBUG] GPT.generate() resumed",
    ]


def test_the_last_line_before_an_error_is_the_call_that_failed() -> None:
    lines: list[str] = []
    model = a_model()
    with pytest.raises(ValueError, match="rotary tables"), trace(normans_gpt, out=lines.append):
        model(torch.zeros(1, 81, dtype=torch.long))
    assert "returns" not in lines[-1]
    assert sys.getprofile() is None


def test_it_is_off_outside_the_block_and_gives_back_what_was_there() -> None:
    seen: list[str] = []

    def somebody_elses(frame: object, event: str, value: object) -> None:
        seen.append(event)

    sys.setprofile(somebody_elses)
    try:
        with trace(normans_gpt, out=None):
            pass
        assert sys.getprofile() is somebody_elses
    finally:
        sys.setprofile(None)
    forward = normans_gpt.GPT.forward
    lines_of(lambda: a_model()(IDX))
    assert normans_gpt.GPT.forward is forward
    assert not a_model()._forward_hooks


def test_only_the_first_rank_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with trace(normans_gpt):
        normans_gpt.norm(torch.ones(2))
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    with trace(normans_gpt):
        normans_gpt.norm(torch.ones(2))
    assert capsys.readouterr().out.startswith("[DEBUG] norm() called\n")


@pytest.mark.parametrize(
    ("old", "new", "where", "tensor"),
    [
        (
            "y1 = x1 * cos + x2 * sin",
            "y1 = x1 * cos - x2 * sin",
            "apply_rotary_emb returns (time 1)",
            "result",
        ),
        ("F.relu(self.c_fc(x)).square()", "F.relu(self.c_fc(x))", "MLP.forward returns (time 1)", "result"),
        (
            "x = x + self.mlp(norm(x))",
            "x = x + self.mlp(x)",
            "MLP.forward is called (time 1)",
            "x",
        ),
        (
            "x = norm(self.transformer.wte(idx))",
            "x = self.transformer.wte(idx)",
            "Block.forward is called",
            "x",
        ),
    ],
)
def test_the_first_difference_is_where_the_mistake_is(
    tmp_path: Path, old: str, new: str, where: str, tensor: str
) -> None:
    difference = first_difference(recorded(changed(tmp_path, old, new)), recorded(normans_gpt))
    assert difference is not None
    if "norm" in old and "norm" not in new:  # a call of norm is missing: the walk itself parts there
        assert "norm is called" in str(difference)
    else:
        assert difference.where.startswith(where)
        assert difference.tensor == tensor
        assert "differs by" in difference.how


@pytest.mark.numerics
def test_equal_models_have_no_difference(tmp_path: Path) -> None:
    other = changed(tmp_path, "F.relu(self.c_fc(x)).square()", "F.relu(self.c_fc(x)) ** 2")
    assert first_difference(recorded(other), recorded(normans_gpt)) is None


def test_shapes_dtypes_and_nan_are_differences(tmp_path: Path) -> None:
    expected = recorded(normans_gpt)
    line = "y1 = x1 * cos + x2 * sin"
    for new, how in (
        (line + "\n    y1 = y1 * torch.nan", "differs by inf"),
        (line + "\n    x = x.double()", "is torch.float64, expected torch.float32"),
        (line + "\n    y1 = y1[:, :-1]", "has shape"),
    ):
        try:
            found = first_difference(recorded(changed(tmp_path, line, new)), expected)
        except RuntimeError:  # torch refuses the shape first
            continue
        assert found is not None
        assert found.how.startswith(how)


def compared(tmp_path: Path, old: str, new: str, **settings: float) -> tuple[str, bool]:
    """What --against=book says of the model's file with one edit."""
    mine = Path(changed(tmp_path, old, new).__file__ or "")
    lines, same = walk.compare(
        walk.WalkConfig(gpt=str(mine), against="book", text="we the people", length=9, **settings)  # type: ignore[arg-type]
    )
    return "\n".join(lines), same


RELU2 = "F.relu(self.c_fc(x)).square()"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            RELU2,
            "F.gelu(self.c_fc(x))",
            ["MLP.forward returns (time 1): result differs by", "book.shape: torch.Size([1, 8, 128])"],
        ),
        (RELU2, "F.relu(self.c_fc(x)).square().double().float()[:, :1].expand(-1, 8, -1)", ["MLP.forward"]),
        (
            RELU2,
            "F.relu(self.c_fc(x)).detach() * F.relu(self.c_fc(x))",
            ["backward: gradient of transformer.h.1.mlp.c_fc.weight differs by"],
        ),
        (
            "        q, k = norm(q), norm(k)",
            "        q, k = norm(q), k",
            ["comes where the expected model has"],
        ),
    ],
)
def test_two_models_are_compared_and_the_first_difference_named(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    said, same = compared(tmp_path, old, new)
    assert not same
    assert said.startswith("different: --gpt=")
    for word in words:
        assert word in said
    if "differs by" in said:
        assert re.search(r"\n    book\.shape: torch\.Size\(.*\) float32$", said)
        detailed, _ = compared(tmp_path, old, new, statistics=True)
        assert re.search(r"\n    book\.shape: .* float32 mean \S+ std \S+ max \S+$", detailed)


@pytest.mark.numerics
def test_models_that_agree_are_said_to_and_how_much_was_compared(tmp_path: Path) -> None:
    said, same = compared(tmp_path, RELU2, "F.relu(self.c_fc(x)) ** 2")
    assert same
    forward, gradients = map(
        int, re.findall(r"(\d+) tensors of two forward passes and (\d+) gradients", said)[0]
    )
    assert forward > 100
    assert gradients == 2 + 2 * 6
    assert compared(tmp_path, RELU2, RELU2 + " * 1.0001")[1] is False
    assert compared(tmp_path, RELU2, RELU2 + " * 1.0001", tolerance=1e-2)[1] is True


def test_models_with_other_weights_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"transformer\.h\.0\.attn\.c_proj\.bias is \(128,\) in --gpt=.* and missing"
    ):
        compared(
            tmp_path,
            "self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)",
            "self.c_proj = nn.Linear(config.n_embd, config.n_embd)",
        )


def test_the_comparison_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, status in ((["--against=book"], 0), (["--gpt=book", "--against=boook"], None)):
        monkeypatch.setattr(sys, "argv", ["walk", "--length=4", "--text=we the", *flags])
        if status is None:
            with pytest.raises(UserError, match="--gpt=boook is none of"):
                walk.main()
            continue
        with pytest.raises(SystemExit) as caught:
            walk.main()
        assert caught.value.code == status
        assert capsys.readouterr().out.startswith("the same: --gpt=book and --against=book")


def test_the_walk_through_the_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    story = "\n".join(walk.walk(walk.WalkConfig(depth=2, length=12)))
    for part in ("## Embedding", "## Block 0", "## Block 1", "## Prediction", "## Backward", "'I'"):
        assert part in story
    model = walk.random_model(normans_gpt, walk.WalkConfig(depth=2, length=12))
    for name, weight in model.named_parameters():
        assert weight.any()
        assert f"| {name} | {tuple(weight.shape)} |" in story
    assert "| none |" not in story  # every weight has a gradient
    assert "(1, 11, 256) | float32" in story
    assert "| mean | std |" not in story
    assert "| rms | largest | mean | std |" in "\n".join(
        walk.walk(walk.WalkConfig(length=6, statistics=True))
    )
