"""The walls between the rooms: imports run one way, and torch stays where it belongs."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("errors", "settings", "cgroup", "confined", "syscall_filter", "turns", "throughput", "key_limits", "undisturbed"),
    ("transcription.core", "transcription.placement", "transcription.languages", "transcription.alignment_models"),
    ("transcription.stretches",),
    ("memory", "disk", "cores", "limits", "classic", "waiting", "transcription.vitals"),
    ("reservation", "access.keys", "access.addresses", "access.failures"),
    ("lanes",),
    (
        "telemetry",
        "admission",
        "fair_slots",
        "prices",
        "ffmpeg",
        "workfolder",
        "transcription.protocol",
        "transcription.words",
        "transcription.tokens",
        "transcription.language_tags",
        "transcription.alignment_text",
        "transcription.speakers",
        "transcription.planner",
        "transcription.seen_memory",
    ),
    ("transcription.journal", "transcription.child", "transcription.torch_process"),
    ("memory_watch",),
    ("metrics",),
    ("transcription.subtitle_units", "transcription.pcm", "downloads.urls", "downloads.proxy_messages"),
    ("downloads.local_copies", "downloads.objects"),
    ("transcription.subtitles", "transcription.text_filters", "recording", "transcription.weights"),
    ("transcription.styled_subtitles", "transcription.paragraphs", "transcription.documents"),
    ("transcription.formats", "transcription.models", "transcription.audio", "transcription.speech"),
    ("transcription.footprint", "transcription.sizing", "transcription.live_cutting", "transcription.live_sound"),
    ("transcription.pyannote_child", "transcription.whisper", "downloads.stored_files"),
    ("downloads.media", "downloads.extract"),
    ("downloads.object_media", "downloads.subtitled"),
    ("transcription.loaded_models", "transcription.alignment", "transcription.diarization"),
    ("downloads.egress", "downloads.ytdlp_child", "downloads.ytdlp", "transcription.engine_child"),
    ("transcription.torch_child",),
    ("downloads.fetch", "transcription.engine", "transcription.replicas", "transcription.scheduler"),
    ("transcription.word_alignment", "transcription.speaker_finder"),
    ("transcription.passing",),
    ("transcription.service", "transcription.upstream_answers"),
    ("transcription.upstream",),
    ("transcription.live", "transcription.live_session", "transcription.live_work"),
    ("jobs.model", "jobs.tables", "jobs.bells", "jobs.signatures"),
    ("jobs.turns", "jobs.database", "jobs.rows", "jobs.migrations", "jobs.uploads", "jobs.journal"),
    ("jobs.store", "jobs.leases", "jobs.crew", "jobs.deliveries", "jobs.vocabulary"),
    ("jobs.webhooks",),
    ("access",),
    ("jobs.sharing", "jobs.reaper", "jobs.sweeper", "jobs.fleet", "jobs.celery_queue"),
    ("jobs.runner", "jobs.fleet_metrics"),
    ("jobs.desk",),
    ("api",),
    ("wiring",),
    ("main", "planning", "worker", "command_line"),
)
"""From the ground up: a module imports from layers below it, or from its own."""

CHILDREN_WITH_TORCH = {
    "transcription/alignment.py",
    "transcription/diarization.py",
    "transcription/pyannote_child.py",
    "transcription/torch_child.py",
}


def modules() -> list[Path]:
    tops = list(ROOT.glob("*.py"))
    return sorted(
        tops
        + [
            path
            for room in ("access", "api", "command_line", "downloads", "jobs", "transcription")
            for path in (ROOT / room).rglob("*.py")
        ]
    )


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, *, as_command: bool = True) -> set[str]:
    """Every name that *path* imports, functions' bodies included; *as_command*: what only `python -m` runs, too."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    if not as_command:
        tree.body = [node for node in tree.body if not is_command(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_command(node: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__":`, which whoever imports the module never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse


def layer(name: str) -> int | None:
    """The layer of a module of ours; None for a library's. A package itself is empty: only what lies in it counts."""
    for number, names in enumerate(LAYERS):
        if any(name == one or name.startswith(f"{one}.") for one in names):
            return number
    return None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    """A room that reaches up can no longer be read, tested or run without what is above it."""
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    own = layer(name_of(path))
    assert own is not None, f"{name_of(path)} has no place yet: put it into LAYERS"
    above = {name for name in imported(path, as_command=False) if (found := layer(name)) is not None and found > own}
    assert not above


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_http_rooms_know_fastapi_and_only_children_know_torch(path: Path) -> None:
    """The service runs in 512 MB because torch is not in it."""
    place = path.relative_to(ROOT).as_posix()
    names = {name.split(".")[0] for name in imported(path)}
    if not place.startswith("api/") and place != "main.py":
        assert not names & {"fastapi", "starlette"}
    if place not in CHILDREN_WITH_TORCH:
        assert not names & {"torch", "torchaudio", "whisperx", "pyannote", "lightning"}


def test_every_module_is_packaged() -> None:
    """An installed server that lacks one ends at its first import."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["py-modules"]
    assert sorted(listed) == sorted(path.stem for path in ROOT.glob("*.py"))
