"""One loaded model inside a worker: prompts that are held, jobs that run, and their text.

Joins the engine, which knows only tokens, with the codec, which knows only text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from node.errors import JobRefusedError
from node.execution.engine.backend import Backend, load_backend
from node.execution.engine.engine import Chosen
from node.execution.engine.fingerprint import GROUP_BYTES, GROUP_TOKENS, Fingerprinter
from node.execution.engine.measure import decode_tokens_per_s_milli
from node.execution.engine.scheduler import Sequence
from node.execution.engine.score import ScoreTask, Verdict
from node.execution.engine.text import TextCodec, TextStream, load_codec
from node.execution.frames import FINGERPRINT_BYTES_MAX, Load, Prepare, Score, Start, StepPiece
from protocol.task import TOKEN_BYTES, FinishReason, Sampling, unpack_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPrompt:
    """A tokenised prompt on its way to the engine."""

    request: int
    model: bytes
    tokens: list[int]
    """The rendered conversation, then the answer tokens that came with it."""
    held: list[int]
    stop: tuple[str, ...]
    scope: bytes

    @property
    def units_in(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class HeldScore:
    """A tokenised check on its way to the model."""

    model: bytes
    task: ScoreTask


class ServedModel:
    """A model with its engine. ``prepare`` may run in another thread than the rest: it only reads."""

    def __init__(self, backend: Backend, codec: TextCodec, load: Load) -> None:
        self.model, self.engine, self._scores = backend.model, backend.engine, backend.scores
        self._codec, self._load = codec, load
        self.kernels, self.close = backend.kernels, backend.close
        self._stop_tokens = codec.stop_tokens(self.model.shape.eos_tokens | _generation_eos(Path(load.folder)))
        self._streams: dict[int, TextStream] = {}
        self._fingerprints: dict[int, Fingerprinter] = {}

    @property
    def idle(self) -> bool:
        """Neither a job nor a check has anything to do."""
        return self.engine.idle and (self._scores is None or self._scores.idle)

    @property
    def has_jobs(self) -> bool:
        """Checks, which take what time jobs leave, do not count."""
        return not self.engine.idle

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def measure(self) -> int:
        """Return thousandths of tokens per second of one sequence; nothing else may run."""
        return decode_tokens_per_s_milli(self.model, self.engine)

    def prepare(self, frame: Prepare) -> HeldPrompt:
        """Render and tokenise.

        Raises:
            JobRefusedError: ``input``, or ``context_exceeded`` with the limit in the message.
        """
        self._refuse_hopeless(frame)
        held = unpack_tokens(frame.held)
        tokens = self._codec.encode(frame.messages, frame.prompt) + held
        limit = self._load.context_tokens
        if len(tokens) + frame.tokens_out_max > limit:
            raise JobRefusedError(
                f"the prompt has {len(tokens)} tokens and the answer may have {frame.tokens_out_max}: together "
                f"{len(tokens) + frame.tokens_out_max}, this model is served with a context of {limit}",
                code="context_exceeded",
                tokens_out_max=limit - len(tokens) if len(tokens) < limit else None,
                tokens_in_max=limit - frame.tokens_out_max if frame.tokens_out_max < limit else None,
            )
        if max(tokens) >= self.model.shape.vocabulary:
            raise JobRefusedError("the prompt has tokens that the model does not know", code="input")
        if self._stop_tokens.intersection(held) or self._stream_after(held, frame.stop).stopped:
            raise JobRefusedError("the answer that was brought along is complete", code="input")
        return HeldPrompt(
            request=frame.request, model=frame.model, tokens=tokens, held=held, stop=frame.stop, scope=frame.scope
        )

    def prepare_score(self, frame: Score) -> ScoreTask:
        """Render and tokenise what is to be checked.

        Raises:
            JobRefusedError: as ``prepare``, or there is no answer, or the fingerprint is of another length.
        """
        if self._scores is None:
            raise JobRefusedError(
                f"{self.kernels} computes this model here, and re-checks no answers", code="input"
            )
        self._refuse_hopeless(frame)
        held, answer = unpack_tokens(frame.held), unpack_tokens(frame.answer)
        tokens = self._codec.encode(frame.messages, frame.prompt) + held
        limit = self._load.context_tokens
        if len(tokens) + len(answer) > limit:
            raise JobRefusedError(
                f"prompt and answer have {len(tokens) + len(answer)} tokens, this model is served with a context "
                f"of {limit}",
                code="context_exceeded",
            )
        if not answer or max(*tokens, *answer) >= self.model.shape.vocabulary:
            raise JobRefusedError("expected an answer, and tokens that the model knows", code="input")
        whole = len(answer) // GROUP_TOKENS * GROUP_BYTES
        # Of a long answer the beginning has one; one that was cancelled or failed has none: it comes with the end.
        if len(frame.fingerprint) % GROUP_BYTES or len(frame.fingerprint) > whole:
            raise JobRefusedError(
                f"expected {GROUP_BYTES} bytes of fingerprint for every {GROUP_TOKENS} tokens of an answer of "
                f"{len(answer)}, or of its beginning, got {len(frame.fingerprint)} bytes",
                code="input",
            )
        return ScoreTask(
            request=frame.request,
            prompt=tokens,
            answer=answer,
            sampling=_sampling(frame),
            first_position=len(held),
            fingerprint=frame.fingerprint,
        )

    def score(self, task: ScoreTask) -> None:
        """Queue a check behind the others of this model."""
        assert self._scores is not None
        self._scores.waiting.append(task)

    def step_score(self, *, alone: bool) -> Verdict | None:
        """Read on in the oldest check; ``alone`` when no job of this device runs."""
        return None if self._scores is None else self._scores.step(alone=alone)

    def _refuse_hopeless(self, frame: Prepare | Score) -> None:
        # Before tokenising: 1 MiB takes up to 3 s, in which nobody else's prompt is read, and costs its sender
        # nothing.
        size = len(frame.prompt.encode()) + sum(len(message.content.encode()) for message in frame.messages)
        limit = self._load.context_tokens
        beside = limit - (frame.tokens_out_max if isinstance(frame, Prepare) else len(frame.answer) // TOKEN_BYTES)
        if size > limit * self._codec.token_bytes_max:
            raise JobRefusedError(
                f"the prompt has {size} bytes, more than {limit} tokens can hold: this model is served with a "
                f"context of {limit}",
                code="context_exceeded",
                tokens_in_max=beside if beside > 0 else None,
            )

    def _stream_after(self, held: list[int], stop: tuple[str, ...]) -> TextStream:
        """Return a decoder that has said what those tokens say: text depends on nothing but tokens and stops."""
        stream = self._codec.stream(stop)
        for token in held:
            stream.push(token)
        return stream

    def start(self, held: HeldPrompt, frame: Start) -> None:
        """Queue a held prompt; ``tokens_out_max`` is at most what was prepared for."""
        self._streams[held.request] = self._stream_after(held.held, held.stop)
        self._fingerprints[held.request] = Fingerprinter(FINGERPRINT_BYTES_MAX)
        self.engine.add(
            Sequence(
                request=held.request,
                tokens=held.tokens,
                prompt_tokens=len(held.tokens),
                tokens_out_max=frame.tokens_out_max,
                sampling=_sampling(frame),
                stop_tokens=self._stop_tokens,
                first_position=len(held.held),
                scope=held.scope,
            )
        )

    def cancel(self, request: int) -> None:
        """Free the slot of ``request``; does nothing when it is unknown."""
        if self._streams.pop(request, None) is not None:
            del self._fingerprints[request]
            self.engine.cancel(request)
        if self._scores is not None:
            self._scores.cancel(request)

    def step(self) -> list[StepPiece]:
        """Run one pass of the engine and return what it gave each job."""
        return [self._piece(chosen) for chosen in self.engine.step()]

    def _piece(self, chosen: Chosen) -> StepPiece:
        stream, fingerprint = self._streams[chosen.request], b""
        self._fingerprints[chosen.request].add((chosen.mark,))
        finish: FinishReason | None = chosen.finish
        text = "" if finish == "stop" else stream.push(chosen.token)
        if stream.stopped and finish is None:
            self.engine.cancel(chosen.request)
        if stream.stopped:
            finish = "stop"
        if finish is not None:
            text += stream.end()
            del self._streams[chosen.request]
            fingerprint = self._fingerprints.pop(chosen.request).found()
        return StepPiece(
            request=chosen.request, tokens=(chosen.token,), text=text, finish=finish, fingerprint=fingerprint
        )


def _sampling(frame: Start | Score) -> Sampling:
    return Sampling(temperature_milli=frame.temperature_milli, top_p_milli=frame.top_p_milli, seed=frame.seed)


def load_served(load: Load, device: torch.device) -> ServedModel:
    """Load weights, tokenizer and cache as ``load`` says.

    Raises:
        ModelError, KeyError, ValueError, OSError: the files are not a model that the engine runs.
    """
    backend = load_backend(load, device)
    return ServedModel(backend, load_codec(Path(load.folder)), load)


def _generation_eos(folder: Path) -> frozenset[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return frozenset()
    settings: dict[str, Any] = json.loads(path.read_bytes())  # Any: the one use below checks its type
    value = settings.get("eos_token_id")
    return frozenset(token for token in (value if isinstance(value, list) else [value]) if type(token) is int)
