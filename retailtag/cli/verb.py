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
from retailtag.settings import BakeoffSettings, default_of, option_of, section_of, values_of
from retailtag.settings_file import read_settings
from retailtag.verbs import RARE, flags_of, resolve

ADVANCED = "Advanced options"
LISTS = ("weights",)  # options that are repeated, not comma-separated
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
    path : str
        The command itself, such as ``retailtag probe``.
    """

    settings: BakeoffSettings
    given: set[str]
    output: Output
    path: str

    @property
    def catalogue(self) -> Path:
        """The catalogue; `UsageError` if none was named."""
        if self.settings.catalog.path is None:
            raise UsageError(f"CATALOGUE is missing; see {self.path} --help.")
        return self.settings.catalog.path

    @property
    def new_cutoffs(self) -> str | None:
        """Cut-offs that the user gave; None: those that the predictions record."""
        return self.settings.catalog.cutoffs if "catalog.cutoffs" in self.given else None

    def require(self, key: str) -> None:
        """Raise `UsageError` unless the user gave a setting."""
        if key not in self.given:
            raise UsageError(
                f"--{key} is missing; name one, such as demo:cnn; see {self.path} --help."
            )


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
    words = ("retailtag", app.info.name, name or verb)
    path = " ".join(dict.fromkeys(map(str, words)))

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        flags = flags_of(verb)

        def called(**values: Any) -> None:
            try:
                call = _call(verb, path, values, has_catalogue=catalogue)
            except UsageError as error:
                raise UsageError(f"{str(error).rstrip('.')}; see {path} --help.") from None
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


def _call(
    verb: str,
    path: str,
    values: Mapping[str, Any],
    *,
    has_catalogue: bool,
) -> Call:
    """Settings and output from what the command line gave."""
    named = ((_identifier(flag), keys) for flag, keys in flags_of(verb).items())
    options = {name: _given(name, keys, values) for name, keys in named}
    file = read_settings(values["config"]) if values["config"] else {}
    sets = list(values["set"] or ())
    if has_catalogue and values["catalogue"] is not None:
        sets.append(f"catalog.path={values['catalogue']}")
    settings, given = resolve(verb, None, options, file=file, sets=sets)
    output = Output(values["json"], values["quiet"], log_file=values["log_file"])
    if values["verbose"]:
        in_force = dict(values_of(settings))
        for key in sorted(given):
            output.progress.say(f"{key} = {plain(in_force[key])}")
    return Call(settings, given, output, path)


def _given(name: str, keys: Sequence[str], values: Mapping[str, Any]) -> Any:
    """Value of an option under its own or an earlier spelling; None if it was not given."""
    spellings = [name, *(f"{name}_alias_{i}" for i in range(len(option_of(keys[0]).aliases)))]
    given = [values[s] for s in spellings if values[s] not in (None, False, [])]
    if given and name not in LISTS and any(isinstance(value, list) for value in given):
        return ",".join(v if isinstance(v, str) else ",".join(v) for v in given)
    return given[0] if given else None


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
    default = default_of(keys[0])
    if default not in (None, ()):
        shown = plain(default)
        more["show_default"] = ",".join(shown) if isinstance(shown, list) else str(shown)
    kind: Any = list[str] if _identifier(flag) in LISTS else str
    return Annotated[kind | None, typer.Option(flag, **more)], None
