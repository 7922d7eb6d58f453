"""Gossip on py-libp2p's gossipsub 1.1: handlers judge and hear each message once, in the validator."""

import logging
import time
from typing import Final

from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from node.metrics import Wire
from node.net import limits
from node.net.interface import GossipHandler
from node.net.libp2p.peers import from_libp2p_untrusted

log = logging.getLogger(__name__)

DEGREE_LOW: Final = 4
DEGREE_HIGH: Final = 12


class SafePubsub(Pubsub):
    """Pubsub that no message can end."""

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Drop oversize messages before their signature is checked, and contain the rest.

        Three malformed messages end the stock service and with it the host: garbage protobuf, an RSA sender with a
        garbage key, and one on which a validator raises.
        """
        if len(msg.data) > limits.GOSSIP_BYTES_MAX:
            return
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as exc:  # the edge of one message: whatever a peer wrote into it, the service goes on
            log.warning("gossip_message_failed", extra={"peer": str(msg_forwarder), "cause": repr(exc)})

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """Keep the subscriptions of a peer that is still connected.

        When one of two connections ends, stock opens its stream anew but forgets what the peer subscribes to; the
        peer does not tell again, and hears nothing more.
        """
        topics = [topic for topic, peers in self.peer_topics.items() if peer_id in peers]
        super()._handle_dead_peer(peer_id)
        if topics and self._peer_is_connected(peer_id):
            for topic in topics:
                self.peer_topics.setdefault(topic, set()).add(peer_id)
            self._peer_subscription_count[peer_id] = len(topics)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Do nothing: the validator has delivered. Stock queues 32 messages for a reader and drops the rest."""

    async def continuously_read_stream(self, stream: INetStream) -> None:
        try:
            await super().continuously_read_stream(stream)
        finally:
            # Stock leaves the stream open when reading failed, and the sender believes that it is heard.
            await stream.reset()


def build_pubsub(host: BasicHost, topics: dict[str, GossipHandler], wire: Wire) -> tuple[SafePubsub, GossipSub]:
    """Make the pubsub service and its router; both still have to be run, and ``subscribe`` be awaited.

    What others published and came in for the first time is counted on ``wire``.
    """
    router = GossipSub(
        # 1.2 sends an IDONTWANT to every mesh peer for each message: three times the CPU for small messages.
        [PROTOCOL_ID_V11],
        limits.GOSSIP_DEGREE,
        DEGREE_LOW,
        DEGREE_HIGH,
        # The default of 120 s leaves a node without a mesh for two minutes.
        heartbeat_interval=1,
        # It drops more than ten messages a second, silently, our own publishes as well. Handlers limit rates.
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
        adaptive_gossip_enabled=False,
        do_px=False,
    )
    pubsub = SafePubsub(
        host,
        router,
        # 128 by default: a burst of more lets messages come round again.
        cache_size=limits.GOSSIP_SEEN_MAX,
        max_inbound_rpc_size=limits.GOSSIP_RPC_BYTES_MAX,
        allowed_topics=frozenset(topics),
    )
    # Stock starts at the second: after a quick restart, messages count as seen for two minutes.
    pubsub.counter = time.time_ns()
    for topic, handler in topics.items():
        pubsub.set_topic_validator(topic, _as_validator(handler, host.get_id(), wire), False)
    return pubsub, router


class _Validator:
    def __init__(self, handler: GossipHandler, own: ID, wire: Wire) -> None:
        self._handler = handler
        self._wire = wire
        self._own = own

    def __call__(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        if message.from_id == self._own.to_bytes():
            return forwarder == self._own
        self._wire.received(len(message.data))
        return self._handler(from_libp2p_untrusted(forwarder), message.data)


def _as_validator(handler: GossipHandler, own: ID, wire: Wire) -> _Validator:
    return _Validator(handler, own, wire)
