"""The commands that a person types, and the container's description, which no engine checks here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
import venv
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    *(
        path
        for path in sorted((ROOT / "scripts").iterdir())
        if path.is_file() and path.suffix == "" and path.name != "environment"
    ),
    ROOT / ".ci/run",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
INSTRUCTION = re.compile(r"^(\w+) (.*)$")


# --- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "scripts/environment"], ids=lambda path: path.name)
def test_scripts_are_plain_shell(script: Path) -> None:
    """macOS has bash 3.2 and some systems have dash: what they cannot read, they cannot run."""
    assert subprocess.run(["sh", "-n", script], capture_output=True, text=True).stderr == ""
    assert not re.search(r"\[\[|<<<|\bdeclare\b|\blocal\b|\$\{\w+(\^|,,)|=\(", script.read_text("utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_executed(script: Path) -> None:
    """git keeps the bit; without it the first command of the README fails."""
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").startswith("#!/bin/sh\n")


def test_serve_explains_itself_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """A typo must not start a download of eight gigabytes. Run from elsewhere: scripts work from any folder."""
    helped = subprocess.run([ROOT / "scripts/serve", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (helped.returncode, "slim" in helped.stdout) == (0, True)
    refused = subprocess.run([ROOT / "scripts/serve", "slin"], cwd=tmp_path, capture_output=True, text=True)
    assert (refused.returncode, "Usage" in refused.stderr) == (2, True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an environment that holds neither pip nor uv: whatever would be installed fails, and is seen."""
    (tmp_path / "requirements").mkdir()
    for name in ("slim", "full", "test"):
        (tmp_path / "requirements" / f"{name}.txt").write_text(f"# {name}\n")
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    return tmp_path


def environment(project: Path, name: str) -> subprocess.CompletedProcess[str]:
    script = f"set -eu; . {shlex.quote(str(ROOT / 'scripts/environment'))}; environment {name}"
    return subprocess.run(["sh", "-c", script], cwd=project, capture_output=True, text=True)


def stamp(project: Path, *names: str) -> None:
    lines = [f"{name} {sha256((project / f'requirements/{name}.txt').read_bytes()).hexdigest()}\n" for name in names]
    (project / ".venv/installed-requirements").write_text("".join(lines))


def test_nothing_is_installed_twice(project: Path) -> None:
    """A second start takes seconds: what is there is known by the hash of its requirements."""
    stamp(project, "slim", "full")
    done = environment(project, "full")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_changed_requirements_are_installed(project: Path) -> None:
    """After a pull that changes a pin, the old environment must not be used as if it were the new one."""
    stamp(project, "slim", "full")
    (project / "requirements/full.txt").write_text("# another pin\n")
    failed = environment(project, "full")
    assert failed.returncode == 1
    assert "Installing uv" in failed.stdout
    assert "uv could not be installed" in failed.stderr


def test_tests_are_not_content_with_the_servers_requirements(project: Path) -> None:
    """full lies within test, not the other way round."""
    stamp(project, "slim", "full")
    assert environment(project, "test").returncode == 1


def test_a_broken_environment_is_made_anew(project: Path) -> None:
    """A system upgrade takes away the Python that .venv leads to."""
    stamp(project, "slim")
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/nowhere/python")
    script = f". {shlex.quote(str(ROOT / 'scripts/environment'))}; make_venv"
    made = subprocess.run(
        ["sh", "-c", script], cwd=project, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )
    assert made.returncode == 0, made.stderr
    assert subprocess.run([project / ".venv/bin/python", "-c", ""]).returncode == 0
    assert not (project / ".venv/installed-requirements").exists()


def test_unsuitable_pythons_are_named_with_what_to_do(project: Path) -> None:
    """The commonest way to fail on a new machine."""
    tools = project / "tools"
    tools.mkdir()
    for tool in ("sh", "printf"):
        (tools / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
    (project / ".venv/bin/python").unlink()
    script = f"set -eu; . {shlex.quote(str(ROOT / 'scripts/environment'))}; make_venv"
    failed = subprocess.run(
        ["/bin/sh", "-c", script], cwd=project, capture_output=True, text=True, env={"PATH": str(tools)}
    )
    assert failed.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed" in failed.stderr


# --- requirements ----------------------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, set[str]]:
    """Package -> its pinned versions with their markers."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / f"requirements/{name}.txt").read_text("utf-8").splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9._-]*)==(.+?)\s*\\?$", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def package(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower().replace("_", "-").replace(".", "-")


def test_tests_run_with_what_is_served() -> None:
    """Else the tests would say nothing about the versions that people get."""
    full, test = pins("full"), pins("test")
    assert {name: test.get(name) for name in full} == full


@pytest.mark.parametrize("name", ["slim", "full", "test"])
def test_requirements_hold_what_the_project_asks_for(name: str) -> None:
    """A dependency added without scripts/lock would be absent on every other machine."""
    extras = {"slim": (), "full": ("full",), "test": ("full", "test", "check")}[name]
    groups = [PROJECT["project"]["dependencies"], *(PROJECT["project"]["optional-dependencies"][e] for e in extras)]
    assert {package(requirement) for group in groups for requirement in group} <= set(pins(name))


@pytest.mark.parametrize("name", ["slim", "full", "test"])
def test_every_pin_has_hashes_and_no_index(name: str) -> None:
    """What is installed is what was seen when it was pinned, from whatever index a machine uses."""
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert not re.search(r"https?://|--(extra-)?index-url", text)


def test_slim_has_no_torch() -> None:
    """The reason why there is a slim set."""
    assert not {"torch", "whisperx", "pyannote-audio"} & set(pins("slim"))


# --- container -------------------------------------------------------------------------------------------------------


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, its FROM first."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if match := INSTRUCTION.match(line.strip()):
            if match[1] == "FROM":
                current = found.setdefault(match[2].split(" AS ")[1], [])
            current.append((match[1], match[2]))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of the stages it stands on, the first one first."""
    own = stages()[stage]
    parent = own[0][1].split()[0]
    return [*(lineage(parent) if parent in stages() else []), *own]


def value(stage: str, instruction: str) -> str:
    """The last such instruction: the one that counts."""
    return [argument for name, argument in lineage(stage) if name == instruction][-1]


def variables(stage: str) -> dict[str, str]:
    text = " ".join(argument for name, argument in lineage(stage) if name == "ENV")
    return dict(word.split("=", 1) for word in shlex.split(text))


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    """The first thing on which a build fails."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for stage in stages().values():
        for name, argument in stage:
            if name == "COPY" and not argument.startswith("--from="):
                *sources, _ = argument.split()
                for source in sources:
                    assert list(ROOT.glob(source)), source
                    assert source in allowed, source


def test_all_code_is_in_the_image() -> None:
    """A package that is forgotten here is found missing in production only."""
    copied = " ".join(argument for name, argument in lineage("slim") if name == "COPY").split()
    assert {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]} <= set(copied)
    assert "*.py" in copied


def test_nothing_private_is_in_the_image() -> None:
    """The build context starts empty; a .env or a recording beside the code cannot slip in."""
    assert (ROOT / ".dockerignore").read_text("utf-8").splitlines()[1] == "*"


@pytest.mark.parametrize("target", ["slim", "full"])
def test_images_run_without_root_and_hear_the_stop_signal(target: str) -> None:
    """A shell as process 1 would keep SIGTERM to itself."""
    assert value(target, "USER") == "stenogate"
    command = [*json.loads(value(target, "ENTRYPOINT")), *json.loads(value(target, "CMD"))]
    assert command == ["python", "/app/deploy/container.py", "python", "main.py"]
    check = value(target, "HEALTHCHECK")
    assert json.loads(check[check.index("[") :])[-1] == "--healthy"


@pytest.mark.parametrize("target", ["slim", "full"])
def test_images_listen_to_all_and_keep_their_data_on_the_volume(target: str) -> None:
    """Behind 127.0.0.1 nobody reaches a container; that keys are needed then, the settings' own check says."""
    assert {"HOST": "0.0.0.0", "DATA_DIR": "/data"}.items() <= variables(target).items()
    assert f"requirements/{target}.txt" in (ROOT / "Dockerfile").read_text("utf-8")


def test_railway_builds_the_slim_image() -> None:
    """Railway has no setting for a stage and takes the last one; it refuses VOLUME, and numbers written as strings."""
    railway = json.loads((ROOT / "railway.json").read_text("utf-8"))
    assert (ROOT / railway["build"]["dockerfilePath"]).is_file()
    assert list(stages())[-1] == "slim"
    assert "VOLUME" not in [name for stage in stages().values() for name, _ in stage]
    assert railway["deploy"]["healthcheckPath"] == "/health"
    assert railway["deploy"]["restartPolicyType"] == "ON_FAILURE"
    assert all(isinstance(railway["deploy"][name], int) for name in ("healthcheckTimeout", "drainingSeconds"))


def test_one_version_of_uv_and_of_python_everywhere() -> None:
    """Else the image would be built with other tools than the ones that are tested."""
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    pinned = re.search(r"^UV_VERSION=(.+)$", (ROOT / "scripts/environment").read_text("utf-8"), re.M)
    assert pinned is not None
    assert re.findall(r"uv==(\S+)", dockerfile) == [pinned[1]]
    assert set(re.findall(r"python:?(3\.\d+)", dockerfile)) == {"3.11"}


def container(*arguments: str, data_dir: Path, port: int = 1) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "DATA_DIR": str(data_dir), "PORT": str(port)}
    return subprocess.run(
        [sys.executable, ROOT / "deploy/container.py", *arguments], env=variables, capture_output=True, text=True
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_volume_that_is_roots_is_handed_over_and_root_given_up() -> None:
    """Railway mounts volumes as root's; a link inside must not hand over what it leads to."""
    # Not tmp_path: pytest closes that to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        data, secret = folder / "data", folder / "secret"
        data.mkdir()
        secret.write_text("root's")
        (data / "link").symlink_to(secret)
        started = container("id", data_dir=data)
        assert started.stdout == "uid=10001 gid=10001 groups=10001\n", started.stderr
        assert data.stat().st_uid == 10001
        assert (data / "link").lstat().st_uid == 10001
        assert secret.stat().st_uid == 0


def test_an_unhealthy_server_is_told_from_a_healthy_one(tmp_path: Path) -> None:
    """Nobody listens on port 1."""
    assert container("--healthy", data_dir=tmp_path).returncode == 1
