"""What a node counts of itself, for Prometheus; names, units and labels are those of ux.md, section 9.

One registry for each daemon. Rooms call a method where something happens; what merely holds now (peers, running
jobs, devices) is read from the rooms when somebody scrapes, in ``node/api/scrape.py``. Labels are bounded: closed
lists, and names of models up to ``MODELS_MAX``. Peers are never a label: anybody can make as many as he likes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

import trio
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from protocol.errors import DeclineCode, Reason, RemoteProtocolError
from protocol.framing import ADVERT_PROTOCOL, CONTROL_PROTOCOL, JOB_PROTOCOL, QUOTE_PROTOCOL

Role: TypeAlias = Literal["worker", "requester", "local"]
"""As whom a job was run: sold, bought, or of our own on our own devices."""
JobState: TypeAlias = Literal["closed", "failed", "cancelled", "expired", "unpaid", "disputed"]
Check: TypeAlias = Literal["receipt"]
"""How something of a peer's was verified."""
AdvertResult: TypeAlias = Literal["accepted", "stale"] | Reason

OTHER: Final = "other"
GOSSIP: Final = "gossip"
_PROTOCOLS: Final = (JOB_PROTOCOL, QUOTE_PROTOCOL, CONTROL_PROTOCOL, ADVERT_PROTOCOL)
MODELS_MAX: Final = 64
CODES_MAX: Final = 64
LAG_PERIOD_S: Final = 0.5

# One token of a loaded model takes milliseconds; an order may wait for minutes.
_WAIT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# 20 tokens a second are 50 ms; a batch of a large card stays under 10.
_GAP_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 10)
_RTT_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 10)
_JOB_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_HTTP_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LAG_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Names:
    """The first names that come, up to a bound; those that come later share ``other``."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """Return what stands for ``name`` in a label."""
        if name not in self._known:
            if len(self._known) >= self._count_max:
                return OTHER
            self._known.add(name)
        return name


class TokenGaps:
    """The pauses inside one answer as one party sees it, from the second piece on."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._last_at: float | None = None

    def note(self, tokens: int) -> None:
        """Note a piece that came now. One of several tokens counts once, with each token's share of the pause."""
        now = trio.current_time()
        if self._last_at is not None and tokens:
            self._histogram.observe((now - self._last_at) / tokens)
        self._last_at = now


class Wire:
    """The messages of one kind; whoever sends them keeps it, so that a message costs no look-up."""

    def __init__(self, messages: Counter, sizes: Counter, kind: str) -> None:
        self._out = messages.labels("out", kind), sizes.labels("out", kind)
        self._in = messages.labels("in", kind), sizes.labels("in", kind)

    def sent(self, size: int) -> None:
        """Count a message of ``size`` bytes that went out."""
        messages, sizes = self._out
        messages.inc()
        sizes.inc(size)

    def received(self, size: int) -> None:
        """Count a message of ``size`` bytes that came in."""
        messages, sizes = self._in
        messages.inc()
        sizes.inc(size)


class Metrics:
    """Counts. Make one for each daemon and hand it to the rooms; cheap enough to make one for each test."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.models = Names(MODELS_MAX)
        """Served names come first, since the daemon labels them at start; then those of jobs that were bought."""
        self._codes = Names(CODES_MAX)
        self.declines: dict[str, int] = {}
        """Asks and contracts that we declined, by reason: also for whoever asks why nothing is sold."""
        self._make_market()
        self._make_network()
        self._make_machine()

    def _make_market(self) -> None:
        registry = self._registry
        self._jobs = Counter(
            "souk_jobs",
            "Jobs that ended, by how; code says why they failed.",
            ("role", "state", "code"),
            registry=registry,
        )
        self._tokens = Counter(
            "souk_tokens",
            "Tokens of prompts (in) and answers (out).",
            ("direction", "model", "role"),
            registry=registry,
        )
        self._first_token_s = Histogram(
            "souk_time_to_first_token_seconds",
            "Sold: from our signature on. Bought and local: from the order on, looking for a provider included.",
            ("model", "role"),
            registry=registry,
            buckets=_WAIT_BUCKETS_S,
        )
        self._gap_s = Histogram(
            "souk_inter_token_seconds",
            "Between two tokens of an answer; of a piece that brings several, each one's share.",
            ("model", "role"),
            registry=registry,
            buckets=_GAP_BUCKETS_S,
        )
        self._duration_s = Histogram(
            "souk_job_duration_seconds",
            "Whole jobs, counted from where the first token is.",
            ("model", "role"),
            registry=registry,
            buckets=_JOB_BUCKETS_S,
        )
        self._contracts = Counter(
            "souk_contracts", "Contracts that ended, by their last state.", ("role", "outcome"), registry=registry
        )
        self._verifications = Counter(
            "souk_verifications",
            "What peers delivered and this node verified; the verdict is ok, or the rule that was broken.",
            ("method", "verdict"),
            registry=registry,
        )
        self._verifications.labels("receipt", "ok")
        self._asks = Counter("souk_asks", "Asks for a quote that came in.", registry=registry)
        self._quotes = Counter("souk_quotes", "Binding quotes that went out.", registry=registry)
        declines = Counter("souk_declines", "Asks and contracts that we declined.", ("reason",), registry=registry)
        self._declines = {code: declines.labels(code.value) for code in DeclineCode}
        self.earned = Counter(
            "souk_earned_microcredits", "Promised to us in vouchers since the start.", registry=registry
        )
        self.spent = Counter(
            "souk_spent_microcredits", "Promised by us in vouchers since the start.", registry=registry
        )

    def _make_network(self) -> None:
        registry = self._registry
        messages = Counter(
            "souk_p2p_messages",
            "Frames and gossip that went out or came in.",
            ("direction", "type"),
            registry=registry,
        )
        sizes = Counter(
            "souk_p2p_bytes",
            "Of those messages, without what the transport adds.",
            ("direction", "type"),
            registry=registry,
        )
        kinds_of = {protocol: protocol.split("/")[2] for protocol in _PROTOCOLS} | {GOSSIP: GOSSIP, OTHER: OTHER}
        self._wires = {name: Wire(messages, sizes, kind) for name, kind in kinds_of.items()}
        self._rtt_s = Histogram(
            "souk_peer_rtt_seconds",
            "Round trips to connected peers, one ping a connection every 15 s.",
            registry=registry,
            buckets=_RTT_BUCKETS_S,
        )
        adverts = Counter(
            "souk_adverts",
            "Adverts that came in; stale ones tell nothing new.",
            ("result",),
            registry=registry,
        )
        self._adverts = {result: adverts.labels(result) for result in ("accepted", "stale", *_values(Reason))}
        rejected = Counter(
            "souk_p2p_rejected", "Broken rules of peers, by the rule.", ("reason",), registry=registry
        )
        self._rejected = {reason: rejected.labels(reason.value) for reason in Reason}

    def _make_machine(self) -> None:
        registry = self._registry
        self._http_requests = Counter(
            "souk_http_requests",
            "Requests to the local API, by route and not by path.",
            ("route", "method", "status"),
            registry=registry,
        )
        self._http_s = Histogram(
            "souk_http_request_duration_seconds",
            "From a request's head to the end of its answer; a stream is as long as its job.",
            ("route", "method"),
            registry=registry,
            buckets=_HTTP_BUCKETS_S,
        )
        self._lag_s = Histogram(
            "souk_event_loop_lag_seconds",
            "How late a task was woken that had nothing but the time to wait for.",
            registry=registry,
            buckets=_LAG_BUCKETS_S,
        )
        self._restarts = Counter(
            "souk_worker_restarts", "Worker processes that died.", ("device", "reason"), registry=registry
        )
        self._queue_s = Histogram(
            "souk_queue_seconds",
            "How long jobs for text waited for a slot of their model on our devices.",
            ("model",),
            registry=registry,
            buckets=_WAIT_BUCKETS_S,
        )
        self._load_s = Histogram(
            "souk_model_load_seconds",
            "Loading a model into its worker, without measuring it.",
            ("model",),
            registry=registry,
            buckets=_JOB_BUCKETS_S,
        )
        self._energy = Counter(
            "souk_energy_joules",
            "Energy of jobs on our devices, shared among those that ran together; unknown ones are left out.",
            ("device", "model"),
            registry=registry,
        )
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    # What happens in the market.

    def asked(self) -> None:
        """Count an ask that came in."""
        self._asks.inc()

    def quoted(self) -> None:
        """Count a quote that went out."""
        self._quotes.inc()

    def declined(self, code: DeclineCode) -> None:
        self._declines[code].inc()
        self.declines[code.value] = self.declines.get(code.value, 0) + 1

    def contract_over(self, role: Role, outcome: str) -> None:
        """Count a contract; ``outcome`` is its last state."""
        self._contracts.labels(role, outcome).inc()

    def job_over(self, role: Role, state: JobState, code: str = "") -> None:
        """Count a job: sold, it is one contract; bought, it is one order whatever it took."""
        self._jobs.labels(role, state, self._codes.label(code)).inc()

    def job_took(self, role: Role, model: str, duration_s: float) -> None:
        self._duration_s.labels(self.models.label(model), role).observe(duration_s)

    def first_token(self, role: Role, model: str, waited_s: float) -> None:
        self._first_token_s.labels(self.models.label(model), role).observe(waited_s)

    def token_gaps(self, role: Role, model: str) -> TokenGaps:
        """Return what one answer's pieces are told to."""
        return TokenGaps(self._gap_s.labels(self.models.label(model), role))

    @contextmanager
    def verifying(self, method: Check) -> Iterator[None]:
        """Count how a verification ends: by a broken rule, or well."""
        try:
            yield
        except RemoteProtocolError as exc:
            self._verifications.labels(method, exc.reason.value).inc()
            raise
        self._verifications.labels(method, "ok").inc()

    def tokens(self, role: Role, model: str, *, tokens_in: int, tokens_out: int) -> None:
        label = self.models.label(model)
        self._tokens.labels("in", label, role).inc(tokens_in)
        self._tokens.labels("out", label, role).inc(tokens_out)

    # What happens elsewhere.

    def advert_heard(self, result: AdvertResult) -> None:
        self._adverts[result].inc()

    def peer_rejected(self, reason: Reason) -> None:
        """Count something of a peer's that the specification forbids."""
        self._rejected[reason].inc()

    def wire(self, protocol: str) -> Wire:
        """Return what the messages of one of our protocols, or of ``GOSSIP``, are counted with."""
        return self._wires.get(protocol, self._wires[OTHER])

    def peer_answered(self, rtt_s: float) -> None:
        """Count how long a peer took to answer a ping."""
        self._rtt_s.observe(rtt_s)

    def job_queued(self, model: str, waited_s: float) -> None:
        """Count how long a job had waited when it got its slot; most wait for nothing."""
        self._queue_s.labels(self.models.label(model)).observe(waited_s)

    def model_loaded(self, model: str, took_s: float) -> None:
        self._load_s.labels(self.models.label(model)).observe(took_s)

    def worker_died(self, device: str, reason: str) -> None:
        self._restarts.labels(device, self._codes.label(reason)).inc()

    def job_energy(self, device: str, model: str, millijoules: int) -> None:
        """Count what a job took of its device's energy."""
        self._energy.labels(device, self.models.label(model)).inc(millijoules / 1000)

    def request_served(self, route: str, method: str, status: int | None, duration_s: float) -> None:
        """Count a request; ``status`` is None where the answer never began."""
        known = method if method in _METHODS else OTHER
        self._http_requests.labels(route, known, "none" if status is None else str(status)).inc()
        self._http_s.labels(route, known).observe(duration_s)

    # Out.

    def page(self, accept: str, now: Iterable[Metric] = ()) -> tuple[bytes, str]:
        """Return ``now`` and all counts with their content type: OpenMetrics if ``accept`` asks for it, else text.

        Blocks for a millisecond, and for 90 of them when every label is taken: call it in a thread.
        """
        encode, content_type = choose_encoder(accept)
        return encode(_Page(self._registry, now)), content_type

    async def measure_lag(self) -> None:
        """Measure how late the loop wakes a task, until cancelled.

        A measurement and no polling: nothing is waited for but the time itself.
        """
        while True:
            due = trio.current_time() + LAG_PERIOD_S
            await trio.sleep_until(due)
            self._lag_s.observe(trio.current_time() - due)


def _values(codes: Iterable[Reason]) -> list[str]:
    return [code.value for code in codes]


class _Page(Collector):
    """What one scrape shows; nothing of it is kept, so two scrapes at once do not meet."""

    def __init__(self, registry: CollectorRegistry, now: Iterable[Metric]) -> None:
        self._registry = registry
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield from self._now
        yield from self._registry.collect()
