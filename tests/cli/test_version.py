import sys
from importlib.metadata import version

from tests.cli.fakes import souk


def test_version_is_that_of_the_package() -> None:
    assert souk("version").out == souk("--version").out == f"souk {version('souk')}\n"


def test_version_names_what_a_report_needs_when_json_is_wanted() -> None:
    found = souk("version", "-o", "json").json()
    assert found == {
        "schema": 1,
        "version": version("souk"),
        "protocol": 1,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
