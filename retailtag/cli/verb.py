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
from retailtag.ranks import Ranks
from retailtag.settings import BakeoffSettings, default_of, option_of, section_of, values_of
from retailtag.settings_file import read_settings
from retailtag.verbs import RARE, flags_of, resolve

ADVANCED = "Advanced options"
TOGETHER = ("finetune",)  # verbs that processes of torchrun do together
ONE_BACKBONE = ("extract", "probe", "finetune")  # verbs that have no default backbone
# options that are repeated, not comma-separated
LISTS = ("weights", "images", "allow_root", "name")
RunsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Predictions files, or folders of runs or bake-offs."),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a probe, fine-tune or bake-off.")
]
ModelArgument = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Folder of an export, probe, fine-tune or bake-off."),
]
SHOWN_CHOICES = 3  # listed instead of a metavar; more would widen the column
METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
CATALOGUE = "catalogue"  # parameter of the commands whose first argument is the catalogue
EPILOG = "--help-all lists the advanced options; retailtag init writes all settings to a file."


def _shared() -> Iterator[inspect.Parameter]:
    """Options of every command."""
    hidden: dict[str, Any] = {"rich_help_panel": ADVANCED, "hidden": True}
    config = typer.Option("--config", metavar="TOML", help="File of settings; options override it.")
    one = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as finetune.layer_decay=0.8; repeatable.",
    )
    as_json = typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
    quiet = typer.Option("--quiet", "-q", help="Print nothing but errors (and --json).")
    verbose = typer.Option("--verbose", help="Also print the settings in force.", **hidden)
    log = typer.Option("--log-file", help="Append news and progress to a file.", **hidden)
    yield _parameter("config", Annotated[Path | None, config], None)
    yield _parameter("set", Annotated[list[str] | None, one], None)
    yield _parameter("json", Annotated[bool, as_json], False)
    yield _parameter("quiet", Annotated[bool, quiet], False)
    yield _parameter("verbose", Annotated[bool, verbose], False)
    yield _parameter("log_file", Annotated[Path | None, log], None)


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

        def called(context: typer.Context, **values: Any) -> None:
            # Defaults are declared for the help alone: the value in force may come from --set,
            # --config or the environment, so only what the user typed counts as given.
            given = {
                name: value
                for name, value in values.items()
                if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
            }
            try:
                call = _call(verb, path, given)
            except UsageError as error:
                raise UsageError(f"{str(error).rstrip('.')}; see {path} --help.") from None
            with call.output.busy(path):
                function(call, **{p.name: values[p.name] for p in own})

        positional = [p for p in own if _is_argument(p)]
        options = [p for p in own if not _is_argument(p)]
        first = [_parameter("context", typer.Context, inspect.Parameter.empty)]
        if catalogue:
            first.append(_parameter(CATALOGUE, _argument(), None))
        generated = [p for flag, keys in flags.items() for p in _options(verb, flag, keys)]
        parameters = [*first, *positional, *options, *generated, *_shared()]
        ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        # typer asks for the signature, not for the code: this one lists both kinds of options.
        called.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        called.__doc__ = function.__doc__
        called.__annotations__ = {}  # typer evaluates these, and **values has none of its own
        app.command(name or verb, epilog=EPILOG)(called)
        return function

    return register


def reveal_advanced(command: Any) -> None:
    """Let the help of a command and of all below it list the advanced options."""
    for parameter in command.params:
        # earlier spellings are hidden too, but in no panel: they stay unlisted
        if getattr(parameter, "rich_help_panel", None) == ADVANCED:
            parameter.hidden = False
    for child in getattr(command, "commands", {}).values():
        reveal_advanced(child)


def _call(verb: str, path: str, given: Mapping[str, Any]) -> Call:
    """Settings and output from the options that the command line gave."""
    options = {name: _value(name, keys, given) for name, keys in _identifiers(verb).items()}
    file = read_settings(given["config"]) if "config" in given else {}
    sets = list(given.get("set", ()))
    # score and compare have --catalogue among their settings; elsewhere it is the argument
    if CATALOGUE in given and CATALOGUE not in options:
        sets.append(f"catalog.path={given[CATALOGUE]}")
    settings, named = resolve(verb, None, options, file=file, sets=sets)
    output = Output(
        json=given.get("json", False),
        quiet=given.get("quiet", False),
        log_file=given.get("log_file"),
    )
    if not speaks(verb):
        output = Output(quiet=True)
    if given.get("verbose"):
        in_force = dict(values_of(settings))
        for key in sorted(named):
            output.progress.say(f"{key} = {plain(in_force[key])}")
    return Call(settings, named, output, path)


def speaks(verb: str) -> bool:
    """Whether this process prints: of several that do a verb together, the first one."""
    return verb not in TOGETHER or Ranks.given().is_first


def _identifiers(verb: str) -> dict[str, tuple[str, ...]]:
    """Settings of a verb by the name of the parameter that gives them."""
    return {_identifier(flag): keys for flag, keys in flags_of(verb).items()}


def _value(name: str, keys: Sequence[str], given: Mapping[str, Any]) -> Any:
    """Value of an option under its own or an earlier spelling; None if it was not given."""
    aliases = range(len(option_of(keys[0]).aliases))
    values = [given[n] for n in (name, *(f"{name}_alias_{i}" for i in aliases)) if n in given]
    # A list of names may be given as one text, by repeating an earlier spelling, or both ways.
    if values and name not in LISTS and any(isinstance(value, list) for value in values):
        return ",".join(v if isinstance(v, str) else ",".join(v) for v in values)
    return values[0] if values else None


def _is_argument(parameter: inspect.Parameter) -> bool:
    marks = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(mark, typer.models.ArgumentInfo) for mark in marks)


def _argument() -> Any:
    text = "Manifest (CSV, Parquet, JSON lines) or folder; may come from --config."
    return Annotated[Path | None, typer.Argument(metavar="CATALOGUE", help=text)]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _identifier(flag: str) -> str:
    return flag[2:].replace("-", "_")


def _options(verb: str, flag: str, keys: Sequence[str]) -> Iterator[inspect.Parameter]:
    """The option of a setting, and a hidden one for each earlier spelling."""
    option = option_of(keys[0])
    types = types_of(*section_of(keys[0]))
    yield _parameter(_identifier(flag), *_declared(verb, flag, option, types, keys))
    for i, alias in enumerate(option.aliases):
        kind: Any = bool if bool in types else list[str]
        annotation = Annotated[kind | None, typer.Option(alias, hidden=True)]
        yield _parameter(f"{_identifier(flag)}_alias_{i}", annotation, None)


def _declared(
    verb: str, flag: str, option: Option, types: tuple[Any, ...], keys: Sequence[str]
) -> tuple[Any, Any]:
    """Annotation and default of an option."""
    hidden = flag in RARE.get(verb, ()) or all(option_of(key).advanced for key in keys)
    more: dict[str, Any] = {"help": option.help, "hidden": hidden}
    if hidden:
        more["rich_help_panel"] = ADVANCED
    if bool in types:  # a flag switches on; --set KEY=false switches off what a file has on
        return Annotated[bool, typer.Option(flag, **more)], False
    # Everything else arrives as text: the settings convert it, so that a bad value gets the same
    # sentence here, in a file and from Python.
    choices = "|".join(option.choices) if len(option.choices) <= SHOWN_CHOICES else "NAME"
    more["metavar"] = option.metavar or choices or METAVARS.get(types[0], "TEXT")
    if option.choices:
        more["autocompletion"] = lambda: list(option.choices)
    kind: Any = list[str] if _identifier(flag) in LISTS else str
    shown = "" if verb in ONE_BACKBONE and flag == "--backbones" else default_text(keys[0])
    return Annotated[kind | None, typer.Option(flag, **more)], shown or None


def default_text(key: str) -> str:
    """Default of a setting as it would be given on the command line; empty: none."""
    value = plain(default_of(key))
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else str(value)
