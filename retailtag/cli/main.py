"""The `retailtag` program: mounts the commands and turns exceptions into exit codes."""

from __future__ import annotations

import atexit
import gc
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import TyperException

from retailtag.allocator import keep_freed_memory
from retailtag.cli import (  # each registers its command
    audit,
    bakeoff,
    catalog,
    compare,
    demo,
    drift,
    export,
    extract,
    features,
    finetune,
    init,
    latency,
    models,
    predict,
    probe,
    score,
    serve,
    similar,
    tune,
)
from retailtag.cli.app import app
from retailtag.cli.options import with_bare_options
from retailtag.cli.output import warn
from retailtag.cli.verb import reveal_advanced, speaks
from retailtag.display import printable
from retailtag.errors import (
    EXIT_BAD_DATA,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    NO_ROOM,
    BadCatalogue,
    GateUnmet,
    Mismatch,
    RetailtagError,
    lacks_memory,
)
from retailtag.version import __version__

HELP_ALL = "--help-all"
INTERRUPTED = "interrupted; everything finished so far is kept, and the same command continues."
NO_MEMORY = (
    "The memory ran out; free some, raise a limit such as ulimit -v, or give less data, and run "
    "the same command again."
)

__all__ = ["app", "main", "run"]

# Importing a module registers its command; the names keep a linter from dropping the imports.
COMMANDS = (
    *(audit, bakeoff, compare, demo, drift, export, extract, finetune, init, latency),
    *(predict, probe, score, serve, similar, tune),
)
app.add_typer(catalog.app, name="catalog")
app.add_typer(features.app, name="features")
app.add_typer(models.app, name="models")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"retailtag {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Hold the options of the program itself."""


def _on_signals(act: Callable[[int, FrameType | None], None]) -> None:
    """Let Ctrl-C and SIGTERM call `act`; a signal that the caller ignores (``nohup``) stays so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, act)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Unwind. What comes next ends at once: whatever is unwinding would show it as a traceback."""
    _on_signals(_end)
    raise KeyboardInterrupt


def _end(signum: int, frame: FrameType | None) -> None:
    # Every file is written whole or not at all, and the system releases locks. Not by sys.stderr,
    # which may be in the middle of a line. Bars hide the cursor; the sequence shows it again.
    cursor = "\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"{cursor}retailtag: {INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _fail(message: str, code: int, *, as_json: bool, **more: object) -> int:
    """Say what failed, on stderr and for programs also as the one object of stdout."""
    if as_json:
        try:
            sys.stdout.write(json.dumps({"error": message, "exit_code": code, **more}) + "\n")
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()
    warn(f"retailtag: {message}")
    return code


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere: it would fail again, with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _os_error(error: OSError) -> tuple[str, int]:
    """One sentence on what the system refused, and the exit code."""
    no_room = error.errno in NO_ROOM
    where = f"{error.filename}: " if error.filename else ""
    remedy = "make room or name another folder," if no_room else "fix this"
    sentence = f"{where}{error.strerror or error}; {remedy} and run the same command again."
    return sentence, EXIT_UNAVAILABLE if no_room else EXIT_BAD_DATA


def run(args: list[str] | None = None) -> int:
    """Run one command line; returns the exit code and prints no traceback for a user's error."""
    words = with_bare_options(sys.argv[1:] if args is None else args) or ["--help"]
    as_json = "--json" in words and speaks(words[0])
    # Made anew for every call, because --help-all changes it.
    program = typer.main.get_command(app)
    if HELP_ALL in words:
        words = ["--help" if word == HELP_ALL else word for word in words]
        reveal_advanced(program)
    try:
        code = program(words, prog_name="retailtag", standalone_mode=False) or EXIT_DONE
    except SystemExit as stop:
        # typer turns a broken pipe, as of `| head`, into an exit of its own
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    except TyperException as error:  # what the parser raises
        return _fail(_usage(error), EXIT_USAGE, as_json=as_json)
    except RetailtagError as error:
        more = {"problems": error.problems} if isinstance(error, BadCatalogue) else {}
        # With --json a program reads exactly one object: after an unmet gate or a mismatch the
        # result, gates and differences included, has been printed already.
        answered = isinstance(error, GateUnmet | Mismatch)
        return _fail(str(error), error.exit_code, as_json=as_json and not answered, **more)
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        if lacks_memory(error):
            return _fail(NO_MEMORY, EXIT_UNAVAILABLE, as_json=as_json)
        if not isinstance(error, OSError):
            raise
        # Without a file name it is stdout itself that failed, for example on a full disk.
        if error.filename is None:
            _abandon_stdout()
        return _fail(*_os_error(error), as_json=as_json)
    return _fail(INTERRUPTED, code, as_json=as_json) if code == EXIT_INTERRUPTED else code


def _usage(error: TyperException) -> str:
    """One sentence on what the command line lacks, and where to read more."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "retailtag"
    return f"{error.format_message().rstrip('.')}; see {command} --help."


def _escape_libraries() -> None:
    """Show warnings and log messages of libraries as one line each, control characters escaped."""

    class Escaped(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record), keep="")

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        warn(f"{category.__name__}: {message}")

    warnings.showwarning = show
    if logging.lastResort is not None:  # the handler of loggers without one
        logging.lastResort.setFormatter(Escaped())


def _freeze() -> None:
    """Spare the interpreter's exit the search for garbage."""
    # triton, which exporting a graph loads, would report all that stays as leaks on stderr.
    if "triton" not in sys.modules:
        gc.freeze()


def main() -> None:
    """Entry point of the console script."""
    keep_freed_memory()
    # Libraries are a million objects that stay to the end: looking for garbage among them while
    # they are imported, and again at the exit, takes a large share of a short command's time.
    gc.set_threshold(50_000)
    atexit.register(_freeze)
    # A terminal that lacks a character shows its escape; the default is a UnicodeEncodeError.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _escape_libraries()
    # What Pillow warns of in an image is of no use without the image's name.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    # By default SIGTERM ends Python without running `finally`: locks and temporary files would
    # stay. As KeyboardInterrupt it unwinds like Ctrl-C.
    _on_signals(_interrupt)
    code = run()
    # All is said; the interpreter's own exit takes a moment, and would not survive a Ctrl-C either.
    _on_signals(lambda signum, frame: os._exit(code))
    sys.exit(code)
