"""What this node says about itself: measured devices, loaded models, standing prices (spec 06)."""

import logging
from typing import Final

import trio

from node.config import Config
from node.discovery.discovery import AdvertLife
from node.execution.interface import DeviceReport, Executor, ServedModel
from node.market.admission import Admission
from node.market.exposures import credit_rule
from node.market.party import Party
from node.market.provider import Provider
from node.net.interface import Network
from protocol import limits
from protocol.advert import PROTOCOL_VERSION, Advert, DeviceClaim, Offer
from protocol.errors import LocalProtocolError, Reason
from protocol.price import Prices
from protocol.signed import Signed

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
GIB: Final = 1 << 30


class OwnAdvert:
    """Composes our advert as of now; ``node.discovery`` decides when and carries it."""

    def __init__(
        self,
        party: Party,
        provider: Provider,
        executor: Executor,
        admission: Admission,
        *,
        network: Network,
        config: Config,
    ) -> None:
        self._party, self._provider, self._executor, self._admission = party, provider, executor, admission
        self._network = network
        self._name = config.node.name
        self.market = config.market
        self._has_offered = False

    def compose(self, life: AdvertLife) -> Signed[Advert] | None:
        """Return the signed advert; None before a model has answered here and a place been given away.

        Afterwards an advert without offers takes the offers back: others would go on asking until it ended.
        """
        # A model on several devices is one offer: of its slowest device, since a job may run on any.
        served = [model for model in self._executor.models() if model.lacks != "memory"]
        slowest = sorted(served, key=lambda model: -model.tokens_per_s_milli)
        offers = [_offer(model, self._provider.prices) for model in {it.model_id: it for it in slowest}.values()]
        if not offers or self._admission.slots == 0 or self._admission.closed is not None:
            if not self._has_offered:
                return None
            offers = []
        self._has_offered = True
        offers = offers[: limits.MODELS_MAX]
        while True:
            try:
                return self._party.sign(self._advert(life, offers))
            except LocalProtocolError as exc:
                if exc.reason is not Reason.SIZE or len(offers) <= 1:
                    raise
                log.warning("model left out of the advert: it is full", extra={"model": offers[-1].name})
                offers = offers[:-1]

    def _advert(self, life: AdvertLife, offers: list[Offer]) -> Advert:
        return Advert(
            sequence=life.sequence,
            issued_at_ms=life.issued_at_ms,
            expires_at_ms=life.expires_at_ms,
            versions=(PROTOCOL_VERSION,),
            name=self._name,
            addresses=self._network.addresses[: limits.ADDRESSES_MAX],
            devices=tuple(_claim(device) for device in self._executor.devices()[: limits.DEVICES_MAX]),
            offers=tuple(offers),
            slots_total=self._admission.slots,
            slots_free=self._slots_free(),
            queue_ms=self._provider.queue_ms(),
            credit=credit_rule(self.market).limit(settled=0),
        )

    def _slots_free(self) -> int:
        if self._party.ledger.health.fault is not None:
            return 0  # peers ask others first, and know us still when the disk is back
        return self._admission.slots_free(trio.current_time())


def _offer(model: ServedModel, prices: Prices) -> Offer:
    return Offer(
        model_id=model.model_id,
        name=model.name,
        task=model.task,
        dtype=model.dtype,
        context_tokens=model.context_tokens,
        prices=prices,
        tokens_per_s_milli=model.tokens_per_s_milli,
    )


def _claim(device: DeviceReport) -> DeviceClaim:
    # Coarse on purpose: exact free memory would tell strangers what else runs here.
    return DeviceClaim(
        device=device.kind,
        name=device.name[: limits.NAME_BYTES_MAX],
        architecture=device.architecture[: limits.NAME_BYTES_MAX],
        memory_total_bytes=device.memory_total_bytes // MIB * MIB,
        memory_free_bytes=device.memory_free_bytes // GIB * GIB,
        dtypes=device.dtypes,
        matmul_gflops=device.matmul_gflops,
        read_mb_per_s=device.read_mb_per_s,
    )
