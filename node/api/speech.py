"""Windows that hold speech, or do not, to segments of speech."""

from collections.abc import Sequence

from node.api.task_bodies import SpeechSegment


def find_speech(
    is_speech: Sequence[bool], window_ms: int, *, silence_ms_min: int, speech_ms_min: int
) -> list[SpeechSegment]:
    """Return the segments in order: shorter silences are bridged first, then shorter segments left out."""
    spans: list[tuple[int, int]] = []
    for place, speaks in enumerate(is_speech):
        if not speaks:
            continue
        start, end = place * window_ms, (place + 1) * window_ms
        if spans and (start == spans[-1][1] or start - spans[-1][1] < silence_ms_min):
            start = spans.pop()[0]
        spans.append((start, end))
    return [SpeechSegment(start_ms=start, end_ms=end) for start, end in spans if end - start >= speech_ms_min]
