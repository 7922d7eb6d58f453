"""Carries adverts: ours out, others' in (spec 06).

Three ways in, because each fails alone: gossip (needs to be there when it is sent), a direct exchange with every
peer that connects (reaches newcomers at once), and the DHT (reaches peers that nobody near us knows).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from node.clock import WallClock
from node.discovery.directory import ADVERT_GAP_MS_MIN, Directory, Listing
from node.errors import TransportError
from node.metrics import Metrics
from node.net.interface import Network, PeerAddresses, RecordRules, Stream
from protocol import limits
from protocol.advert import Advert, check_life_untrusted
from protocol.errors import RemoteProtocolError
from protocol.framing import (
    ADVERT_PROTOCOL,
    ENVELOPE_FRAME_BYTES_MAX,
    EnvelopeFrame,
    decode_frame_untrusted,
    encode_frame,
)
from protocol.identity import peer_id_from_text_untrusted, peer_id_to_text
from protocol.signed import Signed, read_untrusted, require_signer_untrusted
from protocol.units import MS_PER_S, ModelId, NetworkId, PeerId, UnixMs

log = logging.getLogger(__name__)

RECORD_NAMESPACE: Final = "cap"
MODEL_ID_BYTES: Final = 32
EXCHANGE_ADVERTS_MAX: Final = 64
EXCHANGE_DEADLINE_S: Final = 10.0
DHT_DEADLINE_S: Final = 15.0
# How long a start waits for its first neighbour: a node that calls itself ready and knows nobody answers "no
# such model" to its first user.
FIRST_CONTACT_S: Final = 5.0
PROVIDERS_MAX: Final = 20
# Newcomers that wait for an exchange; more are met by gossip and by their next advert.
NEWCOMERS_MAX: Final = 256
# Exchanges at once: one newcomer that never answers must not keep the others waiting.
GREETERS: Final = 4
# A change that is told sooner would only be told twice.
CHANGE_GAP_S: Final = 2.0
HEARTBEAT_S_MIN: Final = 20.0
HEARTBEAT_S_MAX: Final = 180.0
# The heartbeat slows as the network grows, so that bytes per node and minute stay flat.
HEARTBEAT_S_PER_PEER: Final = 0.5
LIFE_HEARTBEATS: Final = 3
BOOTSTRAP_RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertLife:
    """What the carrier decides about an advert; the composer fills in the rest."""

    sequence: UnixMs
    issued_at_ms: UnixMs
    expires_at_ms: UnixMs


AdvertComposer = Callable[[AdvertLife], Signed[Advert] | None]
"""Returns our own advert as of now, signed; None while there is nothing to offer."""


class Discovery:
    """Keeps the directory fresh and tells others of us. Make it before ``network.run`` starts, then ``run`` it."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        *,
        network_id: NetworkId,
        compose: AdvertComposer,
        wall_clock: WallClock,
        metrics: Metrics | None = None,
    ) -> None:
        """Without ``metrics`` nobody looks at what is counted."""
        self.metrics = Metrics() if metrics is None else metrics
        self._network = network
        self._directory = directory
        self._network_id = network_id
        self._compose = compose
        self._wall_clock = wall_clock
        self._prefix = f"souk/{network_id.hex()[:16]}"
        self._topic = f"{self._prefix}/adverts/1"
        self._own: Signed[Advert] | None = None
        self._last_sequence = 0
        self._renewed_at = -math.inf
        self._changed = trio.Event()
        self._contact = trio.Event()
        self._hopes = 0
        """Bootstrap peers that have not failed us yet."""
        self._greet, self._newcomers = trio.open_memory_channel[PeerId](NEWCOMERS_MAX)

    def attach(self) -> None:
        """Register with the network; before it runs."""
        self._network.subscribe(self._topic, self._hear_gossip)
        self._network.keep_records(
            RecordRules(namespace=RECORD_NAMESPACE, is_valid=self._is_valid_record, rank=self._record_rank)
        )
        self._network.serve(ADVERT_PROTOCOL, self._tell_adverts)
        self._network.on_connected(self._connected)

    async def run(
        self, bootstrap: tuple[str, ...], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Advertise and listen until cancelled.

        Started once a bootstrap peer has told us its adverts, none could be reached, or it took too long.
        """
        async with trio.open_nursery() as nursery:
            self._renew()
            nursery.start_soon(self._advertise)
            for _ in range(GREETERS):
                nursery.start_soon(self._meet_newcomers)
            self._hopes = len(bootstrap)
            for address in bootstrap:
                nursery.start_soon(self._stay_connected, address)
            if bootstrap:
                with trio.move_on_after(FIRST_CONTACT_S):
                    await self._contact.wait()
            task_status.started()

    @property
    def own_advert(self) -> Signed[Advert] | None:
        return self._own

    def changed(self) -> None:
        """Tell others soon: models, prices or whether there is a free slot have changed.

        Whoever connects meanwhile is told at once.
        """
        if self._may_renew():
            self._renew()
        self._changed.set()

    async def look_up(self, model: str, model_id: ModelId | None = None) -> int:
        """Ask the DHT who serves a model and take their adverts in; return how many were new.

        ``model`` is a name or all digits of an id. Best effort within ``DHT_DEADLINE_S``: it may find nothing
        although there is somebody.
        """
        found = 0
        model_id = model_id or _whole_id(model)
        key = self._model_key(model_id) if model_id is not None else self._name_key(model)
        try:
            with trio.move_on_after(DHT_DEADLINE_S):
                for provider in await self._network.find_providers(key, PROVIDERS_MAX):
                    if provider.peer_id == self._network.peer_id:
                        continue
                    self._network.remember(provider)
                    raw = await self._network.get_record(_record_key(provider.peer_id))
                    if raw is not None and self._hear(raw) is not None:
                        found += 1
        except TransportError as exc:
            log.info("look-up failed", extra={"cause": str(exc)})
        return found

    # Out.

    async def _advertise(self) -> None:
        while True:
            self._changed = trio.Event()
            await self._publish()
            with trio.move_on_after(self._heartbeat_s()):
                await self._changed.wait()
            await trio.sleep(CHANGE_GAP_S)

    def _heartbeat_s(self) -> float:
        peers = len(self._directory.listings(self._wall_clock()))
        return min(max(HEARTBEAT_S_MIN, peers * HEARTBEAT_S_PER_PEER), HEARTBEAT_S_MAX)

    def _renew(self) -> None:
        now = self._wall_clock()
        # Whose clock is ahead by all that is allowed still hears three heartbeats before it takes us for gone.
        life_ms = int(self._heartbeat_s() * LIFE_HEARTBEATS * MS_PER_S) + limits.CLOCK_SKEW_MS_MAX
        # Ahead of the last one even when the clock was set back, and by what others do not take for flooding.
        sequence = UnixMs(max(now, self._last_sequence + ADVERT_GAP_MS_MIN))
        self._own = self._compose(
            AdvertLife(
                sequence=sequence,
                issued_at_ms=now,
                expires_at_ms=UnixMs(now + min(life_ms, limits.ADVERT_LIFE_MS_MAX)),
            )
        )
        if self._own is not None:
            self._last_sequence, self._renewed_at = sequence, trio.current_time()

    def _may_renew(self) -> bool:
        """Return whether our last advert is old enough not to make the next one flooding.

        By trio's clock: by the wall clock, setting it back by an hour silenced a node for that hour.
        """
        return trio.current_time() - self._renewed_at >= ADVERT_GAP_MS_MIN / MS_PER_S

    async def _publish(self) -> None:
        if self._may_renew():
            self._renew()
        own = self._own
        if own is None:
            return
        try:
            await self._network.publish(self._topic, own.envelope.raw)
        except TransportError as exc:
            log.debug("advert not gossiped", extra={"cause": str(exc)})
        if not self._network.connected_peers():
            return
        with trio.move_on_after(DHT_DEADLINE_S):
            try:
                await self._network.put_record(_record_key(self._network.peer_id), own.envelope.raw)
                for offer in own.message.offers:
                    await self._network.provide(self._model_key(ModelId(offer.model_id)))
                    await self._network.provide(self._name_key(offer.name))
            except TransportError as exc:
                log.debug("advert not in the DHT", extra={"cause": str(exc)})

    async def _tell_adverts(self, stream: Stream) -> None:
        """Answer an exchange: our own advert first, then others' that are fresh."""
        listings = self._directory.listings(self._wall_clock())[: EXCHANGE_ADVERTS_MAX - 1]
        own = [] if self._own is None else [self._own.envelope.raw]
        with trio.fail_after(EXCHANGE_DEADLINE_S):
            for raw in [*own, *(listing.signed.envelope.raw for listing in listings)]:
                await stream.send_frame(encode_frame(EnvelopeFrame(raw)))
            await stream.finish()

    # In.

    def _hear(self, raw: bytes) -> Listing | None:
        """Take an advert in if it is new and good."""
        try:
            listing = self._directory.hear_untrusted(raw, self._wall_clock())
        except RemoteProtocolError as exc:
            self.metrics.advert_heard(exc.reason)
            self.metrics.peer_rejected(exc.reason)
            log.debug("advert refused", extra={"reason": exc.reason, "cause": str(exc)})
            return None
        self.metrics.advert_heard("stale" if listing is None else "accepted")
        if listing is not None:
            self._network.remember(PeerAddresses(peer_id=listing.peer_id, addresses=listing.advert.addresses))
        return listing

    def _hear_gossip(self, _forwarder: PeerId, data: bytes) -> bool:
        return self._hear(data) is not None

    def _connected(self, peer_id: PeerId) -> None:
        try:
            self._greet.send_nowait(peer_id)
        except trio.WouldBlock:
            log.info("newcomer not asked for adverts", extra={"peer": peer_id_to_text(peer_id)})

    async def _meet_newcomers(self) -> None:
        async for peer_id in self._newcomers:
            try:
                with trio.fail_after(EXCHANGE_DEADLINE_S):
                    await self._ask_adverts(peer_id)
                self._contact.set()
            except (TransportError, trio.TooSlowError, RemoteProtocolError) as exc:
                if isinstance(exc, RemoteProtocolError):
                    self.metrics.peer_rejected(exc.reason)
                log.info(
                    "no adverts from newcomer",
                    extra={"peer": peer_id_to_text(peer_id), "cause": str(exc) or "no answer in time"},
                )

    async def _ask_adverts(self, peer_id: PeerId) -> None:
        async with await self._network.open_stream(peer_id, ADVERT_PROTOCOL) as stream:
            await stream.finish()
            for _ in range(EXCHANGE_ADVERTS_MAX):
                data = await stream.receive_frame(ENVELOPE_FRAME_BYTES_MAX)
                if data is None:
                    return
                frame = decode_frame_untrusted(data)
                if isinstance(frame, EnvelopeFrame):
                    self._hear(frame.raw)

    async def _stay_connected(self, address: str) -> None:
        """Dial a bootstrap peer, and again whenever we have lost everybody."""
        attempt, has_failed = 0, False
        while True:
            if not self._network.connected_peers():
                try:
                    with trio.fail_after(EXCHANGE_DEADLINE_S):
                        await self._network.dial(address)
                    attempt = 0
                except (TransportError, trio.TooSlowError) as exc:
                    cause = str(exc) or f"no answer within {EXCHANGE_DEADLINE_S:.0f} s"
                    log.warning("bootstrap peer not reached", extra={"address": address, "cause": cause})
                    self._hopes -= not has_failed
                    has_failed = True
                    if self._hopes == 0:
                        self._contact.set()
            await trio.sleep(BOOTSTRAP_RETRY_S[min(attempt, len(BOOTSTRAP_RETRY_S) - 1)])
            attempt += 1

    def _is_valid_record(self, key: str, value: bytes) -> bool:
        try:
            peer_id = peer_id_from_text_untrusted(key.removeprefix(f"/{RECORD_NAMESPACE}/"))
            signed = read_untrusted(value, network=self._network_id, allowed=(Advert,))
            require_signer_untrusted(signed, peer_id)
            check_life_untrusted(signed.message, self._wall_clock())
        except RemoteProtocolError:
            return False
        return True

    def _record_rank(self, value: bytes) -> int:
        try:
            return read_untrusted(value, network=self._network_id, allowed=(Advert,)).message.sequence
        except RemoteProtocolError:
            return -1

    def _model_key(self, model_id: ModelId) -> str:
        return f"{self._prefix}/model/{model_id.hex()}"

    def _name_key(self, name: str) -> str:
        return f"{self._prefix}/name/{name}"


def _whole_id(model: str) -> ModelId | None:
    """Return the model id that a user has written out in hex; a part of one is no key of the DHT."""
    try:
        digits = bytes.fromhex(model)
    except ValueError:
        return None
    return ModelId(digits) if len(digits) == MODEL_ID_BYTES else None


def _record_key(peer_id: PeerId) -> str:
    return f"/{RECORD_NAMESPACE}/{peer_id_to_text(peer_id)}"
