"""The daemon's settings: one frozen schema. Reading files and the environment is ``node/config_file.py``.

Only settings that take effect stand here. Field names end in their unit; money is in microcredits (µc).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Microcredits = Annotated[int, Meta(ge=0, le=1 << 53)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: closed and immutable."""


class NodeSection(Section, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9._-]+$")] = "node"
    """Shown to other peers."""
    role: Literal["worker", "client"] = "worker"
    """A worker serves its devices; a client only buys."""


class ApiSection(Section, frozen=True, kw_only=True):
    bind: Annotated[str, Meta(pattern=r"^(127\.0\.0\.1|localhost|\[::1\]):\d{1,5}$")] = "127.0.0.1:11500"
    """Loopback only; port 0 lets the system choose."""
    max_queue: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Requests and detached jobs in work at once before 429."""
    results_max: Annotated[int, Meta(ge=1, le=4096)] = 256
    """Detached jobs (souk job submit) whose texts are kept in memory: running, and over."""
    results_bytes_max: Annotated[int, Meta(ge=1 << 25, le=1 << 34)] = 1 << 26
    """Of memory that their specs and answers may take together."""
    results_keep_s: Annotated[int, Meta(ge=1, le=7 * 86_400)] = 3_600
    """For so long an answer can be fetched, and its job run again; then its text is forgotten."""


class P2pSection(Section, frozen=True, kw_only=True):
    listen: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)] = ("/ip4/0.0.0.0/tcp/11501",)
    """Multiaddrs; port 0 lets the system choose."""
    bootstrap: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Multiaddrs with /p2p/ of peers to dial first."""
    network: Annotated[str, Meta(min_length=1, max_length=64)] = "main"
    """Nodes of another network are not spoken to."""


class WorkerSection(Section, frozen=True, kw_only=True):
    devices: Literal["auto", "cpu"] | tuple[str, ...] = "auto"
    """auto, cpu, or a list such as ["cuda:0"]."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """CPU threads of a worker; 0 takes the cores less one."""
    slots: Annotated[int, Meta(ge=1, le=256)] = 8
    """Sequences that decode at once on one device."""
    memory_percent: Annotated[int, Meta(ge=1, le=100)] = 90
    """Of a device's memory, or of memory_bytes_max, what workers may fill."""
    memory_bytes_max: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    """Of each device, what its worker may take in all, however much there is; 0: no such bound. On a CPU the
    kernel holds it."""
    pinned: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    """Names of models that are never unloaded to make room for others."""
    context_tokens_max: Annotated[int, Meta(ge=64, le=1 << 20)] = 2048
    """Prompt and answer together; bounded by the model's own context as well."""
    inter_token_ms: Annotated[int, Meta(ge=10, le=60_000)] = 200
    """The longest that an answer should wait for its next token while other prompts are read."""
    vllm_python: Annotated[str, Meta(pattern=r"^(/.*)?$")] = ""
    """The interpreter of an environment with vLLM, whose server then computes text; empty: this engine does."""
    vllm_cards: Annotated[int, Meta(ge=1, le=64)] = 1
    """CUDA devices that share each model by tensor parallelism."""
    vllm_args: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """More arguments of its server, such as "--enforce-eager"."""
    cuda_graphs: bool = False
    """Decode by captured graphs on CUDA: each step is one call instead of a thousand. Not run on a GPU yet."""
    compiled_decode: bool = False
    """On a CPU, decode dense bf16 models by a program that this machine's GCC makes at the first start."""
    warm_spare: bool = False
    """A second worker for each device waits for the first one to die."""
    jail: Literal["auto", "off", "required"] = "auto"
    """Workers without network, home and keys: as far as the kernel can, not at all, or not without."""


class ModelsSection(Section, frozen=True, kw_only=True):
    dir: str = ""
    """The model store; empty: ``models`` in the home."""
    serve: Annotated[tuple[str, ...], Meta(max_length=16)] = ("*",)
    """Names of models to load at start; "*" means all in the store."""
    quota_gb: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """10⁹ bytes that the store may take; an import removes what was used longest ago. 0: no bound."""


class MarketSection(Section, frozen=True, kw_only=True):
    price_fixed: Microcredits = 0
    price_in: Microcredits = 200_000
    """µc per million prompt tokens."""
    price_out: Microcredits = 800_000
    """µc per million answer tokens."""
    price_per_s: Microcredits = 0
    price_max: Microcredits = 1_000_000
    """As requester: µc that one job may cost unless the order says otherwise."""
    spend_new_peer: Microcredits = 2_000_000
    """As requester: µc at risk (open contracts, promises for jobs that went wrong) with an unproven provider."""
    spend_peer_max: Microcredits = 100_000_000
    """As requester: µc at risk with one provider, however well it served."""
    spend_pool_new: Microcredits = 20_000_000
    """As requester: µc at risk with all providers together beyond what they have earned."""
    credit_new_peer: Microcredits = 100_000
    """As provider: µc that a peer which has settled nothing may owe, promises by voucher included."""
    credit_peer_max: Microcredits = 10_000_000
    """As provider: µc that one peer may owe, however much it has settled."""
    credit_pool_new: Microcredits = 2_000_000
    """As provider: µc that all peers together may owe beyond what they have earned."""
    earned_percent: Annotated[int, Meta(ge=0, le=99)] = 50
    """Of what a peer has settled (or served well, as provider), by how much its limit rises."""
    forgive_after_days: Annotated[int, Meta(ge=0, le=3650)] = 1
    """After so many days what is open counts against nobody's limit any more; 0: it counts for ever."""
    voucher_window_tokens: Annotated[int, Meta(ge=1, le=65_536)] = 32
    """Answer tokens between two meters, each of which waits for a voucher."""
    queue_max: Annotated[int, Meta(ge=0, le=4096)] = 64
    """As provider: accepted jobs that may wait for a slot."""
    settlement: Literal["none", "manual"] = "none"
    """none: promises of both sides net out; manual: and you say what a peer has paid, souk ledger settle."""
    settle_every_s: Annotated[int, Meta(ge=0, le=1 << 22)] = 600
    """How often connected peers with whom something changed are asked for a statement; 0: only by hand."""


class OwnerSection(Section, frozen=True, kw_only=True):
    hours: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    """When peers may come, in local time, such as "22:00-07:00" or "mon-fri 18:00-08:00"; empty: always."""
    idle_s: Annotated[int, Meta(ge=0, le=86_400)] = 0
    """Only after nobody touched keyboard or mouse for so long; 0: at any time."""
    foreign_cpu_percent_max: Annotated[int, Meta(ge=0, le=100)] = 100
    """Of all cores, what your other programs may be using; 100: any."""
    foreign_gpu_percent_max: Annotated[int, Meta(ge=0, le=100)] = 100
    """Of the busiest GPU, what your other programs may be using; 100: any."""
    temperature_celsius_max: Annotated[int, Meta(ge=0, le=150)] = 0
    """Of the hottest GPU; 0: any."""
    power_watts_max: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Of all GPUs together; 0: any."""
    gpu_memory_free_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """Of every GPU, what has to be free for your other programs; 0: nothing."""
    on_battery: bool = True
    """Whether peers may use this machine while it is unplugged."""
    calm_s: Annotated[int, Meta(ge=0, le=86_400)] = 60
    """For so long all of the above has to be met before peers are let in again."""
    grace_s: Annotated[int, Meta(ge=0, le=86_400)] = 60
    """Peers' jobs that run when the machine closes go on for so long; then they are handed back."""
    check_every_s: Annotated[int, Meta(ge=1, le=3_600)] = 10
    """How often load, temperature and the rest are read."""


class LogSection(Section, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class TracesSection(Section, frozen=True, kw_only=True):
    otlp_url: Annotated[str, Meta(pattern=r"^(https?://\S+)?$", max_length=256)] = ""
    """Where the steps of jobs go as OpenTelemetry spans; empty: nowhere."""


class Config(Section, frozen=True, kw_only=True):
    """Everything a daemon can be told."""

    version: Literal[1] = 1
    node: NodeSection = NodeSection()
    api: ApiSection = ApiSection()
    p2p: P2pSection = P2pSection()
    worker: WorkerSection = WorkerSection()
    models: ModelsSection = ModelsSection()
    market: MarketSection = MarketSection()
    owner: OwnerSection = OwnerSection()
    log: LogSection = LogSection()
    traces: TracesSection = TracesSection()
