"""The dashboard's files and its way in, over real HTTP; how it looks and works in a browser: tests/integration."""

import hashlib
import re

import pytest
import trio

from node.api.dashboard import FOLDER
from tests.api.fakes import TOKEN, serve_node

PREACT = "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7"


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/ui/app.js", "text/javascript; charset=utf-8"),
        ("/ui/app.css", "text/css; charset=utf-8"),
        ("/ui/icon.svg", "image/svg+xml"),
    ],
)
async def test_file_is_served_without_a_token_and_under_the_strict_policy(
    nursery: trio.Nursery, path: str, media_type: str
) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", path, authorization="")
    assert (reply.status, reply.headers["content-type"]) == (200, media_type)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e", "app.py", "LICENSES"])
async def test_file_is_not_found_when_it_is_none_of_the_dashboards(nursery: trio.Nursery, name: str) -> None:
    node = await serve_node(nursery)
    assert (await node.call("GET", f"/ui/{name}", authorization="")).status == 404


async def test_code_is_traded_once_for_a_token_that_opens_the_api(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    code = (await node.call("POST", "/api/v1/dashboard", body={})).json["code"]
    traded = await node.call("POST", "/ui/session", body={"code": code}, authorization="")
    token = traded.json["token"]
    assert traded.status == 200 and token != TOKEN
    assert (await node.call("GET", "/api/v1/status", authorization=f"Bearer {token}")).status == 200
    again = await node.call("POST", "/ui/session", body={"code": code}, authorization="")
    assert again.status == 401 and again.error["code"] == "code_refused"


async def test_code_is_given_to_nobody_without_the_token(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/api/v1/dashboard", body={}, authorization="")).status == 401


@pytest.mark.parametrize("body", [b"", b"{}", b'{"code": 1}', b'{"code": "x", "more": 1}', b"\xff"])
async def test_trade_is_refused_when_its_body_is_another(nursery: trio.Nursery, body: bytes) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/ui/session", body=body, authorization="")).status == 400


def test_page_loads_nothing_from_other_hosts_and_runs_nothing_inline() -> None:
    ours = [path for path in FOLDER.iterdir() if path.suffix in (".html", ".js", ".css")]
    for path in ours:
        text = path.read_text("utf-8").replace("http://www.w3.org/", "")
        assert not re.search(r"https?://|@import|\beval\(|new Function", text), path.name
    page = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\bsrc=)", page)


def test_library_is_the_one_that_was_vendored() -> None:
    """preact and htm as published: ``npm pack htm@3.1.1``, ``preact/standalone.module.js``."""
    assert hashlib.sha256((FOLDER / "preact.js").read_bytes()).hexdigest() == PREACT
    notice = (FOLDER / "LICENSES").read_text("utf-8")
    assert "Preact" in notice and "htm" in notice
