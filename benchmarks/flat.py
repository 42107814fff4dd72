"""Hours of speech in one request: the memory they take must be that of minutes."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import ask
from benchmarks.plots import Panel, draw
from benchmarks.processes import MemoryWatch, TreeMemory
from benchmarks.results import memory_cells
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown
from ffmpeg import FFmpeg

SHORT_S = 600.0
QUICK_SHORT_S, QUICK_LONG_S = 60.0, 300.0
EVERY_S = 0.2
MOST_APART_MB = 50


@dataclass(frozen=True, slots=True)
class Heard:
    """One file through a server of its own."""

    name: str
    audio_s: float
    wall_s: float
    peak: TreeMemory
    samples: tuple[tuple[float, int], ...]
    """(seconds since the start, resident bytes)."""


def looped(clip: Clip, duration_s: float, folder: Path) -> Clip:
    """The recording again and again until it lasts *duration_s*: its own packets, nothing is encoded anew."""
    path = folder / f"{duration_s:.0f}{clip.path.suffix}"
    subprocess.run(
        [
            *(FFmpeg.locate().path, "-nostdin", "-v", "error", "-stream_loop", "-1", "-i", clip.path),
            *("-t", str(duration_s), "-c", "copy", path),
        ],
        check=True,
    )
    return Clip(path, f"{duration_s / 60:.0f} min", clip.text, clip.language, duration_s)


def hear(clip: Clip) -> Heard:
    with Server(MODEL) as server, MemoryWatch(server.pid, EVERY_S) as watch:
        wall_s = ask(server.hear, clip).seconds
    samples = tuple((second, memory.rss) for second, memory in watch.samples)
    return Heard(clip.name, clip.duration_s, wall_s, watch.peak, samples)


def measure(plan: Plan) -> Report:
    long = SpeechSet(speech_dir()).long()
    lengths_s = (QUICK_SHORT_S, QUICK_LONG_S) if plan.quick else (SHORT_S, plan.hours * 3600)
    both = []
    for length_s in lengths_s:
        with tempfile.TemporaryDirectory(prefix="stenogate-flat-") as folder:
            say(f"flat: {length_s / 60:.0f} min")
            both.append(hear(looped(long, length_s, Path(folder))))
    cells = [
        [each.name, f"{each.wall_s:.0f}", f"{each.audio_s / each.wall_s:.1f}", *memory_cells(each.peak)]
        for each in both
    ]
    minutes, hours = both
    title = f"Memory over {hours.name} of speech beside {minutes.name}"
    lines = {each.name: [(second, rss / 2**20) for second, rss in each.samples] for each in both}
    apart_mb = (hours.peak.rss - minutes.peak.rss) / 1e6
    return Report(
        title,
        [markdown(["file", "wall s", "audio s / s", "peak RSS MiB", "peak PSS MiB"], cells)],
        [
            Aim(f"peak RSS of {hours.name} above that of {minutes.name}", apart_mb, most=MOST_APART_MB, unit="MB"),
            Aim("that peak, over the other", hours.peak.rss / minutes.peak.rss),
        ],
        {"files": [asdict(each) for each in both]},
        draw(plan.plots, "flat", title, "seconds", [Panel("RSS MiB, server and children", lines, marked=False)]),
    )
