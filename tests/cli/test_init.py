import pytest

from node.cli.init import PROFILES, profile_text
from node.config_file import load_config
from node.home import Home
from node.keystore import KeyFile
from tests.cli.fakes import souk


@pytest.mark.parametrize("profile", PROFILES)
def test_init_writes_a_configuration_that_loads(home: Home, profile: str) -> None:
    ran = souk("init", "--profile", profile, "--name", "mine", "-o", "json")
    assert ran.code == 0
    config = load_config(home.config_path, environ={}).config
    assert config.node.name == "mine"
    assert home.config_path.read_text().count("#") >= 3
    assert ran.json()["peer_id"].startswith("12D3KooW")
    assert KeyFile(home.key_path).read()


def test_init_keeps_what_is_there_unless_forced(home: Home) -> None:
    souk("init")
    key = home.key_path.read_bytes()
    assert souk("init", "--name", "other").code == 9
    assert 'name = "cpu-1"' in home.config_path.read_text()
    assert souk("init", "--name", "other", "--force").code == 0
    assert 'name = "other"' in home.config_path.read_text()
    assert home.key_path.read_bytes() == key


def test_init_leaves_nothing_when_the_name_is_bad(home: Home) -> None:
    ran = souk("init", "--name", "two words")
    assert ran.code == 3 and "node.name" in ran.err
    assert not list(home.path.iterdir())


def test_profile_comes_back_as_shipped_when_no_name_is_given() -> None:
    assert 'name = "cpu-1"' in profile_text("cpu")
