"""The same model without a network, a daemon or a worker process: the engine called from here.

The reference of the mesh tax: what a user would get who loads the model himself. Imports torch, so only the
benchmark that needs it imports this. CPU only, as the testnet is.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.execution.device_worker import choose_dtype
from node.execution.engine.served import ServedModel, load_served
from node.execution.engine.torch_device import describe_device, open_device
from node.execution.frames import Load, Prepare, Start
from node.models.store import ModelStore
from protocol.task import ChatMessage
from scripts.bench.local_net import Question, TimedAnswer

CONTEXT_TOKENS = 2048
PREFILL_TOKENS = 128
"""Of one pass, as ``node.execution.device_worker`` has it for a CPU: the sums must be the same."""


class EngineAlone:
    """One loaded model; ``ask`` runs one question to its end."""

    def __init__(self, served: ServedModel, *, model_id: bytes, dtype: str) -> None:
        self._served, self._model_id, self.dtype = served, model_id, dtype
        self._requests = 0

    def ask(self, question: Question) -> TimedAnswer:
        """Render, tokenise, decode and turn into text, step by step."""
        self._requests += 1
        times: list[float] = []
        texts: list[str] = []
        tokens = 0
        began = time.perf_counter()
        self._start(question)
        while not self._served.engine.idle:
            for piece in self._served.step():
                tokens += len(piece.tokens)
                if piece.text:
                    texts.append(piece.text)
                    times.append(time.perf_counter() - began)
        end_s = time.perf_counter() - began
        return TimedAnswer(text="".join(texts), tokens=tokens, first_s=times[0], last_s=times[-1], end_s=end_s)

    def _start(self, question: Question) -> None:
        held = self._served.prepare(
            Prepare(
                request=self._requests,
                model=self._model_id,
                messages=(ChatMessage(role="user", content=question.text),),
                prompt="",
                stop=(),
                tokens_out_max=question.tokens_max,
            )
        )
        start = Start(
            request=self._requests,
            temperature_milli=round(question.temperature * 1000),
            top_p_milli=1000,
            seed=question.seed,
            tokens_out_max=question.tokens_max,
        )
        self._served.start(held, start)


def load_engine(config: Mapping[str, Any], model: str) -> EngineAlone:  # a provider's TOML
    """Load ``model`` from the provider's store with the provider's threads, slots and dtype."""
    worker = config["worker"]
    device = open_device("cpu", worker["threads"])
    stored = ModelStore(Path(config["models"]["dir"])).find(model)
    dtype = choose_dtype(worker.get("dtype", "auto"), describe_device(device).dtypes)
    load = Load(
        request=0,
        model=stored.model_id,
        folder=str(stored.folder),
        dtype=dtype,
        slots=worker["slots"],
        context_tokens=CONTEXT_TOKENS,
        prefill_tokens=PREFILL_TOKENS,
    )
    return EngineAlone(load_served(load, device), model_id=stored.model_id, dtype=dtype)
