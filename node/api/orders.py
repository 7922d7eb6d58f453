"""From OpenAI's words to the market's: a request becomes an order."""

from typing import Final, Literal

from node.api.bodies import ChatRequest, ChatTurn, SoukOptions, TextRequest
from node.api.errors import bad_request
from node.market.order import DEADLINE_S, Order
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted
from protocol.task import ChatMessage, GenerateInput, Sampling
from protocol.tasks.registry import ItemInput, encode_task_input
from protocol.units import Microcredits, PeerId

TOKENS_OUT_DEFAULT: Final = 512
"""OpenAI's default is the rest of the context: here that would reserve, and bound the price by, far too much."""
TEXT_TOKENS_OUT_DEFAULT: Final = 16
"""OpenAI's own for raw prompts."""

Place = Literal["any", "local", "remote"]
_PLACES: Final[dict[str, Place]] = {"any": "any", "local": "local", "remote": "remote"}

_SEED_MASK: Final = (1 << 63) - 1


def to_order(request: ChatRequest | TextRequest, fresh_seed: int) -> Order:
    """Return the order; ``fresh_seed`` is taken when the client gave none. Defaults are OpenAI's.

    Raises:
        ApiError: 400, the protocol cannot carry it.
    """
    options = request.souk
    price = options.max_price
    order = Order(
        model=request.model,
        task_input=_task_input(request),
        sampling=Sampling(
            temperature_milli=_milli(request.temperature),
            # The wire has no top_p of 0; a thousandth keeps the likeliest token, as 0 does.
            top_p_milli=max(1, _milli(request.top_p)),
            seed=fresh_seed if request.seed is None else request.seed & _SEED_MASK,
        ),
        tokens_out_max=_tokens_out_max(request),
        where=place_of(options.on),
        path=options.path,
        price_max_microcredits=None if price is None else Microcredits(price),
        deadline_s=DEADLINE_S if options.deadline_s is None else options.deadline_s,
    )
    try:
        encode_task_input(order.task_input)
    except LocalProtocolError as exc:
        param = "messages" if isinstance(request, ChatRequest) else "prompt"
        raise bad_request(
            f"the {param} cannot travel: {exc}", param=param, code="context_length_exceeded"
        ) from exc
    return order


def item_order(model: str, task_input: ItemInput, options: SoukOptions, *, param: str) -> Order:
    """Return the order of a job that makes no text; ``param`` names the field that the input came in.

    Raises:
        ApiError: 400, the protocol cannot carry it.
    """
    price = options.max_price
    order = Order(
        model=model,
        task_input=task_input,
        sampling=Sampling(),
        tokens_out_max=task_input.units_out,
        where=place_of(options.on),
        path=options.path,
        price_max_microcredits=None if price is None else Microcredits(price),
        deadline_s=DEADLINE_S if options.deadline_s is None else options.deadline_s,
    )
    try:
        encode_task_input(task_input)
    except LocalProtocolError as exc:
        raise bad_request(f"the input cannot travel: {exc}", param=param, code="context_length_exceeded") from exc
    return order


def _tokens_out_max(request: ChatRequest | TextRequest) -> int:
    if isinstance(request, TextRequest):
        return request.max_tokens or TEXT_TOKENS_OUT_DEFAULT
    return request.max_completion_tokens or request.max_tokens or TOKENS_OUT_DEFAULT


def _task_input(request: ChatRequest | TextRequest) -> GenerateInput:
    given = request.stop or ()
    stop = (given,) if isinstance(given, str) else tuple(given)
    if isinstance(request, TextRequest):
        prompt = request.prompt
        return GenerateInput(prompt=prompt if isinstance(prompt, str) else prompt[0], stop=stop)
    messages = tuple(
        ChatMessage(role="system" if turn.role == "developer" else turn.role, content=_text(turn))
        for turn in request.messages
    )
    return GenerateInput(messages=messages, stop=stop)


def _text(turn: ChatTurn) -> str:
    if isinstance(turn.content, str):
        return turn.content
    return "\n".join(part.text for part in turn.content)


def _milli(value: float | None) -> int:
    return 1000 if value is None else round(value * 1000)


def place_of(on: str) -> Place | PeerId:
    """Return where an order may run. Raises: ApiError (400)."""
    if on in _PLACES:
        return _PLACES[on]
    try:
        return peer_id_from_text_untrusted(on)
    except RemoteProtocolError as exc:
        raise bad_request(f"expected any, local, remote or a peer id (12D3KooW…): {exc}", param="souk.on") from exc
