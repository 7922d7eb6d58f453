"""Takes the README's picture of the dashboard: a local network, a few jobs of each side, a headless Chromium."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan

ROOT = Path(__file__).parent.parent
STORE = Path(sys.prefix) / "share" / "models"
QUESTIONS = (
    "Why is the sky blue?",
    "Name three rivers.",
    "Write a short story about a market.",
    "What is a contract?",
)
SWITCHES = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def souk(node: Node, *words: str) -> str:
    command = [sys.executable, "-m", "node.cli", "--home", node.home, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def take(url: str, path: Path) -> None:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        if chromium is None:
            sys.exit("no chromium: sudo apt-get install chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=list(SWITCHES))
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.goto(url)
        page.get_by_label("Prompt").fill("Say hello to a market of machines.")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("in all").wait_for()
        page.screenshot(path=path)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "dashboard.png")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        network = Network(Path(folder))
        base = (ROOT / "configs" / "testnet.toml").read_text("utf-8")
        plan = Plan(folder=Path(folder), nodes=3, providers=1, models_dir=STORE, base_config=base)
        try:
            network.up(plan, Interrupts())
            for question in QUESTIONS:
                souk(network.nodes[2], "run", "smollm2-135m-instruct", question, "--max-tokens", "48")
            take(souk(network.nodes[0], "open", "--no-browser").strip(), out)
        finally:
            network.down()
    print(out)


if __name__ == "__main__":
    main()
