"""The dashboard in a real headless Chromium, on a real network.

The console stays empty, an answer streams, a job shows its timeline and its receipt, and nobody is left watching
when the tab is closed.

One network and one browser serve the module.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan

STORE = Path(sys.prefix) / "share" / "models"
CHROMIUM = shutil.which("chromium")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BASE_CONFIG = (Path(__file__).parents[2] / "configs" / "testnet.toml").read_text("utf-8")
WAIT_MS = 60_000
LOOK_MS = 100

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.real_model,
    pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the chat model"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: sudo apt-get install chromium"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("dashboard")
    running = Network(folder)
    running.up(Plan(folder=folder, nodes=2, providers=1, models_dir=STORE, base_config=BASE_CONFIG), Interrupts())
    try:
        yield running
    finally:
        running.down()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails its test when anything was written to the console, or anything left this machine."""
    with browser.new_context(color_scheme="light") as context:
        opened = context.new_page()
        opened.set_default_timeout(WAIT_MS)
        said: list[str] = []
        opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda it: None if "//127.0.0.1:" in it.url else said.append(f"asked {it.url}"))
        yield opened
        assert said == []


def address(node: Node) -> str:
    """Return what ``souk open`` prints."""
    words = [sys.executable, "-m", "node.cli", "--home", node.home, "open", "--no-browser", "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    url = json.loads(done.stdout)["url"]
    assert isinstance(url, str)
    return url


def test_answer_streams_and_its_job_shows_timeline_and_receipt(
    network: Network, page: Page, tmp_path: Path
) -> None:
    buyer = network.nodes[1]
    page.goto(address(buyer))
    expect(page.locator("header")).to_contain_text("ready")
    assert "code=" not in page.url, "the code stays in no history that could be used again"
    page.get_by_label("Prompt").fill("Say hello.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer")).not_to_be_empty()
    expect(page.get_by_text("in all")).to_be_visible(timeout=WAIT_MS)
    page.locator("table button.link").first.click()
    drawer = page.get_by_role("dialog")
    for step in ("asking", "contracted", "first token", "done"):
        expect(drawer.locator(".timeline")).to_contain_text(step)
    with page.expect_download() as download:
        drawer.get_by_role("button", name="Save the receipt").click()
    saved = tmp_path / "receipt.json"
    download.value.save_as(saved)
    words = [sys.executable, "-m", "node.cli", "receipts", "verify", str(saved)]
    assert subprocess.run(words, timeout=60, check=False, capture_output=True).returncode == 0
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()


def test_every_tab_shows_its_view_and_tables_sort_and_filter_by_keyboard(network: Network, page: Page) -> None:
    page.goto(address(network.nodes[1]))
    tabs = {
        "Jobs": "Jobs",
        "Network": "connected",
        "Models": "smollm2",
        "Earnings": "spent",
        "Why": "serve",
        "Log": "ready",
        "Settings": "api.bind",
    }
    for tab, words in tabs.items():
        page.get_by_role("link", name=tab, exact=True).click()
        expect(page.locator("main")).to_contain_text(words)
    page.get_by_role("link", name="Network", exact=True).click()
    name = page.get_by_role("button", name="name", exact=True)
    name.focus()
    page.keyboard.press("Enter")
    expect(page.locator("th").first).to_have_attribute("aria-sort", "ascending")
    page.get_by_label("Filter").fill("no such peer")
    expect(page.locator("tbody tr")).to_have_count(0)


def test_provider_is_drained_and_resumed_by_a_button(network: Network, page: Page) -> None:
    page.goto(address(network.nodes[0]))
    page.get_by_role("button", name="Drain").click()
    expect(page.locator("header")).to_contain_text("takes no jobs")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Drain")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_page_fits_its_window(network: Network, page: Page, tmp_path: Path, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(address(network.nodes[0]))
    expect(page.locator(".card").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(246, 247, 248)"
    assert dark is (scheme == "dark")
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_page_asks_for_the_token_when_it_has_none_and_says_when_it_is_wrong(network: Network, page: Page) -> None:
    page.goto(network.nodes[0].url)
    expect(page.locator("main")).to_contain_text("souk open")
    page.get_by_label("Token").fill(Path(network.nodes[0].home, "token").read_text().strip())
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("header")).to_contain_text("ready")


def test_three_tabs_cost_the_node_little_and_nothing_is_left_when_they_close(
    network: Network, browser: Browser, figure: Callable[[str, str], None]
) -> None:
    node = network.nodes[1]
    process = psutil.Process(node.pid)
    files = process.num_fds()
    with browser.new_context() as context:
        pages = [context.new_page() for _ in range(3)]
        for it in pages:
            it.goto(address(node))
            expect(it.locator(".card").first).to_be_visible()
            assert not it.evaluate("document.hidden"), "a tab that nobody sees would cost nothing"
        before, beats = process.cpu_times(), 5
        # Not a sleep for something to happen: the time that the figure is about.
        pages[0].wait_for_timeout(beats * 1000)
        after = process.cpu_times()
    share = (after.user + after.system - before.user - before.system) / beats
    figure("dashboard: three tabs, of one core", f"{share:.1%} over {beats} s, the node's own rest included")
    assert share < 0.03
    with browser.new_context() as context:
        idle, waited_ms = context.new_page(), 0
        # Nothing tells that another process has closed a file. An empty page waits, and connects to nobody.
        while process.num_fds() > files:
            assert waited_ms < WAIT_MS, f"{process.num_fds()} files are open, {files} were before the tabs"
            idle.wait_for_timeout(LOOK_MS)
            waited_ms += LOOK_MS
