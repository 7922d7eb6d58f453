"""An operator that notes what it is told."""

from dataclasses import dataclass, field

from node.api.operator_routes import ChangeView, ConfigAnswer, ReloadAnswer, SettingView
from node.api.views import GateView
from node.errors import ConfigError, ExecutionError
from node.execution.capacity import Capacity, Figures
from tests.fakes import served_model

CHANGE = ChangeView(name="market.price_in", before=1, after=2, origin="config.toml:3")


@dataclass
class FakeOperator:
    """Implements ``node.api.operator_routes.Operator``."""

    problems: list[str] = field(default_factory=list)
    graces: list[float | None] = field(default_factory=list)
    is_drained: bool = False

    def settings(self) -> ConfigAnswer:
        setting = SettingView(name="node.name", value="n", origin="default", live=False)
        return ConfigAnswer(path="config.toml", settings=(setting,))

    async def reload(self) -> ReloadAnswer:
        if self.problems:
            raise ConfigError(self.problems)
        return ReloadAnswer(changed=(CHANGE,), needs_restart=())

    def drain(self, grace_s: float | None) -> None:
        self.graces.append(grace_s)
        self.is_drained = True

    def resume(self) -> None:
        self.is_drained = False

    def gate(self) -> GateView:
        return GateView(open=not self.is_drained, drained=self.is_drained, jobs=2)


CAPACITY = Capacity(
    model=served_model(),
    runs=(3_000, 5_000, 4_000),
    measured=Figures(tokens_per_s_milli=4_000, matmul_gflops=50, read_mb_per_s=9_000),
    advertised=Figures(tokens_per_s_milli=3_500, matmul_gflops=None, read_mb_per_s=8_000),
    was_cut=False,
)


async def scripted_bench(_model: str | None, device: str | None, *, duration_s: float) -> Capacity:
    """Return the same for every device but those that are named after what is wrong."""
    codes = {"cuda:0": "device_busy", "full": "memory", "crowded": "model_busy"}
    if device in codes:
        raise ExecutionError("it cannot be measured", code=codes[device])
    return CAPACITY
