from dataclasses import replace

from node.api.device_views import own_device, peer_device
from node.execution.interface import DeviceLoad, DeviceReport
from protocol.advert import DeviceClaim
from tests.fakes import served_model

REPORT = DeviceReport(
    kind="cuda",
    index=1,
    name="card",
    architecture="sm_90",
    memory_total_bytes=100,
    memory_free_bytes=30,
    dtypes=("bf16",),
    driver="610",
    matmul_gflops=5,
    read_mb_per_s=6,
    load=DeviceLoad(compute_capability="9.0", energy_millijoules=7, foreign_processes=2),
)


def test_own_device_shows_its_models_with_advertised_and_delivered_speed() -> None:
    here = replace(served_model("here"), device="cuda:1", delivered_tokens_per_s_milli=80_500)
    shown = own_device(REPORT, [replace(served_model("there"), device="cuda:0"), here])
    assert (shown.compute_capability, shown.energy_millijoules, shown.foreign_processes) == ("9.0", 7, 2)
    (model,) = shown.models
    assert (model.name, model.tokens_per_s, model.delivered_tokens_per_s) == ("here", 100.0, 80.5)
    full = own_device(REPORT, [replace(here, is_loaded=False, lacks="memory", delivered_tokens_per_s_milli=None)])
    assert full.models[0].lacks == "memory" and full.models[0].delivered_tokens_per_s is None


def test_device_of_a_peer_shows_only_what_it_claims() -> None:
    claim = DeviceClaim(
        device="cpu", name="a cpu", architecture="x", memory_total_bytes=9, memory_free_bytes=1, dtypes=("fp32",)
    )
    shown = peer_device(claim)
    assert (shown.kind, shown.memory_total_bytes, shown.driver, shown.models) == ("cpu", 9, None, ())
    assert shown.foreign_processes is None
