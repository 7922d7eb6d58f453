"""The feed: bounded whatever its readers do."""

import msgspec
import pytest
import trio

from node.api.feed import QUEUE_EVENTS, RING_EVENTS, Feed


class Said(msgspec.Struct):
    word: int


def publish(feed: Feed, count: int) -> None:
    for word in range(count):
        feed.publish("job", Said(word))


async def test_reader_hears_what_happens_from_now_on() -> None:
    feed = Feed(run="a")
    publish(feed, 3)
    with feed.subscribe(None) as (missed, events):
        feed.publish("job", Said(7))
        assert missed == []
        assert (await events.receive()).lines(feed.run) == b'id: a-4\nevent: job\ndata: {"word":7}\n\n'
    assert feed.readers == 0


@pytest.mark.parametrize(
    ("last_id", "expected"),
    [
        ("a-3", [4, 5]),
        ("a-5", []),
        ("a-99", []),
        ("b-3", []),
        ("a-x", []),
        ("a-²", []),
        ("a-" + "0" * 5000, []),
        ("3", []),
        ("", []),
    ],
)
async def test_reader_that_comes_back_gets_what_it_missed_in_this_run(last_id: str, expected: list[int]) -> None:
    feed = Feed(run="a")
    publish(feed, 5)
    with feed.subscribe(last_id) as (missed, _events):
        assert [event.number for event in missed] == expected


async def test_ring_keeps_the_newest_events_alone() -> None:
    feed = Feed(run="a")
    publish(feed, RING_EVENTS + 10)
    with feed.subscribe("a-0") as (missed, _events):
        assert [missed[0].number, len(missed)] == [11, RING_EVENTS]


async def test_reader_is_cut_off_when_it_falls_behind_and_others_are_not() -> None:
    feed = Feed(run="a")
    with feed.subscribe(None) as (_, slow), feed.subscribe(None) as (_, quick):
        for word in range(QUEUE_EVENTS + 1):
            feed.publish("job", Said(word))
            await quick.receive()
        assert feed.readers == 1
        for _ in range(QUEUE_EVENTS):
            await slow.receive()
        with pytest.raises(trio.EndOfChannel):
            await slow.receive()
