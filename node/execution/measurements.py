"""What was measured on this machine's devices, kept on disk so that a start need not measure again.

It holds as long as the conditions do: driver, torch, device, dtype and threads. When one of them changes, the
device's figures are forgotten and measured again; a model's belong to its id, which changes with its files.
How fast jobs really ran is kept beside, in memory only: the advert promises what was measured.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from node.durable import USUAL, replace_file
from protocol.units import ModelId

log = logging.getLogger(__name__)

# So many models of one device are remembered; those measured first are forgotten first.
MODELS_MAX: Final = 256
_FILE_BYTES_MAX: Final = 1 << 20
_Count = Annotated[int, Meta(ge=1, le=1 << 53)]


class DeviceRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device does, whatever model it runs."""

    matmul_gflops: _Count
    read_mb_per_s: _Count


class _Device(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    conditions: str
    rates: DeviceRates | None = None
    tokens_per_s_milli: dict[str, _Count] = {}


class Measurements:
    """The figures of all devices, by name (``cuda:0``). With no path they are kept in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._devices: dict[str, _Device] = {}

    def read(self) -> None:
        """Take over what an earlier run has kept. Blocks; a file that is damaged or missing counts as empty."""
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                self._devices = msgspec.json.decode(file.read(_FILE_BYTES_MAX), type=dict[str, _Device])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as exc:
            log.warning("measurements are measured again", extra={"cause": str(exc)})

    def write(self) -> None:
        """Keep everything. Blocks; a disk that refuses costs the next start its seconds, no more."""
        if self._path is None:
            return
        data = json.dumps(msgspec.to_builtins(self._devices), indent=1) + "\n"
        try:
            replace_file(self._path, data.encode(), mode=USUAL)
        except OSError as exc:
            log.warning("measurements are not kept", extra={"cause": str(exc)})

    def under(self, device: str, conditions: str) -> None:
        """Forget what was measured of ``device`` under other conditions than these."""
        known = self._devices.get(device)
        if known is None or known.conditions != conditions:
            self._devices[device] = _Device(conditions=conditions)

    def rates(self, device: str) -> DeviceRates | None:
        return self._devices[device].rates

    def keep_rates(self, device: str, rates: DeviceRates) -> None:
        self._devices[device].rates = rates

    def tokens_per_s_milli(self, device: str, model_id: ModelId) -> int | None:
        """Return a model's decode speed for one sequence, ``None`` before it was measured."""
        return self._devices[device].tokens_per_s_milli.get(model_id.hex())

    def keep_tokens_per_s_milli(self, device: str, model_id: ModelId, value: int) -> None:
        speeds = self._devices[device].tokens_per_s_milli
        speeds[model_id.hex()] = max(1, value)
        if len(speeds) > MODELS_MAX:
            del speeds[next(iter(speeds))]


@dataclass(slots=True)
class Delivered:
    """How fast one model's jobs really decoded, each counted alone; sharing the device makes it less."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Note a job that ended: tokens after its first one, and the time they took."""
        if tokens > 0 and seconds > 0:
            self.tokens += tokens
            self.seconds += seconds

    @property
    def tokens_per_s_milli(self) -> int | None:
        """Over all jobs so far; ``None`` while there was none."""
        return round(self.tokens * 1000 / self.seconds) if self.seconds else None
