from protocol import limits
from protocol.framing import ENVELOPE_FRAME_BYTES_MAX
from scripts.spec import examples
from tests.protocol.fakes import sealed
from tests.protocol.fakes_spec import rows, section


def test_limits_in_the_specification_are_those_of_the_code() -> None:
    written = {name: int(cells[1]) for name, cells in rows(section("00-terms.md", "Limits")).items()}
    coded = {name: value for name, value in vars(limits).items() if name.isupper() and name != "KIB"}
    assert written == coded


def test_envelope_adds_less_than_its_overhead() -> None:
    for kind in examples.messages():
        envelope = sealed(kind).envelope
        assert len(envelope.raw) - len(envelope.body) < limits.ENVELOPE_OVERHEAD_BYTES_MAX
        assert len(kind) <= limits.TYPE_BYTES_MAX
    assert ENVELOPE_FRAME_BYTES_MAX < limits.DATA_FRAME_BYTES_MAX
