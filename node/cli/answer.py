"""One answer, streamed: the request's body, the phases as a person reads them, and what came in the end."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from node.cli.client import ApiError, Comment, Daemon, Data
from node.cli.exits import CliError
from node.cli.output import duration, harmless, money, short

PHASE_MARK = "souk "


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a finished stream added up to."""

    text: str
    finish_reason: str | None
    usage: Mapping[str, Any]
    """OpenAI's block: ``prompt_tokens``, ``completion_tokens``, ``total_tokens``."""
    souk: Mapping[str, Any]
    """Our block: ``peer``, ``contract_id``, ``receipt_id``, ``cost_microcredits``, times."""

    def as_json(self) -> dict[str, object]:
        return {
            "schema": 1,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": dict(self.usage),
            "souk": dict(self.souk),
        }

    def timings(self) -> str:
        """Return who answered, for how much and how fast, in one line."""
        tokens = self.usage.get("completion_tokens") or 0
        first_ms, total_ms = self.souk.get("first_token_ms") or 0, self.souk.get("duration_ms") or 0
        decode_s = (total_ms - first_ms) / 1000
        # The first token belongs to the prefill, so the decode made one less.
        speed = f" · {(tokens - 1) / decode_s:.1f} tokens/s" if decode_s > 0 and tokens > 1 else ""
        return (
            f"peer {short(self.souk.get('peer'))} · {money(self.souk.get('cost_microcredits'))} · "
            f"{self.usage.get('prompt_tokens', 0)} tokens in, {tokens} out · "
            f"first token {duration(first_ms / 1000)}{speed} · total {duration(total_ms / 1000)}"
        )


def stream_answer(
    daemon: Daemon,
    body: Mapping[str, Any],
    *,
    on_text: Callable[[str], None],
    on_phase: Callable[[Mapping[str, Any]], None],
) -> Answer:
    """Ask and return the whole answer; ``on_text`` gets its pieces as they come.

    However this ends, the connection is closed, which ends the job at the peer.

    Raises:
        CliError: the daemon or the market refused, or the stream broke off.
    """
    pieces: list[str] = []
    finish: str | None = None
    usage: Mapping[str, Any] = {}
    souk: Mapping[str, Any] = {}
    wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with closing(daemon.stream("/v1/chat/completions", wanted)) as events:
        for event in events:
            match event:
                case Comment(text=text):
                    if phase := _phase(text):
                        on_phase(phase)
                case Data(value=chunk):
                    usage, souk = chunk.get("usage") or usage, chunk.get("souk") or souk
                    for choice in chunk.get("choices") or ():
                        finish = choice.get("finish_reason") or finish
                        if piece := (choice.get("delta") or {}).get("content"):
                            pieces.append(piece)
                            on_text(piece)
    if finish is None:
        raise CliError("the daemon ended the stream before the answer was complete")
    return Answer(text="".join(pieces), finish_reason=finish, usage=usage, souk=souk)


def phase_text(phase: Mapping[str, Any]) -> str:
    """Return what a person is told about one phase."""
    return harmless(_phase_text(phase))


def _phase_text(phase: Mapping[str, Any]) -> str:
    match phase.get("phase"):
        case "asking":
            return f"asking {phase.get('peers')} {'peer' if phase.get('peers') == 1 else 'peers'} …"
        case "quoted":
            return f"{short(phase.get('peer'))} asks at most {money(phase.get('price_max'))}"
        case "passed_over":
            return f"{short(phase.get('peer'))} passed over: {phase.get('code')}, {phase.get('message')}"
        case "contracted":
            contract = phase.get("contract_id")
            how = f"contract {short(contract)}" if contract else "on this node"
            bound = f", at most {money(phase.get('price_max'))}" if contract else ""
            return f"{how} with {short(phase.get('peer'))}, {phase.get('tokens_in')} tokens in{bound}"
        case other:
            return str(other)


def refusal_text(error: ApiError) -> str:
    """Return an error of the market with what a person needs next: the models there are, or each peer's reason."""
    refusals, available = error.details.get("refusals"), error.details.get("available")
    if refusals:
        # The daemon's message has the reasons in one line, for programs; a person gets a line for each.
        lines = [str(error).partition(":")[0]]
        lines += [f"  {short(one.get('peer'))}  {one.get('code')}: {one.get('message')}" for one in refusals]
    else:
        lines = [str(error)]
        if available and not any(name in str(error) for name in available):
            lines.append(f"  the network has: {', '.join(available)}")
    return "\n".join(harmless(line) for line in lines)


def _phase(comment: str) -> Mapping[str, Any] | None:
    if not comment.startswith(PHASE_MARK):
        return None
    try:
        value = json.loads(comment.removeprefix(PHASE_MARK))
    except ValueError:
        return None  # a comment is a courtesy: an answer is not lost for it
    return value if isinstance(value, dict) else None
