"""What the control API shows: plain data in base units, one struct for each JSON shape (ux.md, section 6).

Whoever owns the facts fills these in; here stands only their form. Keys are added, never renamed or removed:
the CLI and people's scripts read them. Ids are whole: peers as ``12D3KooW…``, everything else as hex.
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

Side = Literal["requester", "provider"]
"""Which of the two parties of a contract."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything shown."""


class DeviceModelView(View, frozen=True, kw_only=True):
    """A model on one of our devices: what is advertised, and what jobs really got."""

    name: str
    loaded: bool
    lacks: str | None
    """Why it cannot be loaded now: memory that others hold, or jobs of other models."""
    memory_bytes: int
    context_tokens: int
    tokens_per_s: float
    delivered_tokens_per_s: float | None
    """None before a job has ended."""


class DeviceView(View, frozen=True, kw_only=True):
    kind: str
    index: int
    name: str
    architecture: str
    memory_total_bytes: int
    memory_free_bytes: int
    dtypes: tuple[str, ...]
    driver: str | None
    matmul_gflops: int | None
    read_mb_per_s: int | None
    compute_capability: str | None = None
    utilization_ratio: float | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    energy_millijoules: int | None = None
    """Its counter, since the driver was loaded."""
    foreign_processes: int | None = None
    """Of other programs; None where the device does not tell, and of a peer's device."""
    models: tuple[DeviceModelView, ...] = ()
    """What is served there; nothing of a peer's device."""


class WorkerView(View, frozen=True, kw_only=True):
    """The worker process of one device."""

    device: str
    state: str
    """starting, serving, restarting or quarantined."""
    jail: str | None
    """What confines it, such as landlock+seccomp, or none and why."""
    spare: str
    """none, starting, held (no model loaded) or loaded."""
    deaths: int
    """In the last ten minutes; counted up to three."""
    cause: str | None
    """Of the last death."""
    probe_in_s: float | None
    """When a quarantined device is tried again."""


class JobCounts(View, frozen=True, kw_only=True):
    running: int
    waiting: int


class GateView(View, frozen=True, kw_only=True):
    """Whether peers' jobs are taken, by the owner's policy and by hand; this node's own orders are not asked."""

    open: bool
    drained: bool
    """By hand; only ``souk resume`` opens it."""
    reasons: tuple[str, ...] = ()
    opens_at_ms: int | None = None
    """None when open, or when nobody knows."""
    unread: tuple[str, ...] = ()
    """What the policy looks at and this machine does not tell: such a limit keeps nobody out."""
    hands_back_in_s: float | None = None
    """When jobs of peers that still run are handed back."""
    jobs: int
    """Of peers, running and waiting."""


class StatusView(View, frozen=True, kw_only=True):
    schema: int = 1
    name: str
    peer_id: str
    version: str
    network: str
    role: str
    ready: bool
    problems: dict[str, str] = msgspec.field(default_factory=dict)
    """What is not ok, and what to do: the checks of ``/readyz`` without those that are."""
    uptime_s: float
    addresses: tuple[str, ...]
    peers_connected: int
    models: tuple[str, ...]
    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerView, ...] = ()
    jobs: JobCounts
    gate: GateView | None = None
    earned_microcredits: int
    spent_microcredits: int


class OfferedModelView(View, frozen=True, kw_only=True):
    """A model as one peer offers it; prices in µc per million tokens."""

    name: str
    model_id: str
    context_tokens: int
    price_in: int
    price_out: int
    tokens_per_s: float


class BanView(View, frozen=True, kw_only=True):
    """Since when the owner wants nothing to do with a peer, and why, in the owner's words."""

    since_ms: int
    reason: str


class PeerView(View, frozen=True, kw_only=True):
    """Another peer: what its last advert says, and None where there is no advert."""

    peer_id: str
    name: str | None
    connected: bool
    advert_age_ms: int | None
    models: tuple[OfferedModelView, ...] = ()
    slots_free: int | None
    slots_total: int | None
    queue_ms: int | None
    devices: tuple[DeviceView, ...] = ()
    ban: BanView | None = None
    """None: it is not banned."""


class ModelView(View, frozen=True, kw_only=True):
    """A model as the network offers it: the best price and speed of all who have it."""

    name: str
    model_id: str
    local: bool
    peers: int
    context_tokens: int
    price_in: int
    price_out: int
    tokens_per_s: float
    tasks: tuple[str, ...]
    """What it does: generate, embed, classify or vad; all but the first take ``forward`` as well."""
    delivered_tokens_per_s: float | None = None
    """What jobs on our own devices really got; None before the first."""


class ReceiptView(View, frozen=True, kw_only=True):
    contract_id: str
    job_id: str
    role: Side
    peer_id: str
    model: str
    state: str
    tokens_in: int
    tokens_out: int
    cost_microcredits: int
    at_ms: int
    energy_millijoules: int | None = None
    """Of a job on our device, while the daemon that ran it still remembers it."""


class JobView(View, frozen=True, kw_only=True):
    """One order of ours whatever it took, or one contract that a peer has with us."""

    job_id: str
    contract_id: str | None
    role: Side | Literal["local"]
    peer_id: str | None
    """The other party; None before there is one, and for a job that fails before."""
    model: str
    state: str
    """Of its contract while the job is open; then how it ended."""
    tokens_in: int = 0
    tokens_out: int
    cost_microcredits: int = 0
    energy_millijoules: int | None = None
    """What it took of our device; None where that is unknown, or was a peer's."""
    started_ms: int
    first_token_ms: int | None = None
    """From the start on, looking for a provider included."""
    ended_ms: int | None = None
    code: str | None = None
    message: str | None = None
    """Why it failed."""


class BundleMessage(View, frozen=True, kw_only=True):
    type: str
    sender: Side = msgspec.field(name="from")
    at_ms: int
    envelope: str


class BundleView(View, frozen=True, kw_only=True):
    """Everything that proves one contract, as it travelled: a third party can check it."""

    network: str
    messages: tuple[BundleMessage, ...]


class PeersAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peers: tuple[PeerView, ...]


class ModelsAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    models: tuple[ModelView, ...]


class DevicesAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    devices: tuple[DeviceView, ...]


class AdvertAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    advert: dict[str, Any] | None  # Any: JSON, its form is the protocol's


class ReceiptsAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    receipts: tuple[ReceiptView, ...]


class BundleAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    bundle: BundleView


class JobsAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    jobs: tuple[JobView, ...]


class ReceiptsQuery(View, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class LogLine(View, frozen=True, kw_only=True):
    number: int
    """Counts all lines since the daemon began."""
    at_ms: int
    level: str
    text: str
    """As it stands in the log: event, then fields."""


class LogsAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    lines: tuple[LogLine, ...]


class HealthAnswer(View, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class ReadyAnswer(View, frozen=True, kw_only=True):
    ready: bool
    checks: dict[str, str]


class ConnectRequest(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    address: str


class ConnectAnswer(View, frozen=True, kw_only=True):
    peer_id: str
