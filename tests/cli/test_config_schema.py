import json
import re
import tomllib

import jsonschema
import pytest

from node.cli.config_schema import config_schema
from node.cli.init import PROFILES, profile_text
from node.config_file import setting_types
from tests.cli.fakes import souk


def test_schema_knows_every_setting_with_its_text() -> None:
    schema = souk("config", "schema").json()
    assert schema == json.loads(json.dumps(config_schema())) == souk("config", "schema", "-o", "json").json()
    parts = {name: json.dumps(part) for name, part in schema["$defs"]["Config"]["properties"].items()}
    sections = {name: re.findall(r"#/\$defs/(\w+)", part) for name, part in parts.items()}
    found = {
        f"{name}.{key}"
        for name, refs in sections.items()
        for ref in refs
        for key in schema["$defs"][ref]["properties"]
    }
    assert found == set(setting_types())
    price = schema["$defs"]["MarketSection"]["properties"]["price_in"]
    assert price["description"] == "µc per million prompt tokens." and price["minimum"] == 0


@pytest.mark.parametrize("profile", PROFILES)
def test_schema_takes_our_own_files(profile: str) -> None:
    jsonschema.Draft202012Validator(config_schema()).validate(tomllib.loads(profile_text(profile)))


@pytest.mark.parametrize("text", ["[market]\nprice_ni = 1\n", "[market]\nprice_in = 'x'\n", "[nosuch]\n"])
def test_schema_refuses_what_the_daemon_refuses(text: str) -> None:
    validator = jsonschema.Draft202012Validator(config_schema())
    assert not validator.is_valid(tomllib.loads(text))
