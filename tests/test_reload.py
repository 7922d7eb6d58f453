import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from node.config import Config
from node.config_file import ConfigSource, Loaded, is_live, load_config, setting, setting_types
from node.errors import ConfigError
from node.reload import LiveConfig, compare

BEFORE = '[node]\nname = "a"\n[market]\nprice_in = 1\nprice_out = 2\n[log]\nlevel = "info"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(BEFORE)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def live_config(path: Path, *settings: str) -> tuple[LiveConfig, list[Config]]:
    source = ConfigSource(path=path, environ={"SOUK_MARKET_PRICE_OUT": "7"}, settings=settings)
    live, told = LiveConfig(source, source.load()), list[Config]()
    live.subscribe(told.append)
    return live, told


async def test_reload_follows_what_is_live_and_names_what_needs_a_restart(path: Path) -> None:
    live, told = live_config(path)
    write(
        path,
        '[node]\nname = "b"\n[market]\nprice_in = 5\nsettlement = "manual"\n[owner]\nhours = ["22:00-07:00"]\n',
    )
    reload = await live.reload()
    assert [(it.name, it.before, it.after, it.origin) for it in reload.changed] == [
        ("market.price_in", 1, 5, f"{path}:4"),
        ("owner.hours", (), ("22:00-07:00",), f"{path}:7"),
    ]
    assert [(it.name, it.before, it.after) for it in reload.needs_restart] == [
        ("node.name", "a", "b"),
        ("market.settlement", "none", "manual"),
    ]
    assert told == [live.config]
    assert (live.config.market.price_in, live.config.node.name, live.config.market.settlement) == (5, "a", "none")
    assert live.origin("market.price_in") == f"{path}:4" and live.origin("node.name") == f"{path}:2"


async def test_reload_keeps_the_order_of_sources(path: Path) -> None:
    live, _ = live_config(path, "market.price_in=9")
    write(path, "[market]\nprice_in = 5\nprice_out = 5\n")
    reload = await live.reload()
    assert [it.name for it in reload.needs_restart] == ["node.name"] and not reload.changed
    assert (live.config.market.price_in, live.config.market.price_out) == (9, 7)


async def test_reload_changes_nothing_when_the_new_file_is_bad(path: Path) -> None:
    live, told = live_config(path)
    before = live.config
    write(path, "[market]\nprice_in = 5\nprice_uot = 1\n")
    with pytest.raises(ConfigError) as caught:
        await live.reload()
    assert caught.value.problems == [f"{path}:3: market.price_uot: unknown key (did you mean price_out?)"]
    assert live.config is before and not told


async def test_reload_says_nothing_when_nothing_is_new(path: Path) -> None:
    live, _ = live_config(path)
    reload = await live.reload()
    assert (reload.changed, reload.needs_restart) == ((), ())


def test_every_setting_can_be_compared(path: Path) -> None:
    source = ConfigSource(path=path, environ={})
    following, reload = compare(Config(), source.load())
    assert {it.name for it in (*reload.changed, *reload.needs_restart)} == {
        "node.name",
        "market.price_in",
        "market.price_out",
    }
    assert following.market.price_in == 1
    assert all(setting(Config(), name) is not None for name in setting_types())


def test_what_is_built_once_is_not_live() -> None:
    assert {name.partition(".")[0] for name in setting_types() if is_live(name)} == {"market", "owner", "log"}
    assert not is_live("market.settlement") and is_live("market.queue_max")


async def test_reloads_come_one_after_the_other(path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class SlowSource(ConfigSource):
        def load(self) -> Loaded:
            loaded = load_config(self.path, environ={})
            if not entered.is_set():
                entered.set()
                assert go.wait(5)
            return loaded

    live = LiveConfig(SlowSource(path=path, environ={}), load_config(path, environ={}))
    limiter = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.reload)
        await trio.to_thread.run_sync(entered.wait)
        write(path, BEFORE.replace("price_in = 1", "price_in = 5"))
        nursery.start_soon(live.reload)
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 1
        go.set()
    assert live.config.market.price_in == 5
