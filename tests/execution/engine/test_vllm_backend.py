import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.errors import ExecutionError
from node.execution.engine import vllm_backend
from node.execution.engine.engine import Chosen
from node.execution.engine.scheduler import Sequence
from node.execution.engine.vllm_backend import VllmEngine
from node.execution.engine.vllm_server import VllmServer
from protocol.task import Sampling
from tests.execution.fake_vllm import BREAKS, PAIRS, REFUSES, STALLS, FakeVllm, fake_vllm


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeVllm]:
    with fake_vllm(tmp_path / "s") as server:
        yield server


@pytest.fixture
def engine(server: FakeVllm, tmp_path: Path) -> Iterator[VllmEngine]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as keeper:
        yield VllmEngine(VllmServer(keeper, tmp_path / "s"), slots=2, context_tokens=64)


def sequence(
    request: int, tokens: list[int], out: int = 4, *, stop: int = 0, sampling: Sampling | None = None
) -> Sequence:
    return Sequence(
        request=request,
        tokens=list(tokens),
        prompt_tokens=len(tokens),
        tokens_out_max=out,
        sampling=sampling or Sampling(),
        stop_tokens=frozenset({stop}),
    )


def run(engine: VllmEngine) -> dict[int, list[Chosen]]:
    found: dict[int, list[Chosen]] = {}
    while not engine.idle:
        step = engine.step()
        assert len({chosen.request for chosen in step}) == len(step)
        for chosen in step:
            found.setdefault(chosen.request, []).append(chosen)
    return found


def test_engine_gives_each_answer_its_tokens_when_more_ask_than_there_are_slots(engine: VllmEngine) -> None:
    for i in range(5):
        engine.add(sequence(i, [1, 10 * i], out=i + 1))
    found = run(engine)
    for i in range(5):
        assert [chosen.token for chosen in found[i]] == [10 * i + 1 + k for k in range(i + 1)]
        assert [chosen.finish for chosen in found[i]] == [None] * i + ["length"]


def test_engine_gives_one_token_at_a_time_when_the_server_sends_two(engine: VllmEngine) -> None:
    engine.add(sequence(1, [PAIRS, 20], out=5))
    engine.add(sequence(2, [PAIRS, 30], out=5, stop=32))
    found = run(engine)
    assert [(chosen.token, chosen.finish) for chosen in found[1]][-1] == (25, "length")
    assert [(chosen.token, chosen.finish) for chosen in found[2]] == [(31, None), (32, "stop")]


def test_server_is_asked_for_tokens_and_nothing_of_the_models_own_taste(
    engine: VllmEngine, server: FakeVllm
) -> None:
    sampling = Sampling(temperature_milli=700, top_p_milli=900, seed=(1 << 63) - 1)
    first = sequence(1, [1, 2, 3], out=1, stop=7, sampling=sampling)
    first.first_position, first.scope = 2, b"peer"
    engine.add(first)
    run(engine)
    (asked,) = server.asked
    assert asked["prompt"] == [1, 2, 3] and asked["stop_token_ids"] == [7]
    assert (asked["max_tokens"], asked["temperature"], asked["top_p"], asked["seed"]) == (1, 0.7, 0.9, 1)
    assert asked["ignore_eos"] and asked["return_token_ids"] and not asked["add_special_tokens"]


def test_prefixes_are_shared_within_one_scope_and_never_in_the_empty_one(
    engine: VllmEngine, server: FakeVllm
) -> None:
    for i, scope in enumerate([b"a", b"a", b"", b""]):
        asking = sequence(i, [1, 2])
        asking.scope = scope
        engine.add(asking)
        run(engine)
    first, second, third, fourth = (asked["cache_salt"] for asked in server.asked)
    assert first == second and len({first, third, fourth}) == 3 and third and fourth


def test_server_is_hung_up_on_when_an_answer_is_cancelled(engine: VllmEngine, server: FakeVllm) -> None:
    engine.add(sequence(1, [STALLS, 5]))
    while not engine.step():
        pass
    engine.cancel(1)
    assert engine.idle and server.hung_up.wait(10)
    engine.add(sequence(1, [1, 5]))
    assert [chosen.token for chosen in run(engine)[1]] == [6, 7, 8, 9]


@pytest.mark.parametrize("kind", [BREAKS, REFUSES])
def test_engine_fails_with_one_code_when_the_server_owes_tokens(engine: VllmEngine, kind: int) -> None:
    engine.add(sequence(1, [kind, 5]))
    with pytest.raises(ExecutionError) as raised:
        run(engine)
    assert raised.value.code == "worker_died"


def test_engine_fails_when_the_server_says_nothing(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_backend, "_SILENCE_S_MAX", 0.05)
    engine.add(sequence(1, [STALLS, 5]))
    with pytest.raises(ExecutionError) as raised:
        run(engine)
    assert raised.value.code == "worker_hung"


def test_engine_fails_when_nobody_listens(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as keeper:
        engine = VllmEngine(VllmServer(keeper, tmp_path / "none"), slots=2, context_tokens=64)
        engine.add(sequence(1, [1]))
        with pytest.raises(ExecutionError) as raised:
            engine.step()
    assert raised.value.code == "worker_died"


def test_step_returns_soon_when_nothing_arrives(engine: VllmEngine) -> None:
    engine.add(sequence(1, [STALLS, 5]))
    while not engine.step():
        pass
    started = time.monotonic()
    assert engine.step() == [] and time.monotonic() - started < 5
