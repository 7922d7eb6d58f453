"""What the API shows of devices: our own, with the models on them, and those that peers claim to have."""

from collections.abc import Sequence

import msgspec

from node.api.views import DeviceModelView, DeviceView
from node.execution.interface import DeviceReport, ServedModel
from protocol.advert import DeviceClaim

_MILLI = 1_000


def own_device(report: DeviceReport, models: Sequence[ServedModel]) -> DeviceView:
    """Return a device of ours; of ``models`` those are shown that it serves."""
    name = "cpu" if report.kind == "cpu" else f"cuda:{report.index}"
    load = report.load
    return msgspec.structs.replace(
        _found(report, index=report.index, driver=report.driver),
        compute_capability=load.compute_capability,
        utilization_ratio=load.utilization_ratio,
        temperature_celsius=load.temperature_celsius,
        power_watts=load.power_watts,
        energy_millijoules=load.energy_millijoules,
        foreign_processes=load.foreign_processes,
        models=tuple(_model(model) for model in models if model.device == name),
    )


def peer_device(claim: DeviceClaim) -> DeviceView:
    """Return what a peer says of its device; it tells neither an index nor a driver."""
    return _found(claim, index=0, driver=None)


def tokens_per_s(milli: int | None) -> float | None:
    """Return a speed as it is shown."""
    return None if milli is None else milli / _MILLI


def _model(model: ServedModel) -> DeviceModelView:
    return DeviceModelView(
        name=model.name,
        loaded=model.is_loaded,
        lacks=model.lacks,
        memory_bytes=model.memory_bytes,
        context_tokens=model.context_tokens,
        tokens_per_s=model.tokens_per_s_milli / _MILLI,
        delivered_tokens_per_s=tokens_per_s(model.delivered_tokens_per_s_milli),
    )


def _found(device: DeviceReport | DeviceClaim, *, index: int, driver: str | None) -> DeviceView:
    return DeviceView(
        kind=device.kind if isinstance(device, DeviceReport) else device.device,
        index=index,
        name=device.name,
        architecture=device.architecture,
        memory_total_bytes=device.memory_total_bytes,
        memory_free_bytes=device.memory_free_bytes,
        dtypes=device.dtypes,
        driver=driver,
        matmul_gflops=device.matmul_gflops,
        read_mb_per_s=device.read_mb_per_s,
    )
