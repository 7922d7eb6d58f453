"""The spec of a detached job: a type for each task, what it orders, and every fault of one at once.

The fields are those of ``/v1`` and ``/api/v1/tasks``, with ``task`` to tell them apart; nothing unknown is let
through, since a spec is written by hand. The commands check specs here before they send them.
"""

import difflib
import reprlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from node.api.bodies import (
    ChatRequest,
    ChatTurn,
    PromptText,
    SoukOptions,
    StopString,
    TextRequest,
    TokenCount,
    to_bad_request,
)
from node.api.errors import ApiError, bad_request
from node.api.orders import TOKENS_OUT_DEFAULT, item_order, to_order
from node.api.task_bodies import Asked, ClassifyRequest, EmbedRequest, ForwardRequest, VadRequest
from node.api.tasks import input_field, to_task_input
from node.market.order import Order
from protocol import limits
from protocol.task import GENERATE
from protocol.tasks.registry import CLASSIFY, EMBED, FORWARD, VAD


class GenerateSpec(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="task", tag=GENERATE):
    """Text: either ``messages`` or a raw ``prompt``, which gets no chat template."""

    messages: Annotated[list[ChatTurn], Meta(min_length=1, max_length=limits.CHAT_MESSAGES_MAX)] | None = None
    prompt: PromptText | None = None
    max_tokens: TokenCount = TOKENS_OUT_DEFAULT
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=limits.STOP_STRINGS_MAX)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    """None: one is drawn, another for each run."""


class EmbedSpec(EmbedRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="task", tag=EMBED):
    pass


class ClassifySpec(
    ClassifyRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="task", tag=CLASSIFY
):
    pass


class VadSpec(VadRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="task", tag=VAD):
    pass


class ForwardSpec(
    ForwardRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="task", tag=FORWARD
):
    pass


JobSpec: TypeAlias = GenerateSpec | EmbedSpec | ClassifySpec | VadSpec | ForwardSpec
FORMS: Final[dict[str, type[JobSpec]]] = {
    GENERATE: GenerateSpec,
    EMBED: EmbedSpec,
    CLASSIFY: ClassifySpec,
    VAD: VadSpec,
    FORWARD: ForwardSpec,
}
_spec = msgspec.json.Decoder(JobSpec)


def read_spec(data: bytes) -> JobSpec:
    """Return the spec in a body. Raises: ApiError (400, with the field at fault as ``param``)."""
    try:
        spec: JobSpec = _spec.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise to_bad_request(exc) from exc
    return spec


def task_of_spec(spec: JobSpec) -> str:
    """Return the name that a spec gives its task."""
    return str(type(spec).__struct_config__.tag)


def spec_order(spec: JobSpec, fresh_seed: int) -> Order:
    """Return what a spec orders; ``fresh_seed`` is taken where it brings none.

    Raises:
        ApiError: 400, it says too much or too little, or the protocol cannot carry it.
    """
    if not isinstance(spec, GenerateSpec):
        return item_order(spec.model, to_task_input(spec), spec.souk, param=input_field(spec))
    if (spec.messages is None) == (spec.prompt is None):
        got = "neither" if spec.prompt is None else "both"
        raise bad_request(f"expected either messages or a prompt, got {got}", param="messages")
    more: dict[str, Any] = {  # fields of one struct on their way into another with the same types
        name: getattr(spec, name)
        for name in ("model", "max_tokens", "temperature", "top_p", "stop", "seed", "souk")
    }
    if spec.messages is not None:
        return to_order(ChatRequest(messages=spec.messages, **more), fresh_seed)
    assert spec.prompt is not None
    return to_order(TextRequest(prompt=spec.prompt, **more), fresh_seed)


def spec_field(spec: JobSpec) -> str:
    """Return the field that is at fault when the input is too long."""
    if isinstance(spec, GenerateSpec):
        return "prompt" if spec.messages is None else "messages"
    return input_field(spec)


# Every fault at once.


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault of a spec; ``field`` is such as ``souk.max_price`` or ``messages[1].role``."""

    field: str
    message: str


def find_problems(raw: Mapping[str, object]) -> list[Problem]:
    """Return everything that is wrong with a decoded TOML or JSON table as a spec; of a good one, nothing."""
    task = raw.get("task")
    form = FORMS.get(task) if isinstance(task, str) else None
    if form is None:
        got = "nothing" if task is None else reprlib.repr(task)
        hint = _hint(str(task), FORMS) if task is not None else ""
        known = ", ".join(FORMS)
        return [Problem(field="task", message=f"expected one of {known}, got {got}{hint}")]
    table = {name: value for name, value in raw.items() if name != "task"}
    if found := list(_in_table(form, table, "")):
        return found
    try:
        spec_order(msgspec.convert(raw, form), 0)
    except ApiError as exc:
        return [Problem(field=exc.param or "", message=str(exc))]
    return []


def _in_table(form: type[msgspec.Struct], table: Mapping[str, object], path: str) -> Iterator[Problem]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(form)}
    if form.__struct_config__.forbid_unknown_fields:
        for name in table:
            if name not in fields:
                hint = _hint(name, fields) or _inside_souk(path, name)
                yield Problem(field=path + name, message=f"unknown key{hint}")
    for name, field in fields.items():
        if name in table:
            yield from _in_value(field.type, table[name], path + name)
        elif field.required:
            yield Problem(field=path + name, message="is missing")


def _in_value(kind: Any, value: object, path: str) -> Iterator[Problem]:  # a typing form
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        inner, found = _struct_in(kind), []
        if inner is not None and isinstance(value, dict):
            found = list(_in_table(inner, value, f"{path}."))
        elif inner is not None and isinstance(value, list):
            found = [it for i, item in enumerate(value) for it in _in_value(inner, item, f"{path}[{i}]")]
        yield from found or [Problem(field=path, message=_say(exc, kind, value))]


def _say(exc: msgspec.ValidationError, kind: Any, value: object) -> str:  # a typing form
    text = str(exc).partition(" - at `")[0].replace("`", "")
    if text.startswith("Invalid enum value"):
        text = f"expected one of {', '.join(_choices(kind))}"
    return f"{text[:1].lower()}{text[1:]} (got {reprlib.repr(value)})"


def _choices(kind: Any) -> tuple[str, ...]:  # a typing form
    if typing.get_origin(kind) is typing.Literal:
        return tuple(map(str, typing.get_args(kind)))
    return tuple(choice for part in typing.get_args(kind) for choice in _choices(part))


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:  # a typing form
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for part in typing.get_args(kind) if (found := _struct_in(part)) is not None), None)


def _inside_souk(path: str, name: str) -> str:
    return f" (did you mean souk.{name}?)" if not path and name in SoukOptions.__struct_fields__ else ""


def _hint(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
