"""Settings that change while the daemon runs: what of a new file is followed at once, and what needs a restart.

The comparison is pure; ``LiveConfig`` holds what is followed now. Reading is ``node/config_file.py``'s.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from node.config import Config
from node.config_file import ConfigSource, Loaded, is_live, setting, setting_types
from node.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting that a new configuration has otherwise."""

    name: str
    before: object
    after: object
    origin: str
    """Where the new value comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """What became of a new configuration."""

    changed: tuple[Change, ...]
    needs_restart: tuple[Change, ...]
    """These stay as they were."""


def compare(running: Config, loaded: Loaded) -> tuple[Config, Reload]:
    """Return what the daemon follows from now on, and how that differs from before. Pure."""
    changed, needs_restart = [], []
    live: dict[str, dict[str, object]] = {}
    for name in setting_types():
        before, after = setting(running, name), setting(loaded.config, name)
        if before == after:
            continue
        change = Change(name=name, before=before, after=after, origin=loaded.origin(name))
        if is_live(name):
            section, _, key = name.partition(".")
            live.setdefault(section, {})[key] = after
            changed.append(change)
        else:
            needs_restart.append(change)
    sections: dict[str, Any] = {  # Any: as msgspec.structs.replace takes its keywords
        section: msgspec.structs.replace(getattr(running, section), **values) for section, values in live.items()
    }
    following = msgspec.structs.replace(running, **sections)
    return following, Reload(changed=tuple(changed), needs_restart=tuple(needs_restart))


class LiveConfig:
    """The configuration that is followed now. Whoever follows it subscribes before the first ``reload``."""

    def __init__(self, source: ConfigSource, loaded: Loaded) -> None:
        self._source = source
        self._origins = dict(loaded.origins)
        self.config = loaded.config
        self._followers: list[Callable[[Config], None]] = []
        self._reloading = trio.Lock()

    @property
    def path(self) -> str:
        return str(self._source.path)

    def origin(self, name: str) -> str:
        """Return where the value that is followed now comes from."""
        return self._origins.get(name, "default")

    def subscribe(self, follow: Callable[[Config], None]) -> None:
        """Have every new configuration told; nothing that is called may fail or wait."""
        self._followers.append(follow)

    async def reload(self) -> Reload:
        """Read all sources again and follow what can be followed.

        Raises:
            ConfigError: the sources are faulty; nothing has changed.
        """
        # One after the other: of two at once, the one that read the older file could come last and win.
        async with self._reloading:
            return self._follow(await self._load())

    async def _load(self) -> Loaded:
        try:
            # Left behind where nobody waits for it any more: it changes nothing, and a disk may never answer.
            return await trio.to_thread.run_sync(self._source.load, abandon_on_cancel=True)
        except ConfigError as exc:
            log.error("configuration not reloaded: it is faulty", extra={"problems": exc.problems})
            raise

    def _follow(self, loaded: Loaded) -> Reload:
        following, reload = compare(self.config, loaded)
        kept = {change.name: self.origin(change.name) for change in reload.needs_restart}
        self.config = following
        self._origins = {**loaded.origins, **kept}
        for follow in self._followers:
            follow(following)
        for it in reload.changed:
            log.info("setting changed", extra={"setting": it.name, "before": it.before, "now": it.after})
        for it in reload.needs_restart:
            log.warning("setting needs a restart", extra={"setting": it.name, "wanted": it.after})
        return reload
