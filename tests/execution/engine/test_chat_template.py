import threading
import time
from collections.abc import Callable

import pytest

from node.errors import JobRefusedError, ModelError
from node.execution.engine.chat_template import SOURCE_BYTES_MAX, ChatTemplate
from tests.execution.tiny_model import TEMPLATE

TALK = [{"role": "user", "content": "hello"}]


def grown(step: str) -> str:
    """A template that makes a text longer by ``step``, sixty times."""
    return "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}" + step + "{% endfor %}{{ n.x|length }}"


HOSTILE = {
    "power": "{{ 9**9**9 }}",
    "product": "{{ 'a' * 10000000000 }}",
    "list of a product": "{{ [1] * 10000000000 }}",
    "big numbers": "{% set n = namespace(x=9) %}{% for i in range(9) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "center": "{{ 'a'|center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill behind a name": "{% set f = 'a'.zfill %}{{ f(10000000000) }}",
    "indent": "{{ 'a\\na'|indent(10000000000) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "sum": grown("{% set n.x = n.x + n.x %}"),
    "tilde": grown("{% set n.x = n.x ~ n.x %}"),
    "block": grown("{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "replace filter": grown("{% set n.x = n.x|replace('a', 'aaaaaaaaaaaaaaaa') %}"),
    "replace method": grown("{% set n.x = n.x.replace('a', 'aaaaaaaaaaaaaaaa') %}"),
    "replace by name": grown("{% set n.x = n.x.replace('a', n.x) %}"),
    "join filter": grown("{% set n.x = [n.x, n.x]|join(n.x) %}"),
    "join method": grown("{% set n.x = n.x.join([n.x, n.x]) %}"),
    "map": grown("{% set n.x = [n.x]|map('replace', 'a', 'aaaaaaaaaaaaaaaa')|first %}"),
    "slices": "{% set x = 'a' * 3000000 %}{{ [" + "x[1:], " * 5000 + "]|length }}",
    "macro": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "length": "a" * (SOURCE_BYTES_MAX + 1),
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes by filter": "{{ messages|attr('__class__') }}",
    "globals": "{{ joiner.__init__.__globals__ }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "changes": "{{ messages.append(1) }}",
}
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def run(source: str) -> str:
    return ChatTemplate(source).render(messages=TALK, add_generation_prompt=True)


@pytest.mark.parametrize("case", HOSTILE)
def test_template_is_refused_by_a_typed_error_when_it_is_hostile(case: str) -> None:
    with pytest.raises((ModelError, JobRefusedError), match="chat template"):
        run(HOSTILE[case])


@pytest.mark.slow
def test_hostile_templates_are_refused_in_milliseconds(figure: Callable[[str, str], None]) -> None:
    took_s = {}
    for case, source in HOSTILE.items():
        begun_s = time.process_time()
        with pytest.raises((ModelError, JobRefusedError)):
            run(source)
        took_s[case] = time.process_time() - begun_s
    slowest = max(took_s, key=lambda case: took_s[case])
    rest = sorted(took_s.values())[: -len(took_s) // 10]
    figure(
        "hostile chat templates",
        f"{len(HOSTILE)} refused, 9 of 10 within {rest[-1] * 1000:.1f} ms of CPU, "
        f"the slowest ({slowest}) in {took_s[slowest] * 1000:.0f} ms",
    )
    assert took_s[slowest] < 2.0


@pytest.mark.slow
def test_template_that_runs_for_ever_is_stopped_in_whatever_thread_it_runs() -> None:
    faults: list[str] = []

    def load() -> None:
        try:
            run(ENDLESS)
        except ModelError as exc:
            faults.append(str(exc))

    thread = threading.Thread(target=load)
    begun_s = time.process_time()
    thread.start()
    thread.join()
    assert faults == ["chat template: it ran for more than 1 s; it is not run"]
    assert time.process_time() - begun_s < 3.0


@pytest.mark.slow
def test_template_that_runs_for_ever_for_one_conversation_refuses_that_one_alone() -> None:
    template = ChatTemplate("{% if messages|length > 1 %}" + ENDLESS + "{% endif %}{{ messages[0].content }}")
    with pytest.raises(JobRefusedError, match="was stopped: it ran for more than 1 s") as refused:
        template.render(messages=TALK * 2)
    assert refused.value.code == "input"
    assert template.render(messages=TALK) == "hello"


def test_usual_templates_render_as_before(figure: Callable[[str, str], None]) -> None:
    template = ChatTemplate(TEMPLATE)
    assert template.render(messages=TALK, add_generation_prompt=True) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    begun_s = time.thread_time()
    template.render(messages=TALK * 256, add_generation_prompt=True)
    figure("chat template of 256 messages", f"{(time.thread_time() - begun_s) * 1000:.1f} ms of CPU")


def test_what_templates_usually_do_is_let_through() -> None:
    source = (
        "{%- set n = namespace(first=true) -%}{%- set tools = [{'name': 'f', 'n': [1, 2]}] -%}"
        "{{ bos_token }}{% for m in messages %}{% if n.first %}{{ m['role'] | upper | trim }}"
        "{% set n.first = false %}{% endif %}"
        "{{ (m.content.split('e')[-1] ~ '!').strip() + ' ' * 2 }}{{ loop.index0 % 2 }}{% endfor %}"
        "{{ tools | tojson(indent=2) | length }}{{ tools | map(attribute='name') | join(', ') }}"
        "{{ 'a-b'.replace('-', '+') }}{{ messages[0:1] | length }}{{ x is defined }}"
        "{{ 'h' in messages[0].content }}"
    )
    text = ChatTemplate(source).render(messages=TALK, bos_token="<s>")
    assert text == "<s>USERllo!  062fa+b1FalseTrue"


def test_template_that_refuses_a_conversation_says_so() -> None:
    with pytest.raises(JobRefusedError, match="refuses this conversation: TemplateError"):
        ChatTemplate(TEMPLATE).render(messages=[*TALK, {"role": "system", "content": "x"}])


def test_template_that_does_not_parse_is_refused() -> None:
    with pytest.raises(ModelError, match="chat template: "):
        ChatTemplate("{% for %}")
