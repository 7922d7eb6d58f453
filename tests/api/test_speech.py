import pytest

from node.api.speech import find_speech


@pytest.mark.parametrize(
    ("windows", "segments"),
    [
        ("", []),
        ("......", []),
        ("..####..", [(60, 180)]),
        ("####", [(0, 120)]),
        # 60 ms of silence are bridged, 90 ms are not.
        ("####..####", [(0, 300)]),
        ("####...####", [(0, 120), (210, 330)]),
        # 60 ms of speech are left out, unless a bridge makes them longer.
        ("..##.......####", [(330, 450)]),
        ("##..##", [(0, 180)]),
    ],
)
def test_segments_bridge_short_silences_and_leave_out_short_speech(
    windows: str, segments: list[tuple[int, int]]
) -> None:
    found = find_speech([it == "#" for it in windows], 30, silence_ms_min=90, speech_ms_min=90)
    assert [(it.start_ms, it.end_ms) for it in found] == segments


def test_neighbouring_windows_are_one_segment_when_every_silence_counts() -> None:
    found = find_speech([True, True, False, True], 30, silence_ms_min=0, speech_ms_min=0)
    assert [(it.start_ms, it.end_ms) for it in found] == [(0, 60), (90, 120)]
