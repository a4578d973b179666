"""Examples that no test runs: their documents parse, what they name is there, their commands are commands."""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import hpo as library
from tests.support.command_line import check_command, command_of

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "examples" / "kubernetes"
TEXTS = [
    ROOT / "docs/get-started.md",
    ROOT / "docs/your-data.md",
    ROOT / "docs/many-machines.md",
    ROOT / "docs/verdicts.md",
    ROOT / "examples/slurm/README.md",
    ROOT / "examples/slurm/workers.sbatch",
    ROOT / "examples/kubernetes/README.md",
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documents() -> list[dict[str, Any]]:
    return [
        document
        for name in ("postgresql.yaml", "workers.yaml")
        for document in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]


def of_kind(kind: str) -> list[dict[str, Any]]:
    found = [document for document in documents() if document["kind"] == kind]
    assert found
    return found


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def commands_of(text: str) -> list[list[str]]:
    """The `hpo …` lines of scripts, in Markdown of shell blocks; comments and redirections left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) or [text]
    found = []
    for line in "\n".join(blocks).splitlines():
        match = re.match(r"^(?:uv run )?hpo ([a-z].*)$", line.strip())
        if match:
            words = shlex.split(match[1].split(" > ")[0].rstrip("&"), comments=True)
            found.append([re.sub(r"\$\{.*?\}|\$\w+", "x", word) for word in words])
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_examples_is_one(path: Path) -> None:
    commands = commands_of(path.read_text())
    assert commands or "kubernetes" in str(path)
    for words in commands:
        check_command(words)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_sentence_is_one(path: Path) -> None:
    for span in re.findall(r"`hpo\s([a-z][^`]*)`", path.read_text()):
        name, *words = span.split()
        known = {option for param in command_of(name).params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= known, span


def test_a_command_that_is_none_would_be_found() -> None:
    with pytest.raises(click.UsageError, match="No such command 'wrk'"):
        check_command(["wrk"])
    with pytest.raises(click.UsageError):
        check_command(["worker", "--idle", "30m"])
    with pytest.raises(click.UsageError):
        check_command(["worker", "--idle-timeout", "soon"])


def test_the_commands_of_containers_are_commands() -> None:
    given = [each["args"] for job in of_kind("Job") for each in containers(job) if "args" in each]
    assert [words[0] for words in given] == ["create", "worker"]
    for words in given:
        check_command(words)


def test_every_document_says_what_it_is() -> None:
    for document in documents():
        assert document["apiVersion"] in ("v1", "apps/v1", "batch/v1")
        assert document["metadata"]["name"].startswith("hpo-")


def test_secrets_volumes_and_variables_are_there() -> None:
    (secret,) = of_kind("Secret")
    (claim,) = of_kind("PersistentVolumeClaim")
    known = {f"HPO_{option.upper()}" for option in ("storage", "checkpoints", "out", "cache")}
    for document in [*of_kind("Job"), *of_kind("StatefulSet")]:
        spec = document["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        volumes |= {each["metadata"]["name"] for each in document["spec"].get("volumeClaimTemplates", [])}
        claimed = {
            v["persistentVolumeClaim"]["claimName"]
            for v in spec.get("volumes", [])
            if len(v) == 2 and "persistentVolumeClaim" in v
        }
        assert claimed <= {claim["metadata"]["name"], "images"}
        for container in containers(document):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for variable in container["env"]:
                assert variable["name"] in known or not variable["name"].startswith("HPO_")
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["name"] == secret["metadata"]["name"]
                    assert reference["key"] in secret["stringData"]


def test_the_database_url_is_the_one_of_the_server() -> None:
    from hpo.storage import database

    (secret,), (service,), (server,) = of_kind("Secret"), of_kind("Service"), of_kind("StatefulSet")
    url = database.parse(secret["stringData"]["url"])
    assert url.password == secret["stringData"]["password"]
    assert url.host == service["metadata"]["name"] == server["spec"]["serviceName"]
    settings = {each["name"]: each.get("value") for each in containers(server)[0]["env"]}
    assert (url.username, url.database) == (settings["POSTGRES_USER"], settings["POSTGRES_DB"])


def test_the_array_job_asks_for_what_it_counts_on() -> None:
    text = (ROOT / "examples/slurm/workers.sbatch").read_text()
    options = set(re.findall(r"^#SBATCH (--[a-z-]+)", text, re.M))
    assert {"--array", "--requeue", "--signal", "--open-mode", "--time"} <= options


def test_no_module_hides_a_name_of_the_library() -> None:
    modules = {module.name for module in pkgutil.iter_modules(library.__path__)}
    assert not modules & set(library.__all__)


def test_what_benchmarks_print_can_be_read_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import plots
    import tables

    tables.heading("two runs")
    tables.print_table([{"a": 1, "b": 0.123456}, {"a": 2, "b": "x, y"}, {"c": 3}])
    file = tmp_path / "printed.csv"
    file.write_text(capsys.readouterr().out)
    assert tables.read_tables(file) == [[{"a": "1", "b": "0.1235"}, {"a": "2", "b": "x, y"}], [{"c": "3"}]]
    plots.main(tmp_path / "drawn.svg")
    # the picture that is shown says what the tables say; matplotlib's versions may place it otherwise
    shown, drawn = (file.read_text() for file in (plots.PICTURE, tmp_path / "drawn.svg"))
    assert re.findall(r">([^<]+)</text>", shown) == re.findall(r">([^<]+)</text>", drawn)
