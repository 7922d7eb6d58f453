from protocol.errors import (
    DeclineCode,
    LocalProtocolError,
    ProtocolError,
    Reason,
    RemoteProtocolError,
)
from tests.protocol.fakes_spec import rows, section


def test_reasons_in_the_specification_are_those_of_the_code() -> None:
    assert set(rows(section("00-terms.md", "Reasons"))) == set(Reason)


def test_decline_codes_in_the_specification_are_those_of_the_code() -> None:
    text = section("03-messages.md", "`decline`")
    assert set(rows(text[text.index("\n| code |") :])) == set(DeclineCode)


def test_whose_fault_it_is_decides_the_class() -> None:
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
    assert not issubclass(RemoteProtocolError, LocalProtocolError)
    for kind in (LocalProtocolError, RemoteProtocolError):
        exc = kind("what", reason=Reason.SIZE)
        assert isinstance(exc, ProtocolError)
        assert (str(exc), exc.reason) == ("what", "size")
