"""Who is let in: places that are counted and given back."""

import pytest

from node.api.errors import ApiError
from node.api.intake import READERS_MAX, READERS_RETRY_S, Readers


def test_reader_is_refused_when_too_many_read_and_let_in_when_one_has_left() -> None:
    readers = Readers("the log")
    places = [readers.place() for _ in range(READERS_MAX)]
    for place in places:
        place.__enter__()
    with pytest.raises(ApiError, match="follow the log") as caught, readers.place():
        pass
    assert (caught.value.status, caught.value.code) == (429, "too_many_readers")
    assert caught.value.retry_after_s == READERS_RETRY_S
    places.pop().__exit__(None, None, None)
    with readers.place():
        pass
