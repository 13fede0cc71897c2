"""
The layers, as a table, and a check that names the import that breaks them.

Imports point down only: the zygote's codec < `errors` < `_core` < `_worker` < `_drive` < faces < tools. The
check reads the syntax tree of every file of the package, so it sees imports inside functions too; it imports
nothing.
"""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

# What may be imported in the clean process: C modules, and Python modules that every interpreter has loaded
# by then.
ZYGOTE_MODULES = frozenset(
    "_ctypes _posixsubprocess _signal _socket _struct binascii errno faulthandler fcntl gc marshal os posix posixpath "
    "resource select signal stat sys termios time".split()
)

# Pure means: no thread, no waiting, no event loop, no process started.
IMPURE = frozenset("_thread asyncio concurrent multiprocessing queue sched selectors socketserver threading".split())
WAITING_CALLS = frozenset("os.wait os.waitpid select.epoll select.poll select.select time.sleep".split())
SUBPROCESS_DATA = frozenset(
    "CalledProcessError CompletedProcess DEVNULL PIPE STDOUT SubprocessError TimeoutExpired".split()
)

# Who may import whom inside the package. `wire` is the one module of the zygote that both processes use.
BELOW = {
    "errors": {"wire", "errors"},
    "_core": {"wire", "errors", "_core"},
    "_drive": {"wire", "errors", "_core", "_drive", "_worker"},  # the application's end of what a worker speaks
    "_worker": {"wire", "errors", "_core", "_worker"},
    "face": {"wire", "errors", "_core", "_drive", "_worker", "face"},
    "door": {"wire", "errors", "_core", "_drive", "_worker", "face"},
    "tool": {"wire", "errors", "_core", "_drive", "_worker", "face", "door", "tool"},
}
TOOLS = frozenset({"__main__", "check", "cli", "demo", "doctor"})
THIRD_PARTY = frozenset({"anyio", "attr", "attrs"})

# By file. What is used only where it is installed, inside functions:
OPTIONAL = {
    "safespawn/_worker/payload.py": {"cloudpickle"},
    "safespawn/_progress.py": {"rich"},
    "safespawn/_ps.py": {"rich"},
}
# Loaded by the program that it is a part of, and by nobody else:
PLUGINS = {
    "safespawn/integrations/joblib.py": {"joblib"},
    "safespawn/integrations/otel.py": {"opentelemetry"},
    "safespawn/pytest_plugin.py": {"pytest"},
}
# What one module may import from above, inside functions: a template that must refuse says who started the thread.
ABOVE = {"safespawn/_worker/template.py": {"safespawn.guard"}}


def find_package() -> Path:
    """Where the package that is being tested lies: the checkout's, or an installed wheel's."""
    spec = importlib.util.find_spec("safespawn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def layer_of(module: str) -> str | None:
    """The layer that *module* (dotted, `safespawn...`) belongs to; None if the table has no place for it."""
    parts = module.split(".")[1:]
    if not parts or parts == ["__init__"]:
        return "door"
    if parts[0] == "_zygote":
        return "wire" if parts[1:] == ["wire"] else "_zygote"
    if parts[0] in ("_core", "_drive", "_worker", "errors"):
        return parts[0]
    if parts[0] in ("pool_errors", "child_errors"):
        return "errors"  # files of their own: the standard bases of one cost 20 ms, the other is seldom wanted
    if parts[0] in TOOLS:
        return "tool"
    return None if parts[0].startswith("_") and len(parts) > 1 else "face"


class Checker(ast.NodeVisitor):
    """Collects what is wrong with the imports of one file."""

    def __init__(self, path: str, modules: frozenset[str]) -> None:
        self.path = path
        self.modules = modules
        self.module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self.layer = layer_of(self.module)
        self.in_function = 0
        self.in_type_checking = 0
        self.wrong: list[str] = []
        if self.layer is None:
            self.wrong.append(f"{path}: no layer is named for this folder; add it to tests/unit/test_layers.py")

    def complain(self, node: ast.AST, rule: str) -> None:
        line = f"{self.path}:{node.lineno}: `{ast.unparse(node)}`: {rule}"
        if line not in self.wrong:  # a from-import of three names is one statement
            self.wrong.append(line)

    # Where we are.

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.in_function += 1
        self.generic_visit(node)
        self.in_function -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the name that ast looks for

    def visit_If(self, node: ast.If) -> None:
        guarded = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self.in_type_checking += guarded
        for child in node.body:
            self.visit(child)
        self.in_type_checking -= guarded
        for child in node.orelse:
            self.visit(child)

    # What is imported.

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.check(node, alias.name, None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            if self.layer in ("_zygote", "wire"):
                self.complain(node, "the zygote is run as a directory by path: import siblings by plain name")
                return
            package = self.module.split(".") + ["__init__"] * self.path.endswith("/__init__.py")
            base = ".".join([*package[: -node.level], *filter(None, [base])])
        for alias in node.names:
            self.check(node, base, alias.name)

    def check(self, node: ast.stmt, module: str, name: str | None) -> None:
        """Judge one imported thing: *module*, or *name* from it."""
        if name is not None and f"{module}.{name}" in self.modules:
            module, name = f"{module}.{name}", None
        top = module.split(".", maxsplit=1)[0]
        if self.layer in ("_zygote", "wire"):
            self.check_zygote(node, module, top)
        elif top == "safespawn":
            self.check_package(node, module, name)
        elif top == "anyio":
            free = self.in_function or self.in_type_checking or self.path.endswith("_drive/async_driver.py")
            if self.layer in ("_core", "errors"):
                self.complain(node, f"{self.layer} knows no event loop")
            elif not free:
                self.complain(node, "anyio is imported inside functions only, so that run() never loads it")
        elif (top in OPTIONAL.get(self.path, ()) and self.in_function) or top in PLUGINS.get(self.path, ()):
            return
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY:
            self.complain(node, "the package depends on the standard library, attrs and anyio only")
        elif self.layer == "_core" and not self.in_type_checking:
            self.check_pure(node, module, top, name)

    def check_zygote(self, node: ast.stmt, module: str, top: str) -> None:
        sibling = f"safespawn._zygote.{module}" in self.modules
        typing_only = self.in_type_checking and top in sys.stdlib_module_names
        if top == "safespawn":
            self.complain(node, "the zygote imports nothing of the package: its siblings by plain name")
        elif self.module == "safespawn._zygote.wire" and sibling:
            self.complain(node, "the application imports wire too, where it has no plain-named siblings")
        elif not sibling and module not in ZYGOTE_MODULES and not typing_only:
            self.complain(node, "the zygote imports its siblings and C modules of the allow-list only")

    def check_package(self, node: ast.stmt, module: str, name: str | None) -> None:
        target = layer_of(module)
        if self.layer is None or module == self.module:
            return
        if module in ABOVE.get(self.path, ()) and self.in_function:
            return
        if target not in BELOW[self.layer]:
            self.complain(node, f"{self.layer} is below or apart from {target}: imports point down only")
        elif name is not None and name.startswith("_") and not name.startswith("__") and self.layer in ("face", "tool"):
            self.complain(node, f"`{name}` is private to {module}")

    def check_pure(self, node: ast.stmt, module: str, top: str, name: str | None) -> None:
        if top in IMPURE:
            self.complain(node, "_core is pure: it starts nothing and waits for nothing")
        elif module == "subprocess" and name is not None and name not in SUBPROCESS_DATA:
            self.complain(node, "_core takes constants and result classes from subprocess, nothing that acts")
        elif name is not None and f"{module}.{name}" in WAITING_CALLS:
            self.complain(node, "_core never waits: yield what you wait for")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self.layer == "_core" and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            if dotted in WAITING_CALLS:
                self.complain(node, "_core never waits: yield what you wait for")
            elif node.value.id == "subprocess" and node.attr not in SUBPROCESS_DATA:
                self.complain(node, "_core takes constants and result classes from subprocess, nothing that acts")
        self.generic_visit(node)


def broken_rules(path: str, source: str, modules: frozenset[str]) -> list[str]:
    """What *source*, as the file *path* (`safespawn/...`), imports against the rules."""
    checker = Checker(path, modules)
    checker.visit(ast.parse(source, path))
    return checker.wrong


def read_package() -> dict[str, str]:
    """Every source file of the package: its path from the package's parent, and its text."""
    root = find_package()
    files = sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)
    return {p.relative_to(root.parent).as_posix(): p.read_text(encoding="utf-8") for p in files}


def module_names(paths: list[str]) -> frozenset[str]:
    """The dotted names of *paths* and of the packages that hold them."""
    names = {p.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for p in paths}
    return frozenset(names | {n.rpartition(".")[0] for n in names})


def test_imports_point_down() -> None:
    """Every import of the package obeys the table; one that does not is named with file, line and rule."""
    files = read_package()
    assert files
    modules = module_names(list(files))
    wrong = [line for path, source in files.items() for line in broken_rules(path, source, modules)]
    assert not wrong, "\n" + "\n".join(wrong)


PLANTED_MODULES = module_names(
    [
        "safespawn/__init__.py",
        "safespawn/_core/flows.py",
        "safespawn/_drive/async_driver.py",
        "safespawn/_drive/blocking.py",
        "safespawn/_zygote/__init__.py",
        "safespawn/_zygote/server.py",
        "safespawn/_zygote/wire.py",
        "safespawn/cli.py",
        "safespawn/commands.py",
        "safespawn/errors.py",
    ]
)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("_zygote/server.py", "import socket"),
        ("_zygote/server.py", "import collections.abc"),
        ("_zygote/server.py", "from . import wire"),
        ("_zygote/server.py", "from safespawn._zygote import wire"),
        ("_zygote/server.py", "def f():\n    import threading"),
        ("_zygote/wire.py", "import server"),
        ("_core/flows.py", "import threading"),
        ("_core/flows.py", "from concurrent.futures import Future"),
        ("_core/flows.py", "import time\ntime.sleep(1)"),
        ("_core/flows.py", "from time import sleep"),
        ("_core/flows.py", "from subprocess import Popen"),
        ("_core/flows.py", "import subprocess\nsubprocess.run(['x'])"),
        ("_core/flows.py", "from safespawn._drive import blocking"),
        ("_core/flows.py", "from ..commands import run"),
        ("_core/flows.py", "from safespawn import run"),
        ("_core/flows.py", "from safespawn._zygote import server"),
        ("_core/flows.py", "async def f():\n    import anyio"),
        ("_drive/blocking.py", "import anyio"),
        ("_drive/blocking.py", "from safespawn import commands"),
        ("_drive/blocking.py", "from safespawn._zygote.server import loop"),
        ("_drive/blocking.py", "import trio"),
        ("errors.py", "from safespawn._core import flows"),
        ("commands.py", "import anyio.abc"),
        ("commands.py", "from safespawn import cli"),
        ("commands.py", "from safespawn._core.flows import _private"),
        ("__init__.py", "from safespawn.cli import main"),
        ("_new/thing.py", "import os"),
    ],
)
def test_a_planted_import_is_found(path: str, source: str) -> None:
    """The check finds one wrong import in a file that has nothing else."""
    wrong = broken_rules(f"safespawn/{path}", source, PLANTED_MODULES)
    assert len(wrong) == 1
    assert wrong[0].startswith(f"safespawn/{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("_zygote/server.py", "import os, _socket\nimport wire\nfrom wire import decode"),
        (
            "_zygote/server.py",
            "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from collections.abc import Callable",
        ),
        ("_core/flows.py", "import attrs, time\nfrom safespawn import errors\nnow = time.monotonic"),
        ("_core/flows.py", "from subprocess import PIPE\nfrom safespawn._zygote import wire"),
        ("_core/flows.py", "from safespawn._zygote.wire import _whatever"),
        (
            "_drive/blocking.py",
            "import select\nfrom safespawn._core.flows import Flow\nfrom . import async_driver",
        ),
        ("_drive/blocking.py", "async def f():\n    import anyio"),
        ("_drive/async_driver.py", "import anyio"),
        ("errors.py", "import subprocess\nfrom safespawn._zygote.wire import decode"),
        ("commands.py", "from safespawn._drive import blocking\nfrom .errors import SafespawnError"),
        ("__init__.py", "def __getattr__(name):\n    from safespawn import commands"),
        ("cli.py", "import safespawn\nfrom safespawn.commands import run"),
    ],
)
def test_a_right_import_is_let_pass(path: str, source: str) -> None:
    """The check has nothing to say of what the table allows."""
    assert broken_rules(f"safespawn/{path}", source, PLANTED_MODULES) == []
