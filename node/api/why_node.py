"""Why this node cannot serve, or cannot buy, now: sentences from its own state, each with what to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from node.api.job_views import Finding, WhyNodeAnswer
from node.execution.worker_state import WorkerState
from protocol.units import MS_PER_S

CHECKS_ADVICE: Mapping[str, str] = {
    "network": "it has only just started; souk status shows when it is up",
    "worker": "see its log: souk doctor checks the device, the driver and the model files",
    "ledger": "free space on the disk of the home; the node goes on by itself",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What is known about this node and its neighbours at one moment."""

    role: str
    problems: Mapping[str, str]
    """Of ``/readyz``: what is not ok."""
    peers_connected: int
    models: int
    """Served here."""
    is_advertised: bool
    is_draining: bool
    """By hand."""
    slots: int
    slots_free: int
    credit_stranger: int
    """µc that a peer which is new to us may owe now."""
    spend_stranger: int
    """µc that we put at risk now with a provider which is new to us."""
    offering: int
    """Other peers that offer a model, in our version of the protocol."""
    offering_free: int
    """Of these, with a free slot."""
    doubted: int
    """Of these, that failed us since they last said so."""
    other_versions: int
    closed: tuple[str, ...] = ()
    """Why the owner's policy keeps peers out, if it does."""
    opens_at_ms: int | None = None
    unread: tuple[str, ...] = ()
    """What the policy looks at and this machine does not tell."""
    declines: Mapping[str, int] = field(default_factory=dict)
    """Asks and contracts that we declined since the start, by reason."""
    workers: Sequence[WorkerState] = ()


def why_node(facts: NodeFacts) -> WhyNodeAnswer:
    """Return what stands in the way of selling and of buying, if anything does."""
    findings = (*_serving(facts), *_buying(facts))
    blocked = {finding.about for finding in findings if finding.blocks}
    return WhyNodeAnswer(can_serve="serve" not in blocked, can_buy="buy" not in blocked, findings=findings)


def _serving(facts: NodeFacts) -> Iterator[Finding]:
    if facts.role == "client":
        message = 'this node only buys: node.role = "client"'
        yield _block("serve", "role", message, 'set node.role = "worker" and restart')
        return
    for name, problem in facts.problems.items():
        yield _block("serve", name, f"{name}: {problem}", CHECKS_ADVICE.get(name))
    for worker in facts.workers:
        if worker.life == "quarantined":
            wait_s = worker.probe_in_s or 0.0
            message = (
                f"{worker.device} is in quarantine after {worker.deaths} deaths of its worker in ten minutes; a"
                f" new one is tried in {wait_s:.0f} s. The last: {worker.cause}"
            )
            yield _know("serve", "quarantine", message, CHECKS_ADVICE["worker"])
    if not facts.models:
        advice = (
            "souk models add FOLDER --name NAME, then souk models load NAME; models.serve says which load at start"
        )
        yield _block("serve", "no_model", "no model is loaded here", advice)
    elif facts.is_draining:
        yield _block("serve", "draining", "this node takes no new jobs: it is drained", "souk resume opens it")
    elif facts.closed:
        for reason in facts.closed:
            yield _block("serve", "owner", f"closed to peers: {reason}", _opening(facts.opens_at_ms))
    elif not facts.is_advertised:
        yield _block("serve", "no_advert", "nothing is advertised yet", "wait a moment; souk advert show")
    for name in facts.unread:
        message = f"{name} cannot be read on this machine: the limit in [owner] keeps nobody out"
        yield _know("serve", "unread", message, None)
    if not facts.peers_connected:
        yield _nobody("serve", "no peer is connected, so nobody can find this node")
    if facts.models and not facts.slots_free and facts.slots:
        message = f"all {facts.slots} slots are taken: new jobs wait or are declined as busy"
        yield _know("serve", "busy", message, "raise worker.slots if memory allows, or market.queue_max")
    if not facts.credit_stranger:
        message = "peers owe all that they may together: strangers are declined for credit"
        yield _know("serve", "credit", message, "souk ledger show; settle, or raise market.credit_pool_new")
    if facts.declines:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(facts.declines.items()))
        yield _know("serve", "declines", f"declined since the start: {counts}", None)


def _buying(facts: NodeFacts) -> Iterator[Finding]:
    for name, problem in facts.problems.items():
        if name != "worker":  # what is bought runs elsewhere
            yield _block("buy", name, f"{name}: {problem}", CHECKS_ADVICE.get(name))
    if not facts.peers_connected:
        yield _nobody("buy", "no peer is connected")
    elif not facts.offering and facts.models:
        yield _know("buy", "no_offer", "no other peer offers a model: orders run on this node's own", None)
    elif not facts.offering:
        advice = "wait for adverts (up to a minute), or connect to more peers: souk peers connect ADDR"
        yield _block("buy", "no_offer", "no other peer offers a model", advice)
    elif facts.doubted == facts.offering:
        message = "every peer with a model failed this node since it last said something new"
        yield _know("buy", "doubted", message, "they are still tried; souk peers shows when they were last heard")
    elif facts.doubted:
        message = f"{facts.doubted} of {facts.offering} peers with a model failed this node: they are tried last"
        yield _know("buy", "doubted", message, None)
    if facts.offering and not facts.offering_free:
        message = "no peer says that it has a free slot: orders wait for up to a minute"
        yield _know("buy", "busy", message, "try again later, or serve the model here")
    if facts.other_versions:
        message = f"{facts.other_versions} peers speak another version of the protocol and are passed over"
        yield _know("buy", "version", message, "souk --version; upgrade whichever is older")
    if not facts.spend_stranger:
        message = "as much is at risk with providers as may be: those that are new here get no contract"
        advice = "it shrinks as jobs end well and with market.forgive_after_days; or raise market.spend_pool_new"
        yield _block("buy", "spend_limit", message, advice)


def _opening(opens_at_ms: int | None) -> str:
    if opens_at_ms is None:
        return "it opens by itself once that is over; [owner] in config.toml has the limits"
    at = datetime.fromtimestamp(opens_at_ms / MS_PER_S).astimezone()
    return f"opens by itself at {at:%a %H:%M}, unless something else comes"


def _nobody(about: Literal["serve", "buy"], message: str) -> Finding:
    advice = "give the address of one: souk peers connect ADDR, or p2p.bootstrap"
    return _block(about, "no_peers", message, advice)


def _block(about: Literal["serve", "buy"], code: str, message: str, advice: str | None) -> Finding:
    return Finding(about=about, code=code, blocks=True, message=message, advice=advice)


def _know(about: Literal["serve", "buy"], code: str, message: str, advice: str | None) -> Finding:
    return Finding(about=about, code=code, blocks=False, message=message, advice=advice)
