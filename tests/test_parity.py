"""The book's model against transformers' NanoChatForCausalLM: same weights, same numbers."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat import muon, normans_gpt
from nanochat.common import UserError
from nanochat.engine import Engine, KVCache
from nanochat.models import load_gpt
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.step import muon_momentum
from tests.bounds import clearance, logits_error, newton_schulz_error, results_error, sum_error

pytestmark = pytest.mark.numerics

pytest.importorskip("transformers", reason="the reference is in the transformers library")

V = 97
SHAPES = {  # layers, query heads, key-value heads, head size
    "MHA": (2, 4, 4, 8),
    "GQA": (3, 4, 2, 16),
    "MQA": (2, 4, 1, 8),
    "one head": (1, 1, 1, 4),
    "deep": (7, 2, 1, 8),
}
LENGTHS = [1, 2, 7, 32, 33]
ATTENTION = F.scaled_dot_product_attention


def a_pair(shape: str = "GQA", tables: str = "float32", seed: int = 0) -> tuple[GPT, Any]:
    """The book's model and the reference with the same weights, none of them zero."""
    layers, heads, kv_heads, size = SHAPES[shape]
    config = GPTConfig(40, V, layers, heads, kv_heads, heads * size)
    book, reference = GPT(config), load_gpt("reference").GPT(config)
    torch.manual_seed(seed)
    book.init_weights()
    for weight in book.parameters():
        torch.nn.init.normal_(weight, std=1.5 * weight.size(-1) ** -0.5)
    reference.load_state_dict(book.state_dict())
    if tables == "float32":
        book.cos, book.sin = reference.cos, reference.sin
    return book, reference


def batch(B: int, T: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random inputs and targets; every fifth target is not asked for, but the last is."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (B, T + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    unasked = range(B * T - 6, -1, -5)
    targets.view(-1)[list(unasked)] = -1
    return tokens[:, :-1], targets


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[GPT, Any]:
    return a_pair(request.param)


def test_names_and_first_weights_are_the_books():
    config = GPTConfig(16, V, 2, 4, 2, 32)
    models = [GPT(config), load_gpt("reference").GPT(config)]
    for model in models:
        torch.manual_seed(3)
        model.init_weights()
    book, reference = (model.state_dict() for model in models)
    assert list(book) == list(reference)
    assert all(torch.equal(book[name], reference[name]) for name in book)
    assert models[0].estimate_flops() == models[1].estimate_flops()
    assert models[0].get_device() == models[1].get_device()
    theirs = dict(models[1].library.named_parameters())
    assert len(theirs) == len(reference)
    mine = {id(p) for p in models[1].parameters()}
    assert {id(p) for p in theirs.values()} == mine, "every parameter exists once"


def test_a_reference_from_the_meta_device_is_complete():
    module = load_gpt("reference")
    with torch.device("meta"):
        model = module.GPT(GPTConfig(16, V, 2, 2, 2, 16))
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    assert not any(t.is_meta for t in [*model.library.parameters(), *model.library.buffers()])
    speeds = model.library.model.rotary_emb.inv_freq
    expected = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(speeds, expected)
    assert torch.equal(model.bfloat16().library.model.rotary_emb.inv_freq, speeds)


@pytest.mark.parametrize("T", LENGTHS)
def test_logits(pair, T):
    book, reference = pair
    idx, _ = batch(3, T)
    mine, theirs = book(idx), reference(idx)
    assert mine.dtype == theirs.dtype == torch.float32
    assert mine.std() > 0.5, "the weights must make a difference"
    bound = logits_error(book, idx)
    assert bound < 1e-3, "a mistake must be larger"
    assert (mine - theirs).abs().max() <= bound
    assert (reference(idx, last_only=True) - theirs[:, -1:]).abs().max() <= bound


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_and_gradients(pair, T, reduction):
    book, reference = pair
    idx, targets = batch(2, T)

    def run(model: Any) -> list[Tensor]:
        loss = model(idx, targets, loss_reduction=reduction)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), list(model.parameters()))]

    mine, theirs = run(book), run(reference)
    names = ["loss", *dict(book.named_parameters())]
    bounds = results_error(book.parameters(), lambda: run(book), terms=max(V, targets.numel()))
    largest = max(gradient.abs().max() for gradient in theirs[1:])
    for name, a, b, bound in zip(names, mine, theirs, bounds, strict=True):
        assert a.shape == b.shape
        if T == 1 and name.endswith(("c_q.weight", "c_k.weight")):
            # The softmax of one score is 1, so exactly 0; what is left of terms that cancel is their
            # rounding.
            bound = float(2 * sum_error(V) * largest)
        else:
            assert b.abs().max() > 1e-3 * largest, name
        assert bound < 1e-3 * largest, name
        assert (a - b).abs().max() <= bound, name


MISTAKES: dict[str, dict[str, Any]] = {  # what to put in place of what
    "no softcap": {"SOFTCAP": 1e6},
    "a large epsilon in the norm": {"norm": lambda x: F.rms_norm(x, (x.size(-1),), eps=1e-3)},
    "no norm of queries and keys": {"norm": lambda x: F.rms_norm(x, (x.size(-1),)) if x.ndim == 3 else x},
    "pairs beside each other": {
        "apply_rotary_emb": lambda x, cos, sin: torch.stack(
            (x[..., ::2] * cos + x[..., 1::2] * sin, x[..., 1::2] * cos - x[..., ::2] * sin), dim=-1
        ).flatten(-2)
    },
    "rotation of half of the channels": {
        "apply_rotary_emb": lambda x, cos, sin: torch.cat(
            (x.chunk(2, dim=-1)[0] * cos, x.chunk(2, dim=-1)[1]), -1
        )
    },
    "no rotation": {"apply_rotary_emb": lambda x, cos, sin: x},
    "no mask": {"F.scaled_dot_product_attention": lambda q, k, v, **_: ATTENTION(q, k, v, enable_gqa=True)},
    "keys one position late": {
        "F.scaled_dot_product_attention": lambda q, k, v, **_: ATTENTION(
            q, k.roll(1, 2), v.roll(1, 2), is_causal=True, enable_gqa=True
        )
    },
    "relu, not squared": {"F.relu": lambda x: torch.relu(x).sqrt()},
    "GELU, not relu": {"F.relu": lambda x: F.gelu(x)},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_that_train_are_far_from_equal(mistake, monkeypatch):
    """Each moves the logits by ten thousand tolerances or, for an epsilon, by a hundred."""
    book, reference = a_pair("GQA")
    idx, _ = batch(2, 33)
    for name, wrong in MISTAKES[mistake].items():
        if name.startswith("F."):
            functional = SimpleNamespace(**{**vars(F), name[2:]: wrong})
            monkeypatch.setattr(normans_gpt, "F", functional)
        else:
            monkeypatch.setattr(normans_gpt, name, wrong)
    with torch.no_grad():
        assert (book(idx) - reference(idx)).abs().max() > (1e-3 if "epsilon" in mistake else 0.1)


def test_what_bfloat16_tables_cost():
    """They move logits, by about a thousandth of the logits' size; not by rounding alone, and not by much."""
    for shape in ("MHA", "GQA", "MQA"):
        book, reference = a_pair(shape, tables="bfloat16")
        idx, targets = batch(4, 40)
        with torch.no_grad():
            mine, theirs = book(idx), reference(idx)
        error = float((mine - theirs).norm() / theirs.norm())
        assert 1e-4 < error < 5e-3
        assert abs((book(idx, targets) - reference(idx, targets)).item()) < 5e-3


def test_greedy_continuations_are_the_same_tokens(pair):
    """From the book's loop, its engine with either model, the library's generate with and without cache."""
    book, reference = pair
    prompt, length = [5, 17, 2], 30
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": length, "do_sample": False}
    tokens = list(book.generate(prompt, length, temperature=0.0))
    assert len(set(tokens)) > 2, "a continuation that repeats itself shows little"
    read = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        choices = book(read)[0, len(prompt) - 1 : -1]
    assert clearance(choices, tokens, temperature=0.0) > logits_error(book, read), "rounding must not decide"
    for cached in (True, False):
        assert reference.library.generate(ids, use_cache=cached, **options)[0, 3:].tolist() == tokens
    assert list(reference.generate(prompt, length, temperature=0.0)) == tokens
    for model in pair:
        assert Engine(model).complete([prompt], length, temperature=0.0) == [tokens]
    several = [[1], prompt, [9, 8, 7, 6, 5]]
    mine, theirs = (Engine(model).complete(several, length, temperature=0.0) for model in pair)
    assert mine == theirs
    assert mine[1] == tokens


@pytest.mark.parametrize("cuts", [[0, 1, 2, 3], [0, 5, 6, 20], [0, 20], [0, 3, 13, 20]], ids=str)
def test_logits_with_a_cache(pair, cuts):
    idx, _ = batch(2, cuts[-1])
    config = pair[0].config
    whole = pair[1](idx)
    for model in pair:
        cache = KVCache(2, config.n_kv_head, 24, config.head_dim, config.n_layer)
        parts = [model(idx[:, a:b], kv_cache=cache) for a, b in pairwise(cuts)]
        assert (torch.cat(parts, dim=1) - whole).abs().max() <= logits_error(pair[0], idx)


def test_positions_end_where_the_books_do():
    for model in a_pair("one head"):
        assert model(torch.zeros(1, 400, dtype=torch.long), last_only=True).shape == (1, 1, V)
        with pytest.raises(ValueError, match="position 400 is past"):
            model(torch.zeros(1, 401, dtype=torch.long))


def test_without_the_library_the_reference_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install 'transformers>=5'"):
        load_gpt("reference").GPT(GPTConfig(8, 16, 1, 1, 1, 4))


STEPS = 50


def walks(steps: int, B: int = 4, T: int = 32) -> Tensor:
    """Batches (steps, B, T + 1) of a text with something to learn: each token has three that may follow."""
    generator = torch.Generator().manual_seed(7)
    followers = torch.randint(V, (V, 3), generator=generator)
    walk = [0]
    for choice in torch.randint(3, (steps * B * (T + 1),), generator=generator).tolist():
        walk.append(int(followers[walk[-1], choice]))
    return torch.tensor(walk[1:]).view(steps, B, T + 1)


@dataclass
class Rounding:
    """What rounding may do to one step, as relative changes of all weights and of all gradients of Muon's."""

    weights: float
    gradients: float

    def moves(self, tensor: Tensor, relative: float, rng: torch.Generator) -> None:
        """Move all numbers of a tensor, up or down."""
        with torch.no_grad():
            tensor.mul_(1 + relative * (torch.randint(2, tensor.shape, generator=rng) * 2 - 1))


def losses_of(
    model: Any, seed: int, order: list[int] | None = None, rounding: Rounding | None = None
) -> Tensor:
    """The losses of a training as `base_train` does it.

    order permutes the rows of every batch. With rounding, every gradient is that of moved weights, and moved.
    """
    torch.manual_seed(seed)
    model.init_weights()
    optimizers = model.setup_optimizers()
    rng = torch.Generator().manual_seed(0)
    losses = []
    for step, rows in enumerate(walks(STEPS)):
        tokens = rows if order is None else rows[order]
        kept = copy.deepcopy(model.state_dict())
        if rounding:
            for weight in model.parameters():
                rounding.moves(weight, rounding.weights, rng)
        loss = model(tokens[:, :-1], tokens[:, 1:].contiguous())
        loss.backward()
        if rounding:
            model.load_state_dict(kept)
            for weight in model.transformer.h.parameters():
                rounding.moves(weight.grad, rounding.gradients, rng)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if "momentum" in group:
                    group["momentum"] = muon_momentum(step)
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


def trainings(shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Functions that train the book's model and the reference, both with Muon in dtype."""
    book, reference = a_pair(shape)
    monkeypatch.setattr(muon, "fastest_format", lambda device: dtype)
    if dtype == torch.float32:  # PyTorch's Muon knows bfloat16 alone: let its conversion convert nothing
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)

    def train(seed: int, **changes: Any) -> Tensor:
        model: Any = GPT(book.config)
        model._precompute_rotary_embeddings = lambda *_, **__: (reference.cos, reference.sin)
        return losses_of(model, seed, **changes)

    return train, lambda seed: losses_of(reference, seed)


@pytest.mark.parametrize("shape", ["GQA", "MQA"])
def test_fifty_steps_differ_as_rounding_allows(shape, monkeypatch):
    """In float32: the bound is what the same training does when each gradient is as wrong as may be."""
    train, train_reference = trainings(shape, torch.float32, monkeypatch)
    width = SHAPES[shape][1] * SHAPES[shape][3]
    allowed = Rounding(sum_error(4 * width), newton_schulz_error(width, torch.float32))
    mine, theirs = train(1), train_reference(1)
    bound = (train(1, rounding=allowed) - mine).abs().max()
    assert mine[0] > 4.5 > 1.5 > mine[-1], "something must be learnt"
    assert 0 < (train(1, order=[1, 0, 3, 2]) - mine).abs().max() <= bound
    assert (mine - theirs).abs().max() <= bound < 1e-4
    another = (train(2) - mine)[STEPS // 2 :].abs().max()
    assert bound < another / 1000, "weights of another seed are another training"


def test_fifty_steps_differ_as_two_orders_of_the_same_batch_do(monkeypatch):
    """In bfloat16 small differences grow, and what bounds a step does not bound fifty.

    A mean depends on the order of its terms by rounding only. So the largest of three orders' distances is
    what rounding does in this training; the reference is a fourth of the kind, and three times as much is too
    far.
    """
    train, train_reference = trainings("MQA", torch.bfloat16, monkeypatch)
    mine, theirs = train(1), train_reference(1)
    reordered = [train(1, order=order) for order in ([1, 0, 3, 2], [2, 3, 1, 0], [3, 2, 0, 1])]
    rounding = max((losses - mine).abs().max() for losses in reordered)
    assert 0 < rounding < 2e-3
    assert (mine - theirs).abs().max() <= 3 * rounding
    another = (train(2) - mine)[STEPS // 2 :].abs().max()
    assert rounding < another / 10, "weights of another seed are another training"
