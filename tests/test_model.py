"""The model: what its parts are called, how it starts, and that its forward pass is the one the book derives.

A fresh model's body is silent (its projections are zero), so a test of the body draws weights that are not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat import normans_gpt
from nanochat.normans_gpt import GPT, SOFTCAP, CausalSelfAttention, GPTConfig, apply_rotary_emb, norm
from tests.bounds import logits_error, moved, results_error, sum_error

pytestmark = pytest.mark.numerics

T, V = 8, 19
PARTS = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def tiny_config(**changes: int) -> GPTConfig:
    shape = {"sequence_len": T, "vocab_size": V, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16}
    return GPTConfig(**(shape | changes))


def noisy(config: GPTConfig | None = None, seed: int = 0) -> GPT:
    """A model in which every weight speaks."""
    torch.manual_seed(seed)
    model = GPT(config or tiny_config())
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


# ---- the parts ------------------------------------------------------------------------------------------


def test_every_parameter_has_its_name_and_shape() -> None:
    config = tiny_config()
    c, kv = 16, 2 * 4
    shapes = dict(zip(PARTS, [(c, c), (kv, c), (kv, c), (c, c), (4 * c, c), (c, 4 * c)], strict=True))
    expected = {"transformer.wte.weight": (V, c), "lm_head.weight": (V, c)}
    for layer in range(2):
        expected |= {f"transformer.h.{layer}.{part}.weight": shapes[part] for part in PARTS}
    assert len(expected) == 6 * config.n_layer + 2
    model = GPT(config)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert set(model.state_dict()) == set(expected)  # and no tables
    assert {name for name, _ in model.named_buffers()} == {"cos", "sin"}
    assert [block.attn.layer_idx for block in model.transformer.h] == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer is 0; it must be at least 1"),
        ({"vocab_size": -3}, "vocab_size is -3"),
        ({"n_embd": 18}, "n_embd 18 does not divide into n_head 4 heads"),
        ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"n_kv_head": 8}, "n_head 4 is not a multiple of n_kv_head 8"),
        ({"n_embd": 12}, "head size 3"),
    ],
)
def test_a_shape_no_model_can_have_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def shape_of(depth: int) -> GPTConfig:
    """What base_train makes of --depth, at V = 65536 and T = 2048."""
    width = 64 * depth
    heads = max(1, math.ceil(width / 128))
    return GPTConfig(2048, 65536, depth, heads, heads, width)


@pytest.mark.parametrize(
    ("depth", "parameters", "flops", "iterations"),
    [
        (4, 36_700_160, "1.447e+08", 1_400),
        (12, 185_597_952, "1.0381e+09", 7_080),
        (20, 560_988_160, "3.4918e+09", 21_400),
    ],
)
def test_counts_of_the_reference(depth: int, parameters: int, flops: str, iterations: int) -> None:
    with torch.device("meta"):
        model = GPT(shape_of(depth))
    config = model.config
    n = sum(p.numel() for p in model.parameters())
    assert n == parameters == 2 * 65536 * config.n_embd + 12 * depth * config.n_embd**2
    digits = len(flops) - 6
    assert f"{model.estimate_flops():.{digits}e}" == flops
    assert 20 * n // 524288 == iterations


def test_flops_follow_the_trained_length() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(512, 65536, 4, 2, 2, 256))
    assert model.estimate_flops() == 125_829_120


def test_a_model_of_any_size_is_built_without_memory_and_then_filled() -> None:
    with torch.device("meta"):
        model = GPT(tiny_config())
    model.init_weights()  # the tables are made where the model is, not where tables are made by default
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    assert model.get_device() == torch.device("cpu")
    torch.manual_seed(3)
    model.init_weights()
    torch.manual_seed(3)
    direct = GPT(tiny_config())
    torch.manual_seed(3)
    direct.init_weights()
    for (name, a), (_, b) in zip(model.named_parameters(), direct.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model.cos, direct.cos)
    assert torch.equal(model.sin, direct.sin)


def test_rotary_tables_hold_the_angles_of_their_definition() -> None:
    model = noisy()
    assert model.cos.shape == model.sin.shape == (1, 10 * T, 1, 2)
    assert model.cos.dtype == model.sin.dtype == torch.bfloat16
    for t in (0, 1, 7, 79):
        for pair in (0, 1):
            angle = t * 10000 ** (-2 * pair / 4)
            assert abs(float(model.cos[0, t, 0, pair]) - math.cos(angle)) <= 2**-9
            assert abs(float(model.sin[0, t, 0, pair]) - math.sin(angle)) <= 2**-9


# ---- how it starts --------------------------------------------------------------------------------------


def test_weights_start_with_the_promised_spread() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(T, 512, 1, 4, 1, 128))
    model.init_weights()
    block = model.transformer.h[0]
    spread = {"attn.c_q": 128**-0.5, "attn.c_k": 0.5 * 128**-0.5, "attn.c_v": 0.5 * 128**-0.5}
    for name, sigma in {**spread, "mlp.c_fc": 128**-0.5}.items():
        weight = block.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert weight.std().item() == pytest.approx(sigma, rel=0.05), name
        assert abs(weight.mean().item()) < 0.1 * sigma, name
    for zero in (model.lm_head, block.get_submodule("attn.c_proj"), block.get_submodule("mlp.c_proj")):
        assert not zero.weight.count_nonzero()  # type: ignore[operator, union-attr]
    wte = model.transformer.wte.weight
    assert wte.std().item() == pytest.approx(1, rel=0.05)
    assert wte.dtype == torch.float32
    wide = block.get_submodule("mlp.c_proj")  # zeroed above; on its own it follows the rule of the wide
    with torch.no_grad():
        model._init_weights(wide)
    assert wide.weight.std().item() == pytest.approx(512**-0.5 * 0.5, rel=0.05)  # type: ignore[operator, union-attr]


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    model = GPT(tiny_config())
    model.init_weights()
    x, y = ids(2, T), ids(2, T, seed=2)
    assert not model(x).count_nonzero()
    loss = model(x, y, loss_reduction="none")
    torch.testing.assert_close(loss, torch.full((2 * T,), math.log(V)))


def test_gradients_reach_the_body_in_three_steps() -> None:
    """The promise of the chapter on initialization: the head alone, then the embedding and the projections
    back into the stream, then everything."""
    torch.manual_seed(0)
    model = GPT(tiny_config(n_layer=3))
    model.init_weights()
    optimizers = model.setup_optimizers()
    names = [name for name, _ in model.named_parameters()]
    head = {"lm_head.weight"}
    doors = {name for name in names if "c_proj" in name} | {"transformer.wte.weight"}
    for step, expected in enumerate([head, head | doors, set(names), set(names)]):
        model(ids(2, T, seed=10 + step), ids(2, T, seed=20 + step)).backward()
        learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learning == expected, f"step {step}"
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def test_one_batch_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = GPT(tiny_config())
    model.init_weights()
    optimizers = model.setup_optimizers()
    x, y = ids(2, T), ids(2, T, seed=2)
    losses = []
    for _ in range(15):
        loss = model(x, y)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert losses[0] == pytest.approx(math.log(V))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the embedding is bfloat16 on CUDA only")
def test_the_embedding_is_bfloat16_on_cuda() -> None:
    model = GPT(tiny_config()).to("cuda")
    model.init_weights()
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes.pop("transformer.wte.weight") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}


# ---- an independent forward pass ------------------------------------------------------------------------

Vector = list[float]


def rms_normed(x: Vector) -> Vector:
    mean_square = sum(a * a for a in x) / len(x)
    return [a / math.sqrt(mean_square + 2**-23) for a in x]


def times(weight: list[Vector], x: Vector) -> Vector:
    return [sum(w * a for w, a in zip(row, x, strict=True)) for row in weight]


def plus(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def as_bf16(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).bfloat16().item()


def turned(x: Vector, position: int) -> Vector:
    half = len(x) // 2
    y = [0.0] * len(x)
    for i in range(half):
        angle = position * 10000 ** (-2 * i / len(x))
        cos, sin = as_bf16(math.cos(angle)), as_bf16(math.sin(angle))
        y[i] = x[i] * cos + x[i + half] * sin
        y[i + half] = -x[i] * sin + x[i + half] * cos
    return y


def listed(compute: Callable[[], Tensor]) -> list[Tensor]:
    """A single result, where several are expected."""
    return [compute()]


def slow_attention(
    x: list[Vector], weights: dict[str, list[Vector]], heads: int, kv_heads: int
) -> list[Vector]:
    size = len(x[0]) // heads
    found: list[Vector] = [[] for _ in x]
    q, k, v = ([times(weights[f"attn.{name}"], a) for a in x] for name in ("c_q", "c_k", "c_v"))
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        shared = head // (heads // kv_heads)
        theirs = slice(shared * size, (shared + 1) * size)
        for t in range(len(x)):
            query = rms_normed(turned(q[t][mine], t))
            keys = [rms_normed(turned(k[s][theirs], s)) for s in range(t + 1)]
            weight = [math.exp(sum(map(float.__mul__, query, key)) / math.sqrt(size)) for key in keys]
            share = [w / sum(weight) for w in weight]
            found[t] += [sum(share[s] * v[s][theirs][d] for s in range(t + 1)) for d in range(size)]
    return [times(weights["attn.c_proj"], a) for a in found]


def slow_logits(model: GPT, tokens: list[int]) -> list[Vector]:
    """The whole model for one sequence, one number at a time, in Python's own floats."""
    w = {name: p.double().tolist() for name, p in model.named_parameters()}
    x = [rms_normed(w["transformer.wte.weight"][token]) for token in tokens]
    for layer in range(model.config.n_layer):
        weights = {part: w[f"transformer.h.{layer}.{part}.weight"] for part in PARTS}
        normed = [rms_normed(a) for a in x]
        attended = slow_attention(normed, weights, model.config.n_head, model.config.n_kv_head)
        x = [plus(a, b) for a, b in zip(x, attended, strict=True)]
        for t, a in enumerate(x):
            hidden = [max(h, 0.0) ** 2 for h in times(weights["mlp.c_fc"], rms_normed(a))]
            x[t] = plus(a, times(weights["mlp.c_proj"], hidden))
    return [[15 * math.tanh(z / 15) for z in times(w["lm_head.weight"], rms_normed(a))] for a in x]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_forward_pass_is_the_slow_one(kv_heads: int) -> None:
    model = noisy(tiny_config(n_kv_head=kv_heads), seed=kv_heads)
    x, y = ids(2, T), ids(2, T, seed=2)
    y[0, 3] = -1
    slow = torch.tensor([slow_logits(model, row) for row in x.tolist()], dtype=torch.float64)
    logits = model(x)
    assert logits.dtype == torch.float32
    assert slow.std() > 1  # numbers worth comparing
    bound = logits_error(model, x)
    assert bound < 1e-3, "a mistake must be larger"
    torch.testing.assert_close(logits.double(), slow, rtol=0, atol=bound)
    for reduction in ("mean", "sum", "none"):
        loss = model(x, y, loss_reduction=reduction)
        expected = F.cross_entropy(slow.flatten(0, 1), y.flatten(), ignore_index=-1, reduction=reduction)
        with torch.no_grad():
            once = functools.partial(model, x, y, loss_reduction=reduction)
            (bound,) = results_error(model.parameters(), functools.partial(listed, once))
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=bound)


def test_mixed_precision_moves_the_logits_by_bfloat16s_rounding_only() -> None:
    model = noisy()
    exact = model(ids(2, T))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids(2, T))
    assert logits.dtype == torch.float32
    difference = (logits - exact).abs().max().item()
    # Each product has both factors and its result rounded: three roundings.
    (bound,) = moved(model.parameters(), lambda: [model(ids(2, T))], sum_error(3, torch.bfloat16))
    assert 0 < difference < bound < 0.2 * exact.abs().max().item()


# ---- norm and rotation ----------------------------------------------------------------------------------


def test_norm_brings_every_vector_to_one_length() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64) * torch.logspace(-2, 4, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(norm(x).norm(dim=-1), torch.full((3, 5), 8**0.5, dtype=torch.float64))
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / 12.5**0.5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert not norm(torch.zeros(4)).count_nonzero()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA's autocast widens rms_norm")
def test_norm_keeps_the_type_under_autocast() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert norm(torch.randn(2, 4, device="cuda", dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norms_epsilon_is_float32s_own_for_narrow_types_too(dtype: torch.dtype) -> None:
    tiny = torch.full((4,), 2**-11.5, dtype=torch.float64).to(dtype)  # mean square about 2^-23
    mean_square = tiny.double().square().mean()
    expected = tiny.double() / (mean_square + 2**-23).sqrt()
    torch.testing.assert_close(
        norm(tiny).double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=0
    )


def rotary(positions: int, size: int) -> tuple[Tensor, Tensor]:
    """Exact tables."""
    speed = 10000 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * speed
    return angle.cos()[None, :, None], angle.sin()[None, :, None]


def test_a_pair_turned_by_hand() -> None:
    """(1, 0) and (0, 1) at positions 0 to 2, by minus one radian a position: the table in the chapter."""
    cos, sin = rotary(3, 2)
    east, north = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    turned_east = apply_rotary_emb(east.expand(1, 3, 1, 2), cos, sin)[0, :, 0]
    turned_north = apply_rotary_emb(north.expand(1, 3, 1, 2), cos, sin)[0, :, 0]
    for t in range(3):
        assert turned_east[t].tolist() == pytest.approx([math.cos(t), -math.sin(t)])
        assert turned_north[t].tolist() == pytest.approx([math.sin(t), math.cos(t)])


def test_a_pair_is_one_channel_of_each_half() -> None:
    cos, sin = rotary(2, 6)
    for channel in range(6):
        x = torch.zeros(1, 2, 1, 6, dtype=torch.float64)
        x[..., channel] = 1
        moved = apply_rotary_emb(x, cos, sin)[0, 1, 0].nonzero().flatten().tolist()
        assert moved == sorted([channel % 3, channel % 3 + 3])


def test_a_rotation_keeps_lengths_shape_and_dtype() -> None:
    cos, sin = rotary(5, 4)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(apply_rotary_emb(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
    narrow = apply_rotary_emb(x.bfloat16(), cos.float(), sin.float())
    assert narrow.dtype == torch.bfloat16
    assert narrow.shape == x.shape


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_depend_on_the_distance_alone_whichever_way_both_turn(sign: int) -> None:
    cos, sin = rotary(40, 8)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    queries, keys = (apply_rotary_emb(x.expand(1, 40, 1, 8), cos, sign * sin)[0, :, 0] for x in (q, k))
    scores = queries @ keys.T
    for distance in range(-39, 40):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0].std() > 0.1


def test_turning_the_other_way_is_a_mirror_in_the_weights() -> None:
    """Scores of vectors turned by +theta are those of mirrored vectors turned by -theta."""
    cos, sin = rotary(T, 8)
    q, k = torch.randn(2, 1, T, 1, 8, dtype=torch.float64)
    mirror = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1], dtype=torch.float64)

    def scores(q: Tensor, k: Tensor, sin: Tensor) -> Tensor:
        return apply_rotary_emb(q, cos, sin)[0, :, 0] @ apply_rotary_emb(k, cos, sin)[0, :, 0].T

    torch.testing.assert_close(scores(q, k, -sin), scores(q * mirror, k * mirror, sin))
    assert (scores(q, k, -sin) - scores(q, k, sin)).abs().max() > 0.1


# ---- attention ------------------------------------------------------------------------------------------


def test_the_attention_worked_by_hand() -> None:
    """The chapter's example: three positions, one head of two channels, the rotation left out."""
    attention = CausalSelfAttention(GPTConfig(3, V, 1, 1, 1, 2), 0)
    with torch.no_grad():
        for linear in (attention.c_q, attention.c_v, attention.c_proj):
            linear.weight.copy_(torch.eye(2))
        attention.c_k.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    unturned = torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    expected = torch.tensor([[[1.0, 0.0], [0.8808, 0.1192], [0.8723, 0.4748]]])
    torch.testing.assert_close(attention(x, unturned), expected, rtol=0, atol=5e-5)


def test_no_position_sees_its_future() -> None:
    model = noisy()
    x = ids(1, T)
    before, bound = model(x), logits_error(model, x)
    for t in range(1, T):
        changed = x.clone()
        changed[0, t:] = (x[0, t:] + 1) % V
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=bound)
        assert (after[:, t:] - before[:, t:]).abs().amax(dim=-1).min() > 1e-2  # but each sees its past


def seen_by_sdpa(model: GPT, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys as they enter the attention of each layer."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = F.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        assert "scale" not in options
        seen.append((q, k))
        return original(q, k, v, **options)

    monkeypatch.setattr(normans_gpt.F, "scaled_dot_product_attention", record)
    model(x)
    return seen


def test_qk_norm_bounds_every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    model = noisy()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_q.weight.mul_(1000)  # type: ignore[union-attr, operator]
    for q, k in seen_by_sdpa(model, ids(2, T), monkeypatch):
        size = q.size(-1)
        torch.testing.assert_close(q.norm(dim=-1), torch.full(q.shape[:-1], size**0.5))
        torch.testing.assert_close(k.norm(dim=-1), torch.full(k.shape[:-1], size**0.5))
        scores = q @ k.repeat_interleave(2, dim=1).mT / size**0.5
        assert scores.abs().max() <= size**0.5 * (1 + 1e-6)


def test_qk_norm_forgets_the_size_of_queries_and_keys_but_not_of_values() -> None:
    model = noisy()
    x = ids(2, T)
    expected, bound = model(x), logits_error(model, x)
    attention = model.transformer.h[0].attn
    assert isinstance(attention, CausalSelfAttention)
    with torch.no_grad():
        attention.c_q.weight.mul_(7)
        attention.c_k.weight.mul_(0.3)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=bound)
        attention.c_v.weight.mul_(2)
        assert (model(x) - expected).abs().max() > 0.1


def test_norm_before_the_rotation_would_be_the_same() -> None:
    cos, sin = rotary(T, 4)
    x = torch.randn(2, T, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(apply_rotary_emb(x, cos, sin)), apply_rotary_emb(norm(x), cos, sin))


def test_shared_heads_are_equal_to_repeated_heads() -> None:
    shared = noisy(tiny_config(n_kv_head=2))
    full = GPT(tiny_config(n_kv_head=4))
    full.init_weights()
    state = shared.state_dict()
    for name, weight in state.items():
        if "c_k" in name or "c_v" in name:
            state[name] = weight.view(2, 4, 16).repeat_interleave(2, dim=0).reshape(16, 16)
    full.load_state_dict(state)
    x = ids(2, T)
    torch.testing.assert_close(shared(x), full(x), rtol=0, atol=logits_error(full, x))


class ListCache:
    """The least a cache can do."""

    def __init__(self, layers: int) -> None:
        self.kv: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def get_pos(self) -> int:
        last = self.kv[-1]
        return 0 if last is None else last[0].size(2)

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        before = self.kv[layer_idx]
        if before is not None:
            k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
        self.kv[layer_idx] = k, v
        return k, v


@pytest.mark.parametrize("pieces", [[T], [1] * T, [3, 1, 4], [1, 4, 3], [5, 3]])
@torch.no_grad()
def test_reading_in_pieces_with_a_cache_is_reading_at_once(pieces: list[int]) -> None:
    model = noisy()
    x = ids(2, T)
    cache = ListCache(model.config.n_layer)
    logits = torch.cat([model(piece, kv_cache=cache) for piece in x.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=logits_error(model, x))


# ---- the ends of the model ------------------------------------------------------------------------------


def test_logits_stay_under_the_cap() -> None:
    model = noisy()
    small = model(ids(2, T)).detach()
    assert small.abs().max() < SOFTCAP
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    big = model(ids(2, T))
    assert big.abs().max() <= SOFTCAP
    assert big.abs().max() > 0.99 * SOFTCAP
    assert (big.sign() == small.sign()).all()
    assert model(ids(2, T), ids(2, T), loss_reduction="none").max() <= 2 * SOFTCAP + math.log(V)


def test_the_last_position_alone_is_the_last_of_all() -> None:
    model, x = noisy(), ids(2, T)
    last, every = model(x, last_only=True), model(x)
    torch.testing.assert_close(last, every[:, -1:], rtol=0, atol=logits_error(model, x))


def test_a_narrow_model_is_capped_in_float32() -> None:
    logits = noisy().to(torch.bfloat16)(ids(2, T))
    assert logits.dtype == torch.float32
    assert (
        logits != logits.bfloat16()
    ).float().mean() > 0.9  # the cap's results were not rounded to bfloat16


def test_the_embedding_is_normed_so_that_its_size_does_not_matter() -> None:
    model, x = noisy(), ids(2, T)
    expected, bound = model(x), logits_error(model, x)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=bound)


def test_positions_past_the_tables_are_refused_by_name() -> None:
    model = noisy()
    assert model(ids(1, 10 * T)).shape == (1, 10 * T, V)
    with pytest.raises(ValueError, match=r"position 80 is past the rotary tables' 80 positions .* 8\)"):
        model(ids(1, 10 * T + 1))
    cache = ListCache(model.config.n_layer)
    model(ids(1, 10 * T), kv_cache=cache)
    with pytest.raises(ValueError, match="position 80 is past"):
        model(ids(1, 1), kv_cache=cache)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(IndexError):
        noisy()(torch.tensor([[V]]))


def test_the_model_is_one_graph() -> None:
    """Nothing in it stops the compiler: no print, no branch on a number, no device chosen."""
    model = noisy()
    x, y = ids(2, T), ids(2, T, seed=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=logits_error(model, x))
    parameters = list(model.parameters())
    ours = torch.autograd.grad(compiled(x, y), parameters)
    expected = torch.autograd.grad(model(x, y), parameters)
    bounds = results_error(model.parameters(), lambda: torch.autograd.grad(model(x, y), parameters))
    for a, b, bound in zip(ours, expected, bounds, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_model_computes_the_same() -> None:
    model = noisy(tiny_config(n_layer=1))
    x = ids(2, T)
    compiled = torch.compile(model, dynamic=False)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=logits_error(model, x))
