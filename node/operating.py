"""What the operator may tell a running daemon: its settings, reload, drain and resume, in the API's forms.

The gate is ``node/owner/gate.py``'s, the comparison of settings ``node/reload.py``'s.
"""

from collections.abc import Sequence

from node.api.operator_routes import ChangeView, ConfigAnswer, ReloadAnswer, SettingView, Value
from node.api.views import GateView
from node.config_file import is_live, setting, setting_types
from node.market.admission import Admission
from node.owner.gate import Gate
from node.reload import Change, LiveConfig
from protocol.units import MS_PER_S


class Operating:
    """Implements ``node.api.operator_routes.Operator``."""

    def __init__(self, live: LiveConfig, gate: Gate, admission: Admission) -> None:
        self._live, self._gate, self._admission = live, gate, admission

    def settings(self) -> ConfigAnswer:
        return ConfigAnswer(
            path=self._live.path,
            settings=tuple(
                SettingView(
                    name=name,
                    value=_value(setting(self._live.config, name)),
                    origin=self._live.origin(name),
                    live=is_live(name),
                )
                for name in setting_types()
            ),
        )

    async def reload(self) -> ReloadAnswer:
        """Raises: ConfigError (nothing has changed)."""
        reload = await self._live.reload()
        return ReloadAnswer(changed=_views(reload.changed), needs_restart=_views(reload.needs_restart))

    def drain(self, grace_s: float | None) -> None:
        self._gate.drain(grace_s)

    def resume(self) -> None:
        self._gate.resume()

    def gate(self) -> GateView:
        state = self._gate.state
        return GateView(
            open=state.is_open,
            drained=state.by_hand,
            reasons=state.reasons,
            opens_at_ms=None if state.opens_at is None else round(state.opens_at.timestamp() * MS_PER_S),
            unread=state.unread,
            hands_back_in_s=state.hands_back_in_s,
            jobs=self._admission.running,
        )


def _views(changes: Sequence[Change]) -> tuple[ChangeView, ...]:
    return tuple(
        ChangeView(name=it.name, before=_value(it.before), after=_value(it.after), origin=it.origin)
        for it in changes
    )


def _value(value: object) -> Value:
    assert isinstance(value, bool | int | str | tuple)
    return value
