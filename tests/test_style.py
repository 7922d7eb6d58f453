"""Checks, by syntax tree, of the rules that style and architecture promise and no other tool looks at.

Every rule is a function from one parsed module to its faults; a failing test lists them as
``file:line: what is wrong``.
Layers between rooms are import-linter's (``pyproject.toml``); formatting and plain mistakes are ruff's.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 6
NAMES_REFUSED = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
# What would give pure values a clock, a file, a socket, a thread or an entropy source of their own.
IMPURE = {
    "asyncio", "datetime", "io", "logging", "multiprocessing", "node", "os", "pathlib", "random", "secrets",
    "shutil",
    "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading", "time", "torch", "trio", "uuid",
}  # fmt: skip
UNSAFE_LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
# Tests of the whole tree have no single module to mirror.
TESTS_OF_THE_TREE = {"test_style", "test_scripts", "test_docs", "test_configs", "test_dockerfile"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    path: str
    """Relative to the root, with slashes."""
    text: str
    tree: ast.Module

    def within(self, *folders: str) -> bool:
        return any(self.path.startswith(folder + "/") for folder in folders)

    def line(self, number: int) -> str:
        return self.text.splitlines()[number - 1]

    def functions(self) -> Iterator[Function]:
        return (n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield the line and the dotted name of everything imported, also inside functions."""
        for statement in ast.walk(self.tree):
            if isinstance(statement, ast.Import):
                yield from ((statement.lineno, alias.name) for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                yield from ((statement.lineno, f"{statement.module}.{alias.name}") for alias in statement.names)


Fault = tuple[int, str]
Rule = Callable[[Module], Iterator[Fault]]
SOURCE_RULES: list[Rule] = []
TEST_RULES: list[Rule] = []


def rule_of_source(rule: Rule) -> Rule:
    SOURCE_RULES.append(rule)
    return rule


def rule_of_tests(rule: Rule) -> Rule:
    TEST_RULES.append(rule)
    return rule


def load(*folders: str) -> list[Module]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [parse(str(path.relative_to(ROOT)), path.read_text("utf-8")) for path in paths]


def parse(path: str, text: str) -> Module:
    return Module(path=path, text=text, tree=ast.parse(text, path))


def faults_of(rule: Rule, modules: list[Module]) -> list[str]:
    return [f"{module.path}:{line}: {what}" for module in modules for line, what in rule(module)]


def top(name: str) -> str:
    return name.partition(".")[0]


@rule_of_source
@rule_of_tests
def module_is_short(module: Module) -> Iterator[Fault]:
    count = len(module.text.splitlines())
    if count > MODULE_LINES_MAX:
        yield count, f"{count} lines, more than {MODULE_LINES_MAX}: split it by subject"


@rule_of_source
def module_says_what_lives_in_it(module: Module) -> Iterator[Fault]:
    if module.text.strip() and ast.get_docstring(module.tree) is None:
        yield 1, "no module docstring: say what lives here, what does not, and the spec it implements"


@rule_of_source
@rule_of_tests
def module_has_a_room_of_its_own(module: Module) -> Iterator[Fault]:
    refused = NAMES_REFUSED.intersection(Path(module.path).with_suffix("").parts)
    if refused:
        yield 1, f"{refused.pop()!r} is no room: find the subject that these functions belong to"


@rule_of_source
@rule_of_tests
def function_is_short(module: Module) -> Iterator[Fault]:
    for function in module.functions():
        count = (function.end_lineno or function.lineno) - function.lineno + 1
        if count > FUNCTION_LINES_MAX:
            yield function.lineno, f"{function.name} has {count} lines, more than {FUNCTION_LINES_MAX}"


@rule_of_source
def function_takes_few_parameters(module: Module) -> Iterator[Fault]:
    if module.within("node/cli"):
        return  # a click command has one parameter for each option that its user sees
    for function in module.functions():
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > PARAMETERS_MAX:
            yield function.lineno, f"{function.name} takes {count} parameters, more than {PARAMETERS_MAX}"


@rule_of_source
def protocol_is_pure(module: Module) -> Iterator[Fault]:
    if not module.within("protocol"):
        return
    for line, name in module.imports():
        if top(name) in IMPURE:
            yield line, f"protocol/ is pure and must not import {name}: pass the value in"
    for call in ast.walk(module.tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("open", "print"):
            yield call.lineno, f"protocol/ is pure and must not call {call.func.id}()"


@rule_of_source
def torch_stays_in_the_engine(module: Module) -> Iterator[Fault]:
    for line, name in module.imports():
        if top(name) == "torch" and not module.within("node/execution/engine"):
            yield line, "torch is imported in node/execution/engine/ only: it takes seconds and belongs to workers"


@rule_of_source
def libp2p_stays_behind_the_interface(module: Module) -> Iterator[Fault]:
    for line, name in module.imports():
        if top(name) in ("libp2p", "multiaddr") and not module.within("node/net/libp2p"):
            yield line, f"{top(name)} is imported in node/net/libp2p/ only"


@rule_of_source
def importing_runs_nothing(module: Module) -> Iterator[Fault]:
    loops = (ast.For, ast.While, ast.With, ast.Try)
    for statement in module.tree.body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement, loops) or (isinstance(statement, ast.Expr) and not is_text):
            yield statement.lineno, "importing a module runs nothing: move this into a function"
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                yield node.lineno, "importing a module reads no environment"


@rule_of_source
def no_class_has_del(module: Module) -> Iterator[Fault]:
    for function in module.functions():
        if function.name == "__del__":
            yield function.lineno, "no __del__: what is opened is closed by run() or a with block"


@rule_of_source
@rule_of_tests
def except_exception_gives_its_reason(module: Module) -> Iterator[Fault]:
    for handler in handlers(module, "Exception"):
        comments = [part.strip() for part in module.line(handler.lineno).split("#")[1:]]
        if not any(comment and not comment.startswith(("noqa", "type:", "pragma")) for comment in comments):
            yield handler.lineno, "`except Exception` needs its reason as a comment on this line"


@rule_of_source
@rule_of_tests
def except_base_exception_raises_again(module: Module) -> Iterator[Fault]:
    for handler in handlers(module, "BaseException"):
        last = handler.body[-1]
        if not (isinstance(last, ast.Raise) and last.exc is None):
            yield handler.lineno, "`except BaseException` must end in a bare raise: it also catches cancellation"


def handlers(module: Module, name: str) -> Iterator[ast.ExceptHandler]:
    for handler in ast.walk(module.tree):
        if isinstance(handler, ast.ExceptHandler) and handler.type is not None:
            caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
            if any(isinstance(kind, ast.Name) and kind.id == name for kind in caught):
                yield handler


@rule_of_source
def untrusted_reader_names_its_error(module: Module) -> Iterator[Fault]:
    for function in module.functions():
        if function.name.endswith("_untrusted") and "RemoteProtocolError" not in (
            ast.get_docstring(function) or ""
        ):
            yield function.lineno, f"the docstring of {function.name} must mention RemoteProtocolError"


@rule_of_source
def log_event_is_a_fixed_name(module: Module) -> Iterator[Fault]:
    for call in ast.walk(module.tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
            continue
        owner = call.func.value
        is_log = isinstance(owner, ast.Name) and owner.id.lstrip("_").lower() in ("log", "logger", "logging")
        # A name may stand for the event when callers pass a fixed one; what is put together here may not.
        is_composed = isinstance(call.args[0], ast.JoinedStr | ast.BinOp | ast.Call)
        if is_log and call.func.attr in LOG_METHODS and is_composed:
            yield call.lineno, "a log line is a fixed event name; what varies goes into extra={...}"


@rule_of_source
def async_function_takes_no_timeout(module: Module) -> Iterator[Fault]:
    for function in module.functions():
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
            if isinstance(function, ast.AsyncFunctionDef) and argument.arg in (
                "timeout",
                "timeout_s",
                "timeout_ms",
            ):
                yield argument.lineno, f"{function.name}: a deadline is a cancel scope at the caller"


@rule_of_source
def nursery_stays_in_its_function(module: Module) -> Iterator[Fault]:
    for assign in ast.walk(module.tree):
        targets = assign.targets if isinstance(assign, ast.Assign) else []
        if any(isinstance(target, ast.Attribute) and "nursery" in target.attr for target in targets):
            yield assign.lineno, "no nursery in an attribute: send requests to start something over a channel"


@rule_of_source
def nothing_unpickles_or_trusts_code(module: Module) -> Iterator[Fault]:
    for line, name in module.imports():
        if top(name) in UNSAFE_LOADERS:
            yield line, f"{top(name)} runs what it reads; use safetensors, msgpack or JSON"
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.keyword):
            continue
        is_false = isinstance(node.value, ast.Constant) and node.value.value is False
        if (node.arg == "trust_remote_code" and not is_false) or (node.arg == "weights_only" and is_false):
            yield node.value.lineno, f"{node.arg} lets a model file run code"


@rule_of_tests
def no_test_sleeps(module: Module) -> Iterator[Fault]:
    for line, name in module.imports():
        if name == "time.sleep":
            yield line, "no real sleep: use autojump_clock, wait_all_tasks_blocked or nursery.start"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep":
            yield node.lineno, "no real sleep: use autojump_clock, wait_all_tasks_blocked or nursery.start"


@rule_of_tests
def fakes_stand_in_for_mocks(module: Module) -> Iterator[Fault]:
    for line, name in module.imports():
        if name.startswith("unittest.mock") or top(name) in ("mock", "pytest_mock"):
            yield line, "no mocks: write a fake in tests/fakes.py or in the room's fakes.py"


@rule_of_tests
def mirrored_module_exists(module: Module) -> Iterator[Fault]:
    path = Path(module.path).with_suffix("")
    if not path.name.startswith("test_") or path.name in TESTS_OF_THE_TREE or module.within("tests/integration"):
        return
    room, subject = path.parts[1:-1], path.name.removeprefix("test_")
    home = ROOT.joinpath(*room) if room[:1] in (("protocol",), ("node",)) else ROOT.joinpath("node", *room)
    # test_contract_states.py may stand beside test_contract.py when one file would be too long.
    words = subject.split("_")
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    if not any((home / f"{name}.py").is_file() or (home / name).is_dir() for name in names):
        yield 1, f"mirrors no module: expected {home.relative_to(ROOT)}/{subject}.py"


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule) -> None:
    faults = faults_of(rule, load("node", "protocol"))
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("rule", TEST_RULES, ids=lambda rule: rule.__name__)
def test_tests_keep_the_rule(rule: Rule) -> None:
    faults = faults_of(rule, load("tests"))
    assert not faults, "\n" + "\n".join(faults)


BROKEN = [
    (module_is_short, "node/x.py", "a = 1\n" * 501),
    (module_says_what_lives_in_it, "node/x.py", "a = 1\n"),
    (module_has_a_room_of_its_own, "node/market/utils.py", ""),
    (function_is_short, "node/x.py", "def f() -> None:\n" + "    a = 1\n" * 70),
    (function_takes_few_parameters, "node/x.py", "def f(self, a, b, c, d, *, e, f, g): ...\n"),
    (protocol_is_pure, "protocol/x.py", "def f():\n    from time import time\n"),
    (protocol_is_pure, "protocol/x.py", "def f(): return open('x')\n"),
    (torch_stays_in_the_engine, "node/execution/worker.py", "def f():\n    import torch.cuda\n"),
    (libp2p_stays_behind_the_interface, "node/net/memory.py", "from libp2p.host import x\n"),
    (importing_runs_nothing, "node/x.py", "import logging\nlogging.basicConfig()\n"),
    (importing_runs_nothing, "node/x.py", "import os\nHOME = os.environ['HOME']\n"),
    (no_class_has_del, "node/x.py", "class A:\n    def __del__(self): ...\n"),
    (
        except_exception_gives_its_reason,
        "node/x.py",
        "try:\n    f()\nexcept Exception:  # noqa: BLE001\n    g()\n",
    ),
    (
        except_base_exception_raises_again,
        "node/x.py",
        "try:\n    f()\nexcept (OSError, BaseException):\n    g()\n",
    ),
    (untrusted_reader_names_its_error, "protocol/x.py", 'def read_untrusted(b):\n    """Read."""\n'),
    (log_event_is_a_fixed_name, "node/x.py", "log.info(f'job {1}')\n"),
    (async_function_takes_no_timeout, "node/x.py", "async def f(*, timeout_s): ...\n"),
    (nursery_stays_in_its_function, "node/x.py", "self._nursery = nursery\n"),
    (nothing_unpickles_or_trusts_code, "node/x.py", "import pickle\n"),
    (nothing_unpickles_or_trusts_code, "node/x.py", "load(path, weights_only=False)\n"),
    (no_test_sleeps, "tests/x.py", "import time\ntime.sleep(1)\n"),
    (fakes_stand_in_for_mocks, "tests/x.py", "from unittest.mock import Mock\n"),
    (mirrored_module_exists, "tests/market/test_nothing_of_ours.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_rule_finds_the_fault_when_code_breaks_it(rule: Rule, path: str, text: str) -> None:
    (fault, *_) = faults_of(rule, [parse(path, text)])
    assert fault.startswith(f"{path}:")


def test_rule_accepts_except_exception_when_the_line_gives_a_reason() -> None:
    text = "try:\n    f()\nexcept Exception as exc:  # one request must not end the others\n    g()\n"
    assert not faults_of(except_exception_gives_its_reason, [parse("node/x.py", text)])
