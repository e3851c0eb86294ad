"""sample_next: greedy, temperature, top-k, and one generator for each row."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
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


def test_a_token_that_cannot_be_is_never_drawn() -> None:
    """Also at the ends of the vocabulary and at the extremes of the random number."""

    class Fixed(random.Random):
        def __init__(self, value: int) -> None:
            super().__init__()
            self.value = value

        def getrandbits(self, k: int, /) -> int:
            assert self.value < 2**k
            return self.value

    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, 0.0, -math.inf]])
    for value, token in ((0, 1), (2**31 // 3 + 1, 3), (2**31 - 1, 4)):
        assert sample_next(logits, [Fixed(value)]).item() == token


def test_rounding_noise_in_the_logits_does_not_change_the_draw() -> None:
    """Cached and uncached logits differ in their last digits: 1e-6 may move one draw in about a million."""
    torch.manual_seed(0)
    logits = torch.randn(500, 50)
    noisy = logits + 1e-6 * torch.randn_like(logits)
    a = sample_next(logits, [random.Random(i) for i in range(500)])
    b = sample_next(noisy, [random.Random(i) for i in range(500)])
    assert int((a != b).sum()) <= 1


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
