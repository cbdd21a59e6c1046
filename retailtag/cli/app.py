"""The application that the commands register with."""

from __future__ import annotations

import typer

EXIT_CODES = (
    "Exit codes: 0 done; 2 usage; 3 bad data; 4 stale or mismatched artefact; 5 a --gate is not "
    "met; 6 something is not available (weights offline, an extra, a device, room on the disk, "
    "memory); 130 interrupted, with everything finished so far kept."
)

app = typer.Typer(
    name="retailtag",
    help="Find the best (backbone, strategy) pair for a long-tailed tag taxonomy, and prove it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
