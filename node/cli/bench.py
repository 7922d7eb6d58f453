"""``bench``: what a device of this machine does now, beside what is advertised of it.

The daemon measures with its own worker; without one, a worker of this command's does, while it holds the home.
"""

import os
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.client import find_daemon
from node.cli.completion import complete_model
from node.cli.exits import CliError, Exit
from node.cli.numbers import Number
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, columns, emit, note
from node.home import Home

if TYPE_CHECKING:
    from node.execution.capacity import Capacity
    from node.execution.pool import WorkerPool

# Beyond the runs: a model may have to be loaded first.
LOAD_S_MAX: Final = 600.0


@click.command(cls=SoukCommand)
@click.option("--device", metavar="NAME", help="Such as cuda:0 or cpu; else any that has the model.")
@click.option("--model", metavar="NAME", shell_complete=complete_model, help="Else one that is loaded.")
@click.option("--seconds", type=Number(0, 60), default=5.0, show_default=True, help="For how long.")
@pass_globals
def bench(options: Globals, device: str | None, model: str | None, seconds: float) -> int:
    """Measure what a device does alone: decoding of one sequence, matrix products, memory reads.

    The figures are those that `souk devices` and `souk advert` show, measured again by the same code. Ends with 9
    while jobs keep the device busy, with 5 when it serves no such model.
    """
    body = {name: value for name, value in (("model", model), ("device", device)) if value is not None}
    try:
        daemon = find_daemon(options)
        payload = daemon.request("POST", "/api/v1/bench", body | {"seconds": seconds}, wait_s=seconds + LOAD_S_MAX)
    except CliError as exc:
        is_elsewhere = options.api_flag or os.environ.get("SOUK_API")
        if exc.code != Exit.UNREACHABLE or is_elsewhere or options.home.is_locked():
            raise
        note(options, "no daemon runs in this home: measuring with a worker of my own")
        payload = _measure_here(options.home, model, device, seconds)
    if payload["was_cut"]:
        note(options, "a job came: measured until then")
    emit(options, payload, table=_table)
    return Exit.DONE


def _measure_here(
    home: Home, model: str | None, device: str | None, seconds: float
) -> dict[str, Any]:  # as the daemon's JSON
    import msgspec
    import trio

    from node.api.bench_routes import bench_answer
    from node.config_file import ConfigSource
    from node.errors import JobRefusedError, ModelError
    from node.execution.pool import WorkerPool
    from node.logs import set_up_logging
    from node.models.store import ModelStore

    source = ConfigSource(path=home.config_path, environ=dict(os.environ))
    config = source.load().config
    set_up_logging("warning", form=config.log.format)
    store = ModelStore(home.models_folder(config.models.dir))
    worker, serve = config.worker, config.models.serve
    if device is not None:
        worker = msgspec.structs.replace(worker, devices="cpu" if device == "cpu" else (device,))
    with home.locked():
        try:
            serve = serve if model is None else (store.find(model).name,)
            pool = WorkerPool(worker, store, serve, home=home)
            capacity = trio.run(_measure, pool, seconds)
        except (JobRefusedError, ModelError) as exc:
            raise CliError(str(exc), Exit.UNKNOWN) from exc
    found: dict[str, Any] = msgspec.to_builtins(bench_answer(capacity))
    return found


async def _measure(pool: "WorkerPool", seconds: float) -> "Capacity":
    """Serve the models as the daemon would, and measure one. Raises: ExecutionError."""
    import trio

    from node.errors import ExecutionError

    found: list[Capacity] = []
    faults: list[ExecutionError] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        try:
            found.append(await pool.bench(None, None, duration_s=seconds))
        except ExecutionError as exc:
            faults.append(exc)  # raised below, bare: a nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if faults:
        raise faults[0]
    return found[0]


def _table(payload: Payload) -> str:
    measured, advertised = payload["measured"], payload["advertised"]
    unit = "tokens/s, one sequence" if payload["task"] == "generate" else "units/s, one job"
    rows = [
        (title, measured[name], advertised[name], _percent(measured[name], advertised[name]))
        for title, name in (
            (unit, "tokens_per_s"),
            ("matrix products GFLOP/s", "matmul_gflops"),
            ("memory reads MB/s", "read_mb_per_s"),
        )
    ]
    head = (
        f"{payload['model']} ({payload['dtype']}) on {payload['device']}: {payload['runs']} runs, "
        f"{payload['tokens_per_s_min']:,.1f} to {payload['tokens_per_s_max']:,.1f} {unit.partition(',')[0]}"
    )
    return f"{head}\n{columns(('', 'MEASURED', 'ADVERTISED', '%'), rows)}"


def _percent(measured: float | None, advertised: float | None) -> float | None:
    return None if measured is None or not advertised else 100 * measured / advertised
