import pytest

from node.cli.output import columns, duration, facts, harmless, money, short, size


def test_columns_put_numbers_on_the_right_and_refuse_control_characters() -> None:
    assert columns(("NAME", "N"), [["a\nb", 5], ["c", 12_000]]) == "NAME       N\na�b        5\nc     12,000"


def test_facts_leave_out_what_is_unknown() -> None:
    assert facts([("a", 1), ("long", "x"), ("none", None)]) == "a     1\nlong  x"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(0), "0 B"),
        (size(1536), "1.5 KiB"),
        (size(3 << 40), "3.0 TiB"),
        (size(None), "-"),
        (duration(0.25), "250 ms"),
        (duration(61), "61.0 s"),
        (duration(600), "10 min"),
        (duration(8000), "2 h 13 min"),
        (duration(None), "-"),
        (money(1_234_567), "1,234,567 µc"),
        (short("12D3KooWK2orNe9QXT4fXJmvdckcpLZnhnRgLnwvYLbMbziXHP7Z"), "…bziXHP7Z"),
        (short("ab" * 32), "abababababab"),
        (short(None), "-"),
    ],
)
def test_values_are_shown_in_units_of_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_text_of_a_peer_keeps_only_the_controls_that_are_asked_for() -> None:
    assert harmless("a\x1b[2Jb\n\tc", keep="\n\t") == "a\ufffd[2Jb\n\tc"
