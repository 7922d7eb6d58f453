"""How far honest runs of one model are apart in bf16, and whether an answer lies within that.

Two providers round differently as soon as one reads in a prompt what the other has generated: products of other
shapes. So their logits differ a little, and where the two best tokens are that close, so may their choice. The
honest margin is the largest change of the best token's lead over the second that this makes, measured on answers
that nobody disturbed: once generated token by token, once read as a prompt.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from node.execution.engine.attention import StepAttention
from node.execution.engine.engine import Engine
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.scheduler import Plan, Sequence
from node.execution.engine.text import load_codec
from node.execution.shape import read_shape
from protocol.task import ChatMessage, Sampling

CPU = torch.device("cpu")
PREFILL_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A rendered prompt and the answer's tokens."""

    prompt: list[int]
    tokens: list[int]


class Referee:
    """One undisturbed model in the providers' dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder, self._dtype = folder, dtype

    def load(self) -> None:
        """Read model and tokenizer; before anything else."""
        # As the providers' workers: the sums of one thread, and none that waits for another on a busy machine.
        torch.set_num_threads(1)
        self._model: Llama = load_llama(self._folder, read_shape(self._folder), device=CPU, dtype=self._dtype)
        self._codec = load_codec(self._folder)
        # Some texts are two tokens' (of the chat model's, a blank is token 216 and token 48667): merging makes the
        # first.
        self._token_of: dict[str, int] = {}
        for token in range(self._codec.vocabulary):
            self._token_of.setdefault(self._codec.stream(()).push(token), token)

    def read(self, prompt: str, pieces: list[str]) -> Answer:
        """Return the tokens of an answer that came one token a piece, or several where a machine fell behind."""
        messages = [ChatMessage(role="user", content=prompt)]
        tokens = [token for text in pieces for token in self._tokens_of(text)]
        return Answer(prompt=self._codec.encode(messages, ""), tokens=tokens)

    def _tokens_of(self, text: str) -> list[int]:
        token = self._token_of.get(text)
        # "ighter," is two tokens that were sent together. Another cut than the model's would show as a margin.
        return self._codec.encode((), text) if token is None else [token]

    def generate(self, prompt: str, count: int) -> Answer:
        """Return the greedy answer that a provider with this model gives."""
        asked = self.read(prompt, [])
        engine = Engine(
            self._model, slots=1, context_tokens=len(asked.prompt) + count, prefill_tokens=PREFILL_TOKENS
        )
        sequence = self._sequence(list(asked.prompt), read=len(asked.prompt), tokens_out_max=count)
        engine.add(sequence)
        while not engine.idle:
            engine.step()
        return Answer(prompt=asked.prompt, tokens=sequence.tokens[len(asked.prompt) :])

    def decode(self, answer: Answer) -> Tensor:
        """Return the logits (T, V) of each token as who generates the answer has them."""
        return self._logits(answer, read=len(answer.prompt))

    def prefill(self, answer: Answer) -> Tensor:
        """Return the logits (T, V) of each token as who reads prompt and answer has them."""
        return self._logits(answer, read=len(answer.prompt) + len(answer.tokens))

    def honest_margin(self, answers: list[Answer]) -> float:
        """Return how much the lead of the best token changes between the two ways, at most."""
        most = 0.0
        for answer in answers:
            generated, read = self.decode(answer), self.prefill(answer)
            best = generated.topk(2).indices
            change = leads(generated, best) - leads(read, best)
            most = max(most, float(change.abs().max()))
        return most

    def _logits(self, answer: Answer, *, read: int) -> Tensor:
        tokens = answer.prompt + answer.tokens
        model = self._model
        cache = KvCache(model.shape, slots=1, context_tokens=len(tokens), dtype=self._dtype, device=CPU)
        sequence = self._sequence(tokens, read=read)
        sequence.slot = 0
        rows = []
        with torch.inference_mode():
            while (at := sequence.cached) < len(tokens):
                count = min(read - at, PREFILL_TOKENS) if at < read else 1
                chunks, decodes = (((sequence, count),), ()) if at < read else ((), (sequence,))
                plan = Plan(decodes=decodes, chunks=chunks)
                attention = StepAttention(plan, cache, CPU)
                positions = torch.arange(at, at + count)
                rows.append(model.forward(torch.tensor(tokens[at : at + count]), positions, attention.attend))
                sequence.cached += count
            # The row before a token predicts it.
            return model.logits(torch.cat(rows)[len(answer.prompt) - 1 : -1])

    def _sequence(self, tokens: list[int], *, read: int, tokens_out_max: int = 1) -> Sequence:
        return Sequence(
            request=0,
            tokens=tokens,
            prompt_tokens=read,
            tokens_out_max=tokens_out_max,
            sampling=Sampling(),
            stop_tokens=frozenset(),
        )


def leads(logits: Tensor, best: Tensor) -> Tensor:
    """Return (T,): the lead of the first of two tokens (T, 2) over the second."""
    pair = logits.gather(1, best)
    return pair[:, 0] - pair[:, 1]


def shortfalls(logits: Tensor, tokens: list[int]) -> list[float]:
    """Return how far each token is behind the best one."""
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    found: list[float] = (logits.max(-1).values - chosen).tolist()
    return found
