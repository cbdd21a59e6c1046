"""The container files agree with the program and with one another."""

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from retailtag.cli.main import app

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "serving"


@pytest.fixture
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def test_prometheus_scrapes_the_server_with_its_key(compose):
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    name, _, port = target.partition(":")
    assert name in compose["services"]
    assert f"EXPOSE {port}" in (FOLDER / "Dockerfile").read_text().splitlines()
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    for service in compose["services"].values():
        assert secret.name in service["secrets"]
    assert secret.name in compose["secrets"]


def test_only_this_machine_reaches_the_ports(compose):
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_the_container_files_name_exists(compose):
    build = compose["services"]["retailtag"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    mounts = [volume.partition(":")[0] for volume in compose["services"]["prometheus"]["volumes"]]
    for mount in mounts:
        assert (FOLDER / mount).is_file() or mount in compose["volumes"]
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()


def test_the_container_runs_a_command_that_exists():
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lists = {
        kind: re.findall(r'"([^"]*)"', re.search(rf"^{kind} (\[.*\])$", text, re.MULTILINE)[1])
        for kind in ("ENTRYPOINT", "CMD")
    }
    program, verb = lists["ENTRYPOINT"]
    assert program == "retailtag"
    command = typer.main.get_command(app).commands[verb]
    command.make_context(verb, lists["CMD"])
