# SPDX-License-Identifier: Apache-2.0
"""What a machine without Windows and without Apple's processors can check about them, by reading the code.

Apple's GPUs have no float64. Windows has no forks, alarms, pipes with names or folders that can be opened, gives text
files another encoding, and flushes a file only if it may be written to.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("diffusers_mdm", "training", "conversion", "benchmarks")
SOURCES = sorted(path for place in PLACES for path in (ROOT / place).rglob("*.py"))

POSIX_MODULES = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": {
        "chown",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getloadavg",
        "getpgid",
        "getpgrp",
        "getpriority",
    }
    | {"getuid", "kill", "killpg", "lchown", "mkfifo", "mknod", "nice", "openpty", "posix_fadvise", "posix_fallocate"}
    | {
        "pread",
        "pwrite",
        "register_at_fork",
        "sched_getaffinity",
        "sched_setaffinity",
        "sendfile",
        "setpgid",
        "setsid",
    }
    | {"statvfs", "sync", "sysconf", "uname", "wait", "wait3", "wait4", "WEXITSTATUS", "WIFEXITED"}
    | {"O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_DSYNC", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"},
    "signal": {"SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT", "SIGSTOP"}
    | {"SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "alarm", "getitimer", "pause", "pthread_kill"}
    | {"pthread_sigmask", "setitimer", "siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo"},
}
GUARD = re.compile(r"hasattr|sys\.platform|os\.name|platform\.system")
# What pathlib has no equal for in Python 3.10.
OS_PATH_ALLOWED = {"lexists", "relpath"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(source: str) -> ast.Module:
    """Parse, and let every node know its parent."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    return tree


def parents(node: ast.AST) -> Iterator[ast.AST]:
    while (node := getattr(node, "parent", None)) is not None:
        yield node


def is_guarded(node: ast.AST) -> bool:
    """Whether a condition about the system, or a handler of what is missing on others, stands around a node."""
    for parent in parents(node):
        if isinstance(parent, (ast.If, ast.IfExp)) and GUARD.search(ast.unparse(parent.test)):
            return True
        if isinstance(parent, ast.Try) and any(
            re.search("ImportError|AttributeError", ast.unparse(handler.type or ast.Constant("")))
            for handler in parent.handlers
        ):
            return True
        if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(
            isinstance(step, ast.If)
            and not isinstance(step.test, ast.BoolOp)
            and GUARD.search(ast.unparse(step.test))
            and isinstance(step.body[-1], ast.Return)
            for step in parent.body
        ):
            return True
    return False


def posix_only(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in POSIX_NAMES.get(node.value.id, ()):
                names = [f"{node.value.id}.{node.attr}"]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = (node.module or "").split(".")[0]
            wanted = POSIX_NAMES.get(module, set())
            names = [module] if module in POSIX_MODULES else [a.name for a in node.names if a.name in wanted]
        elif isinstance(node, ast.keyword) and node.arg == "preexec_fn":
            names = ["preexec_fn"]
        elif isinstance(node, ast.Call) and called(node) == "get_context":
            names = [
                ast.unparse(node) for argument in node.args if ast.unparse(argument) in ("'fork'", "'forkserver'")
            ]
        if names and not is_guarded(node):
            yield getattr(node, "lineno", 0), ", ".join(names)


def called(node: ast.Call) -> str:
    """Last part of the name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def keywords(node: ast.Call) -> dict[str, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}


def mode_of(node: ast.Call) -> str | None:
    """Mode with which a call opens a file; None if it opens none."""
    positions = {"open": 1, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}
    name = called(node)
    if name not in positions:
        return None
    position = positions[name]
    if name == "open" and isinstance(node.func, ast.Attribute):
        owner = ast.unparse(node.func.value)
        if owner in ("Image", "os", "tarfile", "zipfile", "fsspec", "archive", "self.archive", "av", "opener"):
            return None  # these open no text
        position = 1 if owner in ("io", "gzip", "bz2", "lzma") else 0
    default = "w+b" if "Temporary" in name else "rb" if "gzip" in ast.unparse(node.func) else "r"
    given = keywords(node).get("mode") or (ast.unparse(node.args[position]) if len(node.args) > position else None)
    return given.strip("'\"") if given else default


def text_without_encoding(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or "encoding" in keywords(node):
            continue
        mode = mode_of(node)
        is_text = mode is not None and "b" not in mode
        is_text |= called(node) == "read_text" and not node.args
        is_text |= called(node) == "write_text" and len(node.args) < 2
        is_text |= called(node) in ("run", "Popen", "check_output") and "True" in (
            keywords(node).get("text"),
            keywords(node).get("universal_newlines"),
        )
        if is_text:
            yield node.lineno, ast.unparse(node.func)


def flushes_of_what_cannot_be_written(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or called(node) != "fsync":
            continue
        around = next((p for p in parents(node) if isinstance(p, (ast.FunctionDef, ast.AsyncFunctionDef))), tree)
        for other in ast.walk(around):
            is_reading = isinstance(other, ast.Call) and mode_of(other) in ("r", "rb")
            is_reading |= isinstance(other, ast.Attribute) and ast.unparse(other) == "os.O_RDONLY"
            if is_reading and not is_guarded(other):
                yield node.lineno, f"os.fsync beside {ast.unparse(other)}"


def paths_as_text(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        is_used = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.path"
        is_imported = isinstance(node, (ast.Import, ast.ImportFrom)) and "os.path" in ast.unparse(node)
        if is_imported or (is_used and node.attr not in OS_PATH_ALLOWED):
            yield node.lineno, ast.unparse(node)


def is_move_to_cpu(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return called(node) == "cpu" or (called(node) == "to" and ast.unparse(node).endswith(("('cpu')", "device='cpu')")))


def is_moved_on(node: ast.AST) -> bool:
    """Whether a value goes to another place in the expression that makes it, before it has another type."""
    for parent in parents(node):
        if isinstance(parent, ast.stmt) or (isinstance(parent, ast.Call) and called(parent) == "float"):
            return False
        if isinstance(parent, ast.Call) and called(parent) in ("to", "cuda") and not is_move_to_cpu(parent):
            return "float32" not in ast.unparse(parent)
    return False


def float64_on_devices(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = [ast.unparse(value) for value in [*node.args, *(keyword.value for keyword in node.keywords)]]
        is_wide = bool({"torch.float64", "torch.double", "torch.complex128"} & set(given))
        is_wide |= called(node) == "double" and isinstance(node.func, ast.Attribute) and not node.args
        if not is_wide:
            continue
        owner = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        is_on_cpu = any(is_move_to_cpu(part) for part in ast.walk(owner))
        # A function of torch itself makes its tensor on the CPU unless it is told otherwise.
        is_on_cpu |= ast.unparse(owner) == "torch" and keywords(node).get("device", "'cpu'") == "'cpu'"
        if not is_on_cpu or is_moved_on(node):
            yield node.lineno, ast.unparse(node)


CHECKS = {
    "float64 on a device (Apple's have none): `.cpu()` first": float64_on_devices,
    "only on POSIX: guard it with hasattr or os.name": posix_only,
    "text without encoding": text_without_encoding,
    "flush of what was opened for reading (Windows refuses)": flushes_of_what_cannot_be_written,
    "paths as text: use pathlib": paths_as_text,
}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_code_runs_on_every_system(path):
    tree = tree_of(path.read_text(encoding="utf-8"))
    found = [f"line {line}: {what}: {why}" for why, check in CHECKS.items() for line, what in check(tree)]
    assert not found


@pytest.mark.parametrize(
    ("source", "check"),
    [
        ("x.double().cpu()", float64_on_devices),
        ("x.to(torch.float64)", float64_on_devices),
        ("x.sum(dtype=torch.float64)", float64_on_devices),
        ("torch.zeros(2, dtype=torch.float64, device=device)", float64_on_devices),
        ("torch.linspace(0, 1, 9, dtype=torch.float64).to(device)", float64_on_devices),
        ("x.cpu().double().to(x.device)", float64_on_devices),
        ("import signal\nsignal.alarm(1)", posix_only),
        ("from signal import SIGHUP", posix_only),
        ("import fcntl", posix_only),
        ("import os\nif ready:\n    os.fork()", posix_only),
        ("multiprocessing.get_context('fork')", posix_only),
        ("subprocess.run(command, preexec_fn=work)", posix_only),
        ("open(path)", text_without_encoding),
        ("path.open('w')", text_without_encoding),
        ("path.read_text()", text_without_encoding),
        ("path.write_text(text)", text_without_encoding),
        ("subprocess.run(command, text=True)", text_without_encoding),
        ("tempfile.NamedTemporaryFile('w')", text_without_encoding),
        ("with path.open('rb') as file:\n    os.fsync(file.fileno())", flushes_of_what_cannot_be_written),
        ("os.fsync(os.open(path, os.O_RDONLY))", flushes_of_what_cannot_be_written),
        ("os.path.join(a, b)", paths_as_text),
        ("from os.path import join", paths_as_text),
    ],
)
def test_checks_find_what_they_are_for(source, check):
    assert list(check(tree_of(source)))


@pytest.mark.parametrize(
    "source",
    [
        "x.cpu().double().sum()",
        "x.to('cpu').to(torch.float64)",
        "torch.linspace(0, 1, 9, dtype=torch.float64)",
        "torch.linspace(0, 1, 9, dtype=torch.float64).float().to(device)",
        "if hasattr(signal, 'SIGALRM'):\n    signal.signal(signal.SIGALRM, signal.SIG_DFL)",
        "flags = os.O_RDWR | (os.O_NOFOLLOW if hasattr(os, 'O_NOFOLLOW') else 0)",
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None",
        "def f():\n    if os.name == 'nt':\n        return\n    os.fork()",
        "getattr(signal, 'SIGHUP', None)",
        "open(path, 'rb')\npath.open(mode='wb')\nopen(path, encoding='utf-8')\npath.read_text('utf-8')",
        "def f(path):\n    os.fsync(os.open(path, os.O_RDWR if os.name == 'nt' else os.O_RDONLY))",
        "os.path.relpath(a, b)",
    ],
)
def test_checks_leave_what_is_right(source):
    assert not [found for check in CHECKS.values() for found in check(tree_of(source))]
