"""The same model without a network, a daemon or a worker process: the engine called from here.

The reference of the mesh tax: what a user would get who loads the model himself. Imports torch, so only the
benchmark that needs it imports this. CPU only, as the testnet is.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from node.execution.engine.backend import TORCH_DTYPES
from node.execution.engine.engine import Engine
from node.execution.engine.llama import load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.engine.text import TextCodec, load_codec
from node.execution.engine.torch_device import describe_device, open_device
from node.execution.model_fit import choose_dtype
from node.execution.shape import read_shape
from node.models.store import ModelStore
from protocol.task import ChatMessage, Sampling
from scripts.bench.local_net import Question, TimedAnswer

CONTEXT_TOKENS: Final = 2048
PREFILL_TOKENS: Final = 512
"""Of one pass, as ``node.execution.loading`` has it for a CPU: the sums must be the same."""


class EngineAlone:
    """One loaded model; ``ask`` runs one question to its end."""

    def __init__(self, engine: Engine, codec: TextCodec, *, stop_tokens: frozenset[int], dtype: str) -> None:
        self._engine, self._codec, self._stop_tokens, self.dtype = engine, codec, stop_tokens, dtype
        self._requests = 0

    def ask(self, question: Question) -> TimedAnswer:
        """Render, tokenise, decode and turn into text, step by step."""
        began = time.perf_counter()
        sequence = self._sequence(question)
        stream = self._codec.stream(())
        texts: list[str] = []
        times: list[float] = []
        self._engine.add(sequence)
        while not self._engine.idle:
            for chosen in self._engine.step():
                # The token that ends a turn has no text.
                text = "" if chosen.finish == "stop" else stream.push(chosen.token)
                text += stream.end() if chosen.finish else ""
                if text:
                    texts.append(text)
                    times.append(time.perf_counter() - began)
        return TimedAnswer(
            text="".join(texts),
            tokens=sequence.answer_tokens,
            first_s=times[0],
            last_s=times[-1],
            end_s=time.perf_counter() - began,
        )

    def _sequence(self, question: Question) -> Sequence:
        self._requests += 1
        tokens = self._codec.encode((ChatMessage(role="user", content=question.text),), "")
        return Sequence(
            request=self._requests,
            tokens=tokens,
            prompt_tokens=len(tokens),
            tokens_out_max=question.tokens_max,
            sampling=Sampling(temperature_milli=round(question.temperature * 1000), seed=question.seed),
            stop_tokens=self._stop_tokens,
        )


def load_engine(config: Mapping[str, Any], model: str) -> EngineAlone:  # Any: a provider's TOML
    """Load ``model`` from the provider's store with the provider's threads, slots and dtype."""
    worker = config["worker"]
    device = open_device("cpu", worker["threads"])
    dtype = choose_dtype(worker.get("dtype", "auto"), describe_device(device).dtypes)
    folder = ModelStore(Path(config["models"]["dir"])).find(model).folder
    shape, codec = read_shape(folder), load_codec(folder)
    llama = load_llama(folder, shape, device=device, dtype=TORCH_DTYPES[dtype])
    engine = Engine(llama, slots=worker["slots"], context_tokens=CONTEXT_TOKENS, prefill_tokens=PREFILL_TOKENS)
    return EngineAlone(engine, codec, stop_tokens=codec.stop_tokens(shape.eos_tokens), dtype=dtype)
