import pytest

from node.execution.spawn import say_status


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit status 0"),
        (7, "exit status 7"),
        (-11, "exit status -11, SIGSEGV"),
        (-9, "exit status -9, SIGKILL: by hand, or by a kernel that is short of memory"),
        (-63, "exit status -63, an unknown signal"),
        (None, "killed, and still ending"),
    ],
)
def test_status_of_a_worker_is_told_in_words(status: int | None, text: str) -> None:
    assert say_status(status) == text
