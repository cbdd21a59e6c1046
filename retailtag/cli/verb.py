"""Commands whose options come from the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from retailtag.cli.output import Output
from retailtag.errors import UsageError
from retailtag.fields import Option, plain, types_of
from retailtag.settings import BakeoffSettings, build, option_of, section_of
from retailtag.settings_file import read_settings
from retailtag.verbs import RARE, flags_of, resolve

ADVANCED = "Advanced options"
RunsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Predictions files, or folders of runs or bake-offs."),
]
SHOWN_CHOICES = 3  # listed instead of a metavar; more would widen the column
METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
CATALOGUE = "Manifest (CSV, Parquet, JSON lines) or folder; may come from --config."
SHARED = {
    "config": Annotated[
        Path | None,
        typer.Option("--config", metavar="TOML", help="File of settings; options override it."),
    ],
    "set": Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, such as finetune.layer_decay=0.8; repeatable.",
        ),
    ],
    "json": Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose", help="Also print the settings in force.", rich_help_panel=ADVANCED
        ),
    ],
    "log_file": Annotated[
        Path | None,
        typer.Option(
            "--log-file", help="Append news and progress to a file.", rich_help_panel=ADVANCED
        ),
    ],
}


@dataclass(frozen=True)
class Call:
    """One call of a command: its settings, and where its words go.

    Parameters
    ----------
    settings : BakeoffSettings
    given : set of str
        Settings that the user gave, by dotted key.
    output : Output
    """

    settings: BakeoffSettings
    given: set[str]
    output: Output

    @property
    def catalogue(self) -> Path:
        """The catalogue; `UsageError` if none was named."""
        if self.settings.catalog.path is None:
            raise UsageError("CATALOGUE is missing; name a manifest or a folder.")
        return self.settings.catalog.path

    @property
    def new_cutoffs(self) -> str | None:
        """Cut-offs that the user gave; None: those that the predictions record."""
        return self.settings.catalog.cutoffs if "catalog.cutoffs" in self.given else None

    def require(self, key: str) -> None:
        """Raise `UsageError` unless the user gave a setting."""
        if key not in self.given:
            raise UsageError(f"--{key} is missing; name at least one, such as demo:cnn.")


def command(
    app: typer.Typer, verb: str, name: str = "", *, catalogue: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command with the options of a verb's settings.

    Parameters
    ----------
    app : typer.Typer
    verb : str
        Whose settings become options; see `retailtag.verbs.USES`.
    name : str
        Of the command; empty: the verb's.
    catalogue : bool
        Whether the first argument is CATALOGUE.

    Notes
    -----
    The function's first parameter is the `Call`; its other ones are options of the command alone.
    typer reads a signature, so one is put together from both: no option is written twice.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        flags = flags_of(verb)

        def called(**values: Any) -> None:
            call = _call(verb, flags, values)
            function(call, **{p.name: values[p.name] for p in own})

        positional = [p for p in own if _is_argument(p)]
        options = [p for p in own if not _is_argument(p)]
        first = [_parameter("catalogue", _argument(), None)] if catalogue else []
        shared = [_parameter(n, a, None if "None" in str(a) else False) for n, a in SHARED.items()]
        generated = [p for flag, keys in flags.items() for p in _options(verb, flag, keys)]
        parameters = [*first, *positional, *options, *generated, *shared]
        ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        called.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        called.__doc__ = function.__doc__
        called.__annotations__ = {}
        app.command(name or verb, epilog=EPILOG)(called)
        return function

    return register


EPILOG = "--help-all lists the advanced options; retailtag init writes all settings to a file."


def reveal_advanced(command: Any) -> None:
    """Let the help of a command and of all below it list the advanced options."""
    for parameter in command.params:
        if getattr(parameter, "rich_help_panel", None) == ADVANCED:
            parameter.hidden = False
    for child in getattr(command, "commands", {}).values():
        reveal_advanced(child)


def _call(verb: str, flags: Mapping[str, Sequence[str]], values: Mapping[str, Any]) -> Call:
    """Settings and output from what the command line gave."""
    options = {}
    for flag, keys in flags.items():
        name = _identifier(flag)
        found = values[name]
        for i, _ in enumerate(option_of(keys[0]).aliases):
            alias = values[f"{name}_alias_{i}"]
            found = found or (",".join(alias) if isinstance(alias, list) else alias)
        options[name] = found or None
    file = dict(read_settings(values["config"])) if values["config"] else {}
    sets = values["set"] or []
    settings, given = resolve(verb, None, options, file=file, sets=sets)
    if values.get("catalogue") is not None:
        settings = build({**_flat(settings), "catalog.path": values["catalogue"]})
    output = Output(values["json"], values["quiet"], log_file=values["log_file"])
    if values["verbose"]:
        for key in sorted(given):
            output.progress.say(f"{key} = {plain(_flat(settings)[key])}")
    return Call(settings, given, output)


def _flat(settings: BakeoffSettings) -> dict[str, Any]:
    from retailtag.settings import values_of

    return dict(values_of(settings))


def _is_argument(parameter: inspect.Parameter) -> bool:
    marks = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(mark, typer.models.ArgumentInfo) for mark in marks)


def _argument() -> Any:
    return Annotated[Path | None, typer.Argument(metavar="CATALOGUE", help=CATALOGUE)]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _identifier(flag: str) -> str:
    return flag[2:].replace("-", "_")


def _options(verb: str, flag: str, keys: Sequence[str]) -> Iterator[inspect.Parameter]:
    """The option of a setting, and a hidden one for each earlier spelling."""
    option = option_of(keys[0])
    types = types_of(*section_of(keys[0]))
    advanced = flag in RARE.get(verb, ()) or all(option_of(key).advanced for key in keys)
    yield _parameter(_identifier(flag), *_declared(flag, option, types, keys, hidden=advanced))
    for i, alias in enumerate(option.aliases):
        kind: Any = bool if bool in types else list[str]
        annotation = Annotated[kind | None, typer.Option(alias, hidden=True)]
        yield _parameter(f"{_identifier(flag)}_alias_{i}", annotation, None)


def _declared(
    flag: str, option: Option, types: tuple[Any, ...], keys: Sequence[str], *, hidden: bool
) -> tuple[Any, Any]:
    """Annotation and default of an option."""
    more: dict[str, Any] = {"help": option.help, "hidden": hidden}
    if hidden:
        more["rich_help_panel"] = ADVANCED
    if bool in types:
        return Annotated[bool, typer.Option(flag, **more)], False
    choices = "|".join(option.choices) if len(option.choices) <= SHOWN_CHOICES else "NAME"
    more["metavar"] = option.metavar or choices or METAVARS.get(types[0], "TEXT")
    if option.choices:
        more["autocompletion"] = lambda: list(option.choices)
    section, name = section_of(keys[0])
    default = section.__dataclass_fields__[name].default  # type: ignore[attr-defined]
    if default not in (None, ()):
        shown = plain(default)
        more["show_default"] = ",".join(shown) if isinstance(shown, list) else str(shown)
    kind: Any = list[str] if flag == "--weights" else str
    return Annotated[kind | None, typer.Option(flag, **more)], None
