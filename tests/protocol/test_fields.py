import msgspec
import pytest

from protocol import fields, limits


@pytest.mark.parametrize("name", ["a", "0", "tiny-chat", "qwen2.5-0.5b_q8", "a" * 64])
def test_name_is_taken_when_it_can_be_looked_up(name: str) -> None:
    assert msgspec.convert(name, fields.Name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "a b", "../a", "a\n", "a" * 65, "ä", "a\x00"])
def test_name_is_refused_when_it_could_be_more_than_a_name(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, fields.Name)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (fields.Money, 0, limits.MICROCREDITS_MAX),
        (fields.TimeMs, 0, 1 << 53),
        (fields.DurationMs, 0, 1 << 40),
        (fields.Count, 0, 1 << 32),
        (fields.Tokens, 0, limits.TOKENS_MAX),
        (fields.SomeTokens, 1, limits.TOKENS_MAX),
        (fields.Bytes, 0, 1 << 53),
    ],
)
def test_number_is_refused_when_it_is_one_beyond_its_bound(kind: type[int], low: int, high: int) -> None:
    assert [msgspec.convert(value, kind) for value in (low, high)] == [low, high]
    for value in (low - 1, high + 1):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, kind)


@pytest.mark.parametrize(("kind", "most"), [(fields.Label, 64), (fields.Text, 256), (fields.Address, 256)])
def test_length_of_text_is_counted_in_code_points(kind: type[str], most: int) -> None:
    assert msgspec.convert("ü" * most, kind)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("ü" * (most + 1), kind)
