"""Renders a model's chat template, which somebody else wrote, within bounds on time, text and reach.

A template is a program. The sandbox keeps it from attributes it should not see; here it is also kept from running
for ever and from asking for gigabytes in one expression. ``text.py`` makes tokens of what comes out.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from node.errors import JobRefusedError, ModelError

SOURCE_BYTES_MAX: Final = 128 << 10
"""The longest known template has 30 KB."""
# A usual template takes 8 ms for 256 messages.
CPU_S_MAX: Final = 1.0
TEXT_CHARS_MAX: Final = 4 << 20
"""In one text or list; the prompt that may come in has a quarter of it."""
TOTAL_CHARS_MAX: Final = 256 << 20
"""In everything that one rendering makes: what it could keep at most."""
_LINES_BETWEEN_LOOKS: Final = 256
_INT_BITS_MAX: Final = 64
_INDENT_MAX: Final = 32
_DEPTH_MAX: Final = 4

# What templates are seen to use. Left out is what makes much of little: center, format, wordwrap, lipsum.
_FILTERS: Final = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "tojson", "trim", "unique", "upper",
)  # fmt: skip
_STR_METHODS: Final = frozenset((
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower",
    "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "title", "upper",
))  # fmt: skip


class _LimitError(Exception):
    """A rendering broke one of the bounds; the message says which."""


class ChatTemplate:
    """A compiled template. One rendering at a time."""

    def __init__(self, source: str) -> None:
        """Raises: ModelError: it is too long, does not parse, or breaks a bound with a first conversation."""
        if (size := len(source.encode())) > SOURCE_BYTES_MAX:
            raise ModelError(f"chat template: expected at most {SOURCE_BYTES_MAX} bytes, got {size}")
        self._environment = _Bounded()
        try:
            self._template = self._environment.from_string(source)
            self._render(messages=[{"role": "user", "content": "Hi."}], add_generation_prompt=True)
        except (_LimitError, RecursionError, MemoryError, SyntaxError) as exc:
            raise ModelError(f"chat template: {_why(exc)}; it is not run") from exc
        except TemplateError as exc:
            # It may want another conversation than this one; only what cannot be read is refused.
            if not hasattr(self, "_template"):
                raise ModelError(f"chat template: {exc}") from exc
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
            pass

    def render(self, **values: object) -> str:
        """Return the text of a conversation.

        Raises:
            JobRefusedError: ``input``: the template refuses the conversation, or breaks a bound with it.
        """
        try:
            return self._render(**values)
        # The sandbox raises what Python raises when a template adds a number to a list.
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as exc:
            raise JobRefusedError(
                f"the model's chat template refuses this conversation: {type(exc).__name__}", code="input"
            ) from exc
        except (_LimitError, RecursionError, MemoryError) as exc:
            raise JobRefusedError(f"the model's chat template was stopped: {_why(exc)}", code="input") from exc

    def _render(self, **values: object) -> str:
        self._environment.begin()
        deadline_s = time.thread_time() + CPU_S_MAX
        lines = 0

        def look(_frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:  # Any: as sys.settrace has it
            nonlocal lines
            lines += event == "line"
            if lines % _LINES_BETWEEN_LOOKS == 0 and time.thread_time() > deadline_s:
                raise _LimitError(f"it ran for more than {CPU_S_MAX:.0f} s")
            return look

        # Called for every line of this thread alone. A signal reaches the main thread only, which steps models.
        before = sys.gettrace()
        sys.settrace(look)
        try:
            return self._template.render(**values)
        finally:
            sys.settrace(before)


class _Generator(CodeGenerator):
    """Sends what Jinja does by itself, joining and slicing, through the environment as well."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.concat(map(str, (")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write(")))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.charge(")
        super().visit_Getitem(node, frame)
        self.write(")")


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget for everything that a template makes."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # With a context, no output is worked out while the template is compiled.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize)
        self._left = TOTAL_CHARS_MAX
        self.filters = {name: self._bounded_filter(name) for name in _FILTERS}
        namespace = self.globals["namespace"], self.globals["range"], self.globals["dict"], self.globals["joiner"]
        self.globals = dict(zip(("namespace", "range", "dict", "joiner"), namespace, strict=True))
        self.globals["raise_exception"] = _raise_template_error
        self.concat = self._concat  # type: ignore[method-assign]  # Jinja reads it as an attribute

    def begin(self) -> None:
        """Give one rendering its budget."""
        self._left = TOTAL_CHARS_MAX

    def charge(self, value: Any) -> Any:  # Any: whatever a template makes
        """Return ``value``, paid for."""
        self._pay(_chars(value))
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # Any: as the base has it
        match operator:
            case "**":
                raise _LimitError("it raises to a power")
            case "%" if isinstance(left, str):
                raise _LimitError("it formats with %")
            case "*":
                self._pay(_product_chars(left, right))
        return self.charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as the base
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self._str_arguments(owner, __obj.__name__, args)
        return __self.charge(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # Any: as the base has it
        """Refuse ``str.format``, which the base lets through: a width in it asks for any amount of text."""
        if super().wrap_str_format(value) is not None:
            raise _LimitError("it calls str.format")
        return None

    def _str_arguments(self, text: str, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if method not in _STR_METHODS:
            raise _LimitError(f"it calls str.{method}")
        if method == "join" and args:
            args = (list(args[0]), *args[1:])
            self._pay(_chars(args[0]) + len(text) * len(args[0]))
        if method == "replace":
            self._pay(_replaced_chars(text, *args[:2]))
        return args

    def _bounded_filter(self, name: str) -> Callable[..., Any]:  # Any: filters take and give anything
        found = super().__getattribute__("filters")[name]

        @functools.wraps(found)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            if name in ("indent", "tojson"):
                _refuse_wide(args, kwargs)
            if name == "replace":
                self._pay(_replaced_chars(*(str(it) for it in (*args, *kwargs.values()) if isinstance(it, str))))
            if name == "join":
                at = next(i for i, it in enumerate(args) if not isinstance(it, nodes.EvalContext))
                args = (*args[:at], list(args[at]), *args[at + 1 :])
                glue = max(
                    (len(it) for it in (*args[at + 1 :], *kwargs.values()) if isinstance(it, str)), default=0
                )
                self._pay(_chars(args[at]) + glue * len(args[at]))
            return self.charge(found(*args, **kwargs))

        return bounded

    def _concat(self, pieces: Iterable[str]) -> str:
        kept = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > TEXT_CHARS_MAX:
                raise _LimitError(f"it makes a text of more than {TEXT_CHARS_MAX} characters")
            self._pay(len(piece))
            kept.append(piece)
        return "".join(kept)

    def _pay(self, chars: int) -> None:
        self._left -= chars
        if chars > TEXT_CHARS_MAX or self._left < 0:
            raise _LimitError(f"it makes a text of more than {TEXT_CHARS_MAX} characters, or too many")


@pass_context
def _finalize(_context: Context, value: Any) -> Any:  # Any: what an expression gives
    return value


def _chars(value: object, depth: int = _DEPTH_MAX) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return len(value) + (sum(_chars(it, depth - 1) for it in value) if depth else 0)
    if isinstance(value, int) and value.bit_length() > _INT_BITS_MAX:
        raise _LimitError(f"it makes a number of more than {_INT_BITS_MAX} bits")
    return 0


def _product_chars(left: object, right: object) -> int:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int):
            return max(0, other) * _chars(one)
    return 0


def _replaced_chars(text: str, old: str = "", new: str = "", *_more: object) -> int:
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _refuse_wide(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args[1:], *kwargs.values()):
        wide = value if isinstance(value, int) else len(value) if isinstance(value, str) else 0
        if wide > _INDENT_MAX:
            raise _LimitError(f"it indents by more than {_INDENT_MAX}")


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


def _why(exc: BaseException) -> str:
    return str(exc) if isinstance(exc, _LimitError) else type(exc).__name__
