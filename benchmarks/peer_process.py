"""Programs of peers: their environments, what a run costs, how many lines they have."""

from __future__ import annotations

import ast
import io
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_SECONDS = 0.1  # between two looks whether the program has ended
SAMPLE_SECONDS = 0.25  # at least, between two samples of the memory, of which each may take
SAMPLE_SHARE = 0.02  # this share of the time: the kernel walks all pages
MIB = 2**20
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


class UnavailableError(Exception):
    """The environment of a peer cannot be made; the message is the reason."""


@dataclass(frozen=True)
class Cost:
    """What one program took, with all processes that it started."""

    seconds: float
    cpu_seconds: float
    peak_mib: float  # largest sum of the proportional set sizes of its processes
    code: int | None  # exit code; None if it was stopped at the limit


def environment(home: Path, requirements: Sequence[str]) -> Path:
    """Python of the virtual environment in `home` with the requirements, made if necessary.

    It sees the packages of this environment after its own, so that PyTorch is there once. Raises
    `UnavailableError` with pip's message if they cannot be installed.
    """
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _quietly([sys.executable, "-m", "venv", "--clear", str(home)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    shared = sysconfig.get_path("purelib")
    (packages / "shared.pth").write_text(shared + "\n", encoding="utf-8")
    _quietly([str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements])
    stamp.write_text(wanted, encoding="utf-8")  # last: a half-made environment is made again
    return python


def _quietly(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(last_line(done.stderr) or f"{command[0]} ended with an error")


def last_line(text: str) -> str:
    """Last line that is not blank, without codes of colour, shortened to 300 characters."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "\n")
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def run(
    command: Sequence[str], folder: Path, log: Path, limit_s: float, variables: Mapping[str, str]
) -> Cost:
    """Run a program in `folder` with its output in `log`; stop it, with its children, at the limit.

    CPU seconds are those of the program and of the children that it waited for.
    """
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,  # a group of its own, to be stopped as a whole
        )
    peak, is_stopped, due = 0.0, False, start
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            now = time.perf_counter()
            if pid:
                break
            if now >= due:
                peak = max(peak, _memory_mib(process.pid))
                took = time.perf_counter() - now
                due = now + max(SAMPLE_SECONDS, took / SAMPLE_SHARE)
            if now - start > limit_s and not is_stopped:
                os.killpg(process.pid, signal.SIGKILL)
                is_stopped = True
            time.sleep(POLL_SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    code = None if is_stopped else process.returncode
    return Cost(now - start, usage.ru_utime + usage.ru_stime, peak, code)


def _memory_mib(pid: int) -> float:
    """Proportional set size of a process and its descendants: shared pages count once."""
    total = 0
    try:
        main = psutil.Process(pid)
        members = [main, *main.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for member in members:
        try:
            used = member.memory_full_info()
        except psutil.Error:  # it has ended since it was listed
            continue
        total += getattr(used, "pss", used.uss)
    return total / MIB


def lines_of(scripts: Sequence[Path]) -> int:
    """Lines of code of scripts and of the neighbours that they import, each file once.

    A line counts if it holds code: blank lines, comments and docstrings do not.
    """
    files: dict[Path, ast.Module] = {}
    waiting = list(scripts)
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files[path] = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(files[path]):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            neighbours = (path.with_name(f"{name}.py") for name in names)
            waiting += [neighbour for neighbour in neighbours if neighbour.exists()]
    return sum(len(_code_lines(path, tree)) for path, tree in files.items())


def _code_lines(path: Path, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code."""
    source = path.read_text(encoding="utf-8")
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            found -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found
