"""The `retailtag` program: mounts the commands and turns exceptions into exit codes."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

import retailtag
from retailtag.allocator import keep_freed_memory
from retailtag.cli import catalog, extract, models, score
from retailtag.cli.bakeoff import bakeoff
from retailtag.cli.compare import compare
from retailtag.cli.demo import demo
from retailtag.cli.finetune import finetune
from retailtag.cli.options import with_bare_sweep
from retailtag.cli.predict import predict
from retailtag.cli.probe import probe
from retailtag.errors import (
    EXIT_BAD_DATA,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    GateUnmet,
    RetailtagError,
)

EXIT_CODES = (
    "Exit codes: 0 done; 2 usage; 3 bad data; 4 stale or mismatched artefact; 5 a --gate is not "
    "met; 6 something needed is not here (weights offline, an extra, a device); 130 interrupted, "
    "with everything finished so far kept."
)

INTERRUPTED = "interrupted; everything finished so far is kept, and the same command continues."

app = typer.Typer(
    name="retailtag",
    help="Find the best (backbone, strategy) pair for a long-tailed tag taxonomy, and prove it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("extract")(extract.extract)
app.command("probe")(probe)
app.command("finetune")(finetune)
app.command("score")(score.score)
app.command("compare")(compare)
app.command("bakeoff")(bakeoff)
app.command("predict")(predict)
app.command("demo")(demo)
app.add_typer(catalog.app, name="catalog")
app.add_typer(models.app, name="models")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"retailtag {retailtag.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int, *, answered: bool = False) -> int:
    """Say what failed; under ``--json`` as the one object, unless that was printed already."""
    if "--json" in sys.argv and not answered:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    sys.stderr.write(f"retailtag: {message}\n")
    return code


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; mend that and run the same command again."


def run(args: list[str] | None = None) -> int:
    """Run one command line; returns the exit code and prints no traceback for a user's error."""
    try:
        app(with_bare_sweep(sys.argv[1:] if args is None else args))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else EXIT_DONE
        return _fail(INTERRUPTED, code) if code == EXIT_INTERRUPTED else code
    except RetailtagError as error:
        return _fail(str(error), error.exit_code, answered=isinstance(error, GateUnmet))
    except OSError as error:
        return _fail(_os_error(error), EXIT_BAD_DATA)
    return EXIT_DONE


def main() -> None:
    """Entry point of the console script."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run())
