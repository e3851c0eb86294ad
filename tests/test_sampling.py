"""sample_next: greedy, temperature, top-k, and one generator for each row."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.sampling import sample_next

pytestmark = pytest.mark.numerics


def draw(logits: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None) -> Counter[int]:
    """Sample `count` times from one row of logits (V,)."""
    rngs = [random.Random(seed) for seed in range(count)]
    return Counter(sample_next(logits.expand(count, -1), rngs, temperature, top_k).flatten().tolist())


def test_shape_and_dtype() -> None:
    for temperature in (0.0, 1.0):
        result = sample_next(torch.randn(3, 7), [random.Random(i) for i in range(3)], temperature)
        assert result.shape == (3, 1)
        assert result.dtype == torch.int64


def test_greedy_takes_the_first_of_the_likeliest_and_draws_nothing() -> None:
    rng = random.Random(1)
    state = rng.getstate()
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert sample_next(logits, [rng], temperature=0).item() == 1
    assert sample_next(logits, [rng], temperature=1e-30).item() == 1
    assert rng.getstate() == state


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    """4000 draws: a frequency has a standard deviation of at most 0.5 / sqrt(4000) = 0.008; five of them."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    found = draw(logits, 4000, temperature)
    for token, p in enumerate(torch.softmax(logits / temperature, dim=0).tolist()):
        assert abs(found[token] / 4000 - p) < 0.04


def test_top_k_keeps_k_and_their_proportions() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 1.5, -1.0])
    found = draw(logits, 2000, top_k=2)
    assert set(found) == {1, 3}
    assert abs(found[1] / 2000 - 1 / (1 + math.exp(-0.5))) < 0.06


def test_top_k_keeps_every_tie_of_the_last() -> None:
    assert set(draw(torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0]), 200, top_k=2)) == {0, 1, 2, 4}


def test_top_1_is_greedy_where_nothing_ties_and_large_k_is_everything() -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))
    assert set(draw(logits, 50, temperature=5.0, top_k=1)) == {int(logits.argmax())}
    assert draw(logits, 300, top_k=9) == draw(logits, 300) == draw(logits, 300, top_k=1000)


class Fixed(random.Random):
    """A generator whose next number is known."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def getrandbits(self, k: int, /) -> int:
        assert self.value < 2**k
        return self.value


def test_a_token_that_cannot_be_is_never_drawn() -> None:
    """Also at the ends of the vocabulary and at the extremes of the random number."""
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, 0.0, -math.inf]])
    for value, token in ((0, 1), (2**31 // 3 + 1, 3), (2**31 - 1, 4)):
        assert sample_next(logits, [Fixed(value)]).item() == token


def rounding(V: int) -> float:
    """By how much V equal shares of 2^31, each rounded, are longer than 2^31, in shares."""
    share = round(2**31 / V)
    return (V * share - 2**31) / share


@pytest.mark.parametrize("V", [80_021, 95_003, 2, 5])
def test_the_dart_reaches_every_token_whatever_the_shares_add_up_to(V: int) -> None:
    """The middle of token i's stretch is at (i + 1/2) / V of the line, and its ends are the dart's.

    With 80,021 tokens the rounded shares add up to nearly one and a half shares more than 2^31, so that a
    dart which is not stretched to the line, or is taken modulo its length, misses the last token. With 95,003
    they add up to more than one and a half shares less, and a dart modulo that begins again at the first.
    """
    assert rounding(80_021) > 1.4
    assert rounding(95_003) < -1.5
    logits = torch.zeros(1, V)
    assert sample_next(logits, [Fixed(0)]).item() == 0
    assert sample_next(logits, [Fixed(2**31 - 1)]).item() == V - 1
    for i in (0, 1, V // 3, V // 2, V - 2, V - 1):
        assert sample_next(logits, [Fixed((2 * i + 1) * 2**30 // V)]).item() == i


def share_of_draws_that_differ(a: Tensor, b: Tensor, top_k: int | None = None) -> float:
    """Of all darts, those that hit another token with logits b (V,) than with a: where stretches differ."""
    ends = []
    for logits in (a.double(), b.double()):
        if top_k is not None:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
        ends.append(F.pad(logits.softmax(dim=0).cumsum(dim=0), (1, 0)))
    common = torch.minimum(ends[0][1:], ends[1][1:]) - torch.maximum(ends[0][:-1], ends[1][:-1])
    return 1 - common.clamp(min=0).sum().item()


@pytest.mark.parametrize(("V", "top_k"), [(50, None), (65536, None), (65536, 50)])
def test_noise_in_the_logits_changes_no_more_draws_than_chapter_50_derives(V: int, top_k: int | None) -> None:
    """At most (k - 1) ε / 2, also for noise that is up at one end of the line and down at the other."""
    rng, noise = torch.Generator().manual_seed(0), 1e-5
    logits = 3 * torch.randn(V, generator=rng, dtype=torch.float64)
    bound = ((top_k or V) - 1) * noise / 2
    for direction in (torch.rand(V, generator=rng) * 2 - 1, torch.linspace(-1, 1, V).sign()):
        found = share_of_draws_that_differ(logits, logits + noise * direction, top_k)
        assert 0 < found <= bound
    darts = torch.randint(2**31, (60,), generator=rng).tolist()
    changed = sum(
        sample_next(logits[None], [Fixed(dart)], 1.0, top_k).item()
        != sample_next((logits + noise * direction)[None], [Fixed(dart)], 1.0, top_k).item()
        for dart in darts
    )
    assert changed <= 60 * bound + 5 * math.sqrt(60 * bound) + 1


@pytest.mark.parametrize("top_k", [1, 7, 40, 59, 60])
def test_the_likeliest_alone_are_drawn_as_from_the_whole_vocabulary(top_k: int) -> None:
    """With and without more ties than are looked for, in the order of the vocabulary: the same darts hit."""
    rng = torch.Generator().manual_seed(top_k)
    for logits in (torch.randn(60, generator=rng), torch.randint(3, (60,), generator=rng).float()):
        kept = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
        for dart in torch.randint(2**31, (50,), generator=rng).tolist():
            token = sample_next(logits[None], [Fixed(dart)], 1.0, top_k)
            assert torch.equal(token, sample_next(kept[None], [Fixed(dart)]))


def test_a_row_depends_on_its_own_generator_alone() -> None:
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    together = sample_next(logits, [random.Random(i) for i in range(4)]).flatten().tolist()
    alone = [sample_next(logits[i : i + 1], [random.Random(i)]).item() for i in range(4)]
    assert together == alone


def test_every_draw_takes_one_number_whatever_the_settings() -> None:
    states = []
    for settings in ((1.0, None), (0.3, None), (1.0, 2)):
        rng = random.Random(3)
        sample_next(torch.randn(1, 9), [rng], *settings)
        states.append(rng.getstate())
    assert states[0] == states[1] == states[2] != random.Random(3).getstate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; use 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0; use at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_next(torch.zeros(1, 4), [random.Random(0)], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="the logits are NaN"):
        sample_next(torch.tensor([[0.0, math.nan]]), [random.Random(0)], temperature)
