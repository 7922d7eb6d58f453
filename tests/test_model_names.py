from node.model_names import begins_id, names_model
from protocol.units import ModelId

MODEL_ID = ModelId(bytes.fromhex("abcdef01" * 8))


def test_model_is_meant_by_its_name_and_by_eight_digits_of_its_id() -> None:
    for wanted in ("smol", "abcdef01", "ABCDEF01ab", MODEL_ID.hex()):
        assert names_model(wanted, "smol", MODEL_ID)
    for wanted in ("smo", "abcdef0", "abcdef02", ""):
        assert not names_model(wanted, "smol", MODEL_ID)


def test_name_is_no_beginning_of_an_id() -> None:
    assert not begins_id("smol", MODEL_ID) and begins_id("abcdef01", MODEL_ID)
