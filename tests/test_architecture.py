"""The rules of the house: directions of imports, and what starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "retailtag"

# A package may import itself and the packages named here; everything may import the base.
BASE = {
    "arrow",
    "artefacts",
    "copies",
    "errors",
    "progress",
    "files",
    "lock",
    "npz",
    "remote",
    "statistics",
    "fields",
    "settings",
    "version",
    "display",
    "memory",
    "neighbours",
    "tuning_scores",
    "ranks",
    "calibration",
}
DATA = BASE | {"images", "catalog", "store", "predictions"}
MAY_IMPORT = {
    "__main__": {"cli"},
    "allocator": set(),
    "version": set(),
    "display": set(),
    "errors": set(),
    "progress": set(),
    "files": {"errors", "remote"},
    "remote": {"errors"},
    "copies": {"errors", "files", "remote"},
    "arrow": {"errors", "files", "remote"},
    "artefacts": {"errors", "files"},
    "tuning_scores": {"artefacts", "errors"},
    "calibration": {"artefacts"},
    "lock": {"errors", "files"},
    "npz": {"errors"},
    "memory": {"errors"},
    "neighbours": set(),
    "ranks": {"errors"},
    "statistics": {"errors"},
    "fields": {"errors", "remote"},
    "settings": {"errors", "fields"},
    "settings_file": BASE,
    "verbs": BASE,
    "compute": BASE,
    "context": DATA | {"compute"},
    "images": BASE,
    "catalog": BASE | {"images"},
    "store": BASE,
    "predictions": BASE,
    "backbones": BASE | {"images", "store"},
    "demo": BASE | {"backbones"},
    "thresholds": BASE,
    "probes": BASE,
    "finetuning": DATA | {"backbones"},
    "scoring": DATA | {"backbones"},  # names of models
    "report": DATA | {"backbones", "scoring"},
    "tagger": DATA | {"backbones", "probes", "finetuning"},
    # an actor of Ray is a process of its own, as the program is
    "extraction": DATA | {"backbones", "compute", "context", "allocator"},
}
# the demo is found by a registry; what a verb uses is known to the API and the command line
LOWER = set(MAY_IMPORT) - {"__main__", "demo", "verbs", "settings_file"}
MAY_IMPORT["runs"] = LOWER
MAY_IMPORT["bakeoffs"] = LOWER | {"runs"}
MAY_IMPORT["outcomes"] = LOWER | {"runs", "bakeoffs"}
MAY_IMPORT["inputs"] = LOWER | {"runs", "bakeoffs", "outcomes", "verbs", "settings_file"}
MAY_IMPORT["api"] = MAY_IMPORT["inputs"] | {"inputs"}
MAY_IMPORT["cli"] = MAY_IMPORT["api"] | {"api"}
ONLY_IN = {"typer": {"cli"}, "rich": {"cli", "report"}, "matplotlib": {"report"}}


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


def _package(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def _imports(path):
    """Every absolute module name that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "retailtag":
                yield from (f"retailtag.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_one_direction(path):
    package = _package(path)
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top in ONLY_IN:
            assert package in ONLY_IN[top], f"{path} imports {name}"
        if top == "retailtag" and package:
            other = rest.split(".")[0]
            assert other == package or other in MAY_IMPORT[package], (
                f"{package} must not import {other}"
            )


def test_only_the_registry_names_the_demo():
    outside = [path for path in _modules() if _package(path) != "demo"]
    for path in outside:
        assert not any(name.startswith("retailtag.demo") for name in _imports(path)), path
    naming = [path for path in outside if '"retailtag.demo' in path.read_text(encoding="utf-8")]
    assert naming == [PACKAGE / "backbones" / "registry.py"]


def _graph():
    """Modules of the package, each with those that it imports, TYPE_CHECKING and functions too."""
    names = {
        ".".join(("retailtag", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in _modules()
    }
    graph = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & set(names) or {node.module}
        graph[name] = (found & set(names)) - {name}
    return graph


def test_no_module_imports_itself_through_others():
    graph = _graph()
    while leaves := {name for name, others in graph.items() if not others & set(graph)}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert not graph, f"import circles among: {', '.join(sorted(graph))}"


def test_every_package_has_a_rule():
    assert {_package(path) for path in _modules()} - {""} == set(MAY_IMPORT)


def _loaded_by(code):
    """Top-level modules in a fresh interpreter after `code`."""
    program = f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_offers_its_api_and_nothing_shadows_it():
    import retailtag

    names = dir(retailtag)
    assert len(names) == len(set(names)) == 36
    assert all(getattr(retailtag, name) is not None for name in names)
    submodules = {path.stem for path in PACKAGE.iterdir()}
    assert not submodules & set(names)


def test_importing_the_package_loads_no_library():
    heavy = {"torch", "numpy", "pyarrow", "PIL", "rich", "typer"}
    assert not _loaded_by("import retailtag; retailtag.ProbeSettings(); dir(retailtag)") & heavy


def test_help_of_every_command_starts_without_heavy_imports():
    loaded = _loaded_by(
        "from retailtag.cli.main import run\n"
        "names = 'extract probe finetune score compare bakeoff predict demo catalog features'\n"
        "names = names.split()\n"
        "for name in names:\n"
        "    assert run([name, '--help']) == 0\n"
        "assert run(['--help']) == 0"
    )
    heavy = {"torch", "timm", "open_clip", "sklearn", "matplotlib", "pyarrow", "numpy", "PIL"}
    heavy |= {"fsspec", "s3fs", "aiohttp"}
    assert not loaded & heavy


def test_scoring_needs_no_torch(tmp_path):
    assert "torch" not in _loaded_by(
        "import retailtag.scoring.files, retailtag.catalog.readers, retailtag.cli.score, "
        "retailtag.cli.compare, retailtag.runs.foreign, retailtag.api, retailtag.outcomes"
    )
