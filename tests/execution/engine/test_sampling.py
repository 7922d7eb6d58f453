import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.execution.engine.sampling import choose, gumbel_noise, nucleus
from protocol.task import Sampling

LOGITS = torch.randn(6, 300, generator=torch.Generator().manual_seed(3)) * 3


def test_greedy_takes_the_largest_logit() -> None:
    assert choose(LOGITS, [Sampling()] * 6, [0] * 6) == LOGITS.argmax(-1).tolist()


def test_choice_depends_on_seed_and_position_and_not_on_the_batch() -> None:
    samplings = [Sampling(temperature_milli=1000, top_p_milli=900 + 20 * i, seed=i) for i in range(6)]
    together = choose(LOGITS, samplings, list(range(6)))
    alone = [choose(LOGITS[i : i + 1], [samplings[i]], [i])[0] for i in range(6)]
    shuffled = choose(LOGITS[[5, 0, 3]], [samplings[5], samplings[0], samplings[3]], [5, 0, 3])
    assert together == alone
    assert shuffled == [together[5], together[0], together[3]]


def test_another_seed_or_position_gives_other_choices() -> None:
    flat = torch.zeros(1, 5000)
    picks = {
        choose(flat, [Sampling(temperature_milli=1000, seed=seed)], [position])[0]
        for seed in (0, 1, 1 << 32, (1 << 63) - 1)
        for position in (0, 1, 2)
    }
    assert len(picks) >= 11


def test_greedy_row_stays_greedy_beside_a_sampled_one() -> None:
    samplings = [Sampling(), Sampling(temperature_milli=2000, seed=1)]
    assert choose(LOGITS[:2], samplings, [0, 0])[0] == int(LOGITS[0].argmax())


def test_choices_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = [0] * 4
    for position in range(4000):
        counts[choose(probabilities.log()[None], [Sampling(temperature_milli=1000, seed=5)], [position])[0]] += 1
    # Four standard deviations of a binomial.
    for count, p in zip(counts, probabilities.tolist(), strict=True):
        assert abs(count - 4000 * p) < 4 * math.sqrt(4000 * p * (1 - p))


def test_temperature_sharpens_and_flattens() -> None:
    def kinds(temperature_milli: int) -> int:
        sampling = Sampling(temperature_milli=temperature_milli, seed=2)
        return len({choose(LOGITS[:1], [sampling], [position])[0] for position in range(200)})

    assert kinds(1) == 1
    assert kinds(500) < kinds(1000) < kinds(5000)


@pytest.mark.parametrize(
    ("probabilities", "top_p_milli", "expected"),
    [
        ([0.5, 0.3, 0.2], 1, [0]),
        ([0.5, 0.3, 0.2], 499, [0]),
        ([0.5, 0.3, 0.2], 501, [0, 1]),
        ([0.5, 0.3, 0.2], 999, [0, 1, 2]),
        ([0.2, 0.3, 0.5], 600, [1, 2]),
        # Equally likely ones at the border belong together: a sort may put either first.
        ([0.4, 0.2, 0.2, 0.2], 500, [0, 1, 2, 3]),
        ([1.0, 0.0, 0.0], 999, [0]),
    ],
)
def test_nucleus_is_the_smallest_likeliest_set(
    probabilities: list[float], top_p_milli: int, expected: list[int]
) -> None:
    assert nucleus(torch.tensor(probabilities).log(), top_p_milli).tolist() == expected


@pytest.mark.parametrize("top_p_milli", [900, 1000])
def test_row_of_no_numbers_spoils_no_other_row(top_p_milli: int) -> None:
    sampled = Sampling(temperature_milli=800, top_p_milli=top_p_milli, seed=1)
    logits = torch.stack([torch.full((50,), float("nan")), torch.arange(50.0)])
    spoilt, whole = choose(logits, [sampled, Sampling()], [0, 0])
    assert 0 <= spoilt < 50 and whole == 49


def test_nucleus_of_a_flat_distribution_reaches_beyond_the_likeliest_few() -> None:
    scaled = torch.linspace(0, 0.01, 3000)
    found = nucleus(scaled, 900)
    mass = scaled.softmax(-1)[found].sum()
    assert 0.9 <= float(mass) < 0.901
    assert found.tolist() == list(range(3000 - len(found), 3000))


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 1 << 20))
def test_noise_is_finite_and_of_one_token_whatever_else_is_asked(seed: int, position: int) -> None:
    all_of_them = gumbel_noise(seed, position, torch.arange(512))
    some = gumbel_noise(seed, position, torch.tensor([511, 7]))
    assert torch.isfinite(all_of_them).all()
    assert some.tolist() == [float(all_of_them[511]), float(all_of_them[7])]


def test_noise_has_the_moments_of_a_gumbel_distribution() -> None:
    noise = torch.cat([gumbel_noise(1, position, torch.arange(50_000)) for position in range(4)]).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.01)


def noise_by_integers(seed: int, position: int, token: int) -> float:
    """The specification's noise, in Python integers."""

    def mix_64(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    def mix_32(value: int) -> int:
        value = (value ^ value >> 16) * 0x7FEB352D % 2**32
        value = (value ^ value >> 15) * 0x846CA68B % 2**32
        return value ^ value >> 16

    key = mix_64(seed ^ mix_64(position))
    bits = mix_32(mix_32(token ^ key % 2**32) ^ key // 2**32)
    return -math.log(-math.log((bits + 0.5) / 2**32))


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 1 << 20), st.integers(0, 200_000))
def test_noise_equals_the_specification_in_integers(seed: int, position: int, token: int) -> None:
    found = float(gumbel_noise(seed, position, torch.tensor([token])))
    assert found == pytest.approx(noise_by_integers(seed, position, token), rel=1e-6, abs=1e-6)


def one_by_one(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """The specification for one row, over the whole vocabulary."""
    if sampling.temperature_milli == 0:
        return int(logits.argmax())
    scaled = logits * (1000 / sampling.temperature_milli)
    candidates = torch.arange(len(scaled))
    if sampling.top_p_milli < 1000:
        probabilities = scaled.softmax(-1)
        ordered = probabilities.sort(descending=True).values
        before = ordered.double().cumsum(-1) - ordered
        border = ordered[before < sampling.top_p_milli / 1000][-1]
        candidates = (probabilities >= border).nonzero().squeeze(-1)
    noise = gumbel_noise(sampling.seed, position, candidates)
    return int(candidates[(scaled[candidates] + noise).argmax()])


@pytest.mark.parametrize("width", [40, 256, 3000])
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
def test_rows_chosen_together_are_those_chosen_one_by_one(width: int, spread: float) -> None:
    # Flat ones, whose nucleus is not among the likeliest few; and bfloat16's many equals.
    noise = torch.Generator().manual_seed(width)
    logits = (torch.randn(24, width, generator=noise) * spread).bfloat16().float()
    samplings = [
        Sampling(
            temperature_milli=(0, 300, 1000, 1700)[i % 4], top_p_milli=(1000, 950, 500, 1, 999)[i % 5], seed=i
        )
        for i in range(24)
    ]
    expected = [one_by_one(row, it, i) for i, (row, it) in enumerate(zip(logits, samplings, strict=True))]
    assert choose(logits, samplings, list(range(24))) == expected
