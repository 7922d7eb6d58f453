"""``why``: what keeps this node from selling or buying, or what happened to one job, in sentences."""

from urllib.parse import quote

import click

from node.cli.client import find_daemon
from node.cli.exits import Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, emit, harmless


@click.command(cls=SoukCommand)
@click.argument("job_id", metavar="[JOB]", required=False)
@pass_globals
def why(options: Globals, job_id: str | None) -> int:
    """Say why this node cannot serve or buy now, or why JOB was slow, passed over or failed.

    Without JOB it ends with 1 when one of the two is not possible (a client need not serve); with JOB, with 5
    when there is no such job since the daemon's start.
    """
    daemon = find_daemon(options)
    if job_id is not None:
        payload = daemon.get(f"/api/v1/jobs/{quote(job_id, safe='')}/why")
        emit(options, payload, rows="findings", table=_job_text)
        return Exit.DONE
    payload = daemon.get("/api/v1/why")
    emit(options, payload, rows="findings", table=_node_text)
    is_client = any(it.get("code") == "role" for it in payload["findings"])
    is_well = payload["can_buy"] and (payload["can_serve"] or is_client)
    return Exit.DONE if is_well else Exit.FAILED


def _node_text(payload: Payload) -> str:
    lines: list[str] = []
    for about, can, verb in (("serve", payload["can_serve"], "sell"), ("buy", payload["can_buy"], "buy")):
        lines.append(f"✓ this node can {verb} now" if can else f"✗ this node cannot {verb} now")
        lines += _lines(payload, about)
    return "\n".join(lines)


def _job_text(payload: Payload) -> str:
    lines = [harmless(str(payload["summary"])), *_lines(payload, "job")]
    if not payload["findings"]:
        lines.append("  Nothing stood in its way.")
    return "\n".join([*lines, harmless(f"  souk job show {payload['job_id']} has every step")])


def _lines(payload: Payload, about: str) -> list[str]:
    lines = []
    for it in payload["findings"]:
        if it.get("about") == about:
            lines.append(f"  {'✗' if it.get('blocks') else '·'} {it.get('message')}")
            if it.get("advice"):
                lines.append(f"      {it['advice']}")
    return [harmless(line) for line in lines]
