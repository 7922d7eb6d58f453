"""``job logs``: the steps of one job as lines, those to come as well, and in the end what stood in its way."""

import json
import time
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from node.cli.client import Daemon
from node.cli.options import Globals
from node.cli.output import duration, harmless, money, short

LOOK_S: Final = 0.25

Json = dict[str, Any]  # the daemon's answer, shown and not judged


def print_log(options: Globals, daemon: Daemon, job_id: str, *, follow: bool) -> None:
    """Print the steps of a job; with ``follow`` also those that come until it is over.

    Raises: CliError: there is no such job, or the daemon is gone.
    """
    path = f"/api/v1/jobs/{quote(job_id, safe='')}"
    seen = 0
    while True:
        trace = daemon.get(path)
        count = trace.get("steps_left_out", 0) + len(trace["timeline"])
        # The middle of a long timeline is left out: what is new stands at its end.
        for step in trace["timeline"][max(len(trace["timeline"]) - (count - seen), 0) :]:
            _print(options, step)
        seen = count
        is_over = trace["job"].get("ended_ms") is not None
        if is_over or not follow:
            break
        time.sleep(LOOK_S)
    if options.output == "table" and trace["job"].get("state") != "closed":
        for it in daemon.get(f"{path}/why")["findings"]:
            print(harmless(f"why: {it['message']}" + (f" ({it['advice']})" if it.get("advice") else "")))


def _print(options: Globals, step: Json) -> None:
    if options.output != "table":
        print(json.dumps(step, ensure_ascii=False), flush=True)
        return
    at = datetime.fromtimestamp(step["at_ms"] / 1000).astimezone()
    parts = [f"{at:%H:%M:%S}.{step['at_ms'] % 1000:03}", step["step"].replace("_", " ")]
    parts += [short(step["peer_id"])] if step.get("peer_id") else []
    print(harmless("  ".join([*parts, said(step)]).rstrip()), flush=True)


def said(step: Json) -> str:
    """Return what a step tells beyond its name."""
    queue_ms, retry_ms, tokens = step.get("queue_ms"), step.get("retry_after_ms"), step.get("tokens_out")
    parts = [
        f"{step['peers']} {'peer' if step['peers'] == 1 else 'peers'}" if "peers" in step else None,
        ": ".join(text for text in (step.get("code"), step.get("message")) if text not in (None, step["step"]))
        or None,
        f"at most {money(step['price_max_microcredits'])}" if "price_max_microcredits" in step else None,
        money(step["cost_microcredits"]) if "cost_microcredits" in step else None,
        f"queue {ms(queue_ms)}" if queue_ms else None,
        f"try again in {ms(retry_ms)}" if retry_ms else None,
        f"{tokens} tokens" if tokens else None,
        f"contract {short(step['contract_id'])}" if "contract_id" in step else None,
    ]
    return " · ".join(part for part in parts if part)


def ms(value: int | None) -> str:
    return duration(None if value is None else value / 1000)
