"""Hours of speech in one request: the memory they take must be that of minutes.

One server hears the recording (13.9 minutes), then the same again and again, then the hours made of it. The control is
the recording repeated: a new process's heap grows for its first minutes of work, whatever the length of what it hears.
"""

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

TIMES = 6
QUICK_SHORT_S, QUICK_LONG_S = 60.0, 300.0
EVERY_S = 0.2
MOST_APART_MB = 50


@dataclass(frozen=True, slots=True)
class Heard:
    """What a server held while it heard some recordings one after another."""

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


def hear(server: Server, name: str, clip: Clip, times: int = 1) -> Heard:
    say(f"flat: {name}")
    with MemoryWatch(server.pid, EVERY_S) as watch:
        wall_s = sum(ask(server.hear, clip).seconds for _ in range(times))
    samples = tuple((second, memory.rss) for second, memory in watch.samples)
    return Heard(name, clip.duration_s * times, wall_s, watch.peak, samples)


def measure(plan: Plan) -> Report:
    recording = SpeechSet(speech_dir()).long()
    short_s, long_s = (QUICK_SHORT_S, QUICK_LONG_S) if plan.quick else (recording.duration_s, plan.hours * 3600)
    with tempfile.TemporaryDirectory(prefix="stenogate-flat-") as folder, Server(MODEL) as server:
        short, long = (looped(recording, length_s, Path(folder)) for length_s in (short_s, long_s))
        first = hear(server, f"{short.name}, the first", short)
        again = hear(server, f"{short.name}, {TIMES} times more", short, TIMES)
        hours = hear(server, long.name, long)
    heard = (first, again, hours)
    cells = [
        [each.name, f"{each.wall_s:.0f}", f"{each.audio_s / each.wall_s:.1f}", *memory_cells(each.peak)]
        for each in heard
    ]
    title = f"Memory over {hours.name} of speech beside {short.name}"
    lines = {each.name: [(second, rss / 2**20) for second, rss in each.samples] for each in heard}
    apart_mb = (hours.peak.rss - again.peak.rss) / 1e6
    return Report(
        title,
        [markdown(["recordings", "wall s", "audio s / s", "peak RSS MiB", "peak PSS MiB"], cells)],
        [
            Aim(f"peak RSS of {hours.name} above that of {again.name}", apart_mb, most=MOST_APART_MB, unit="MB"),
            Aim(f"above that of {first.name}", (hours.peak.rss - first.peak.rss) / 1e6, unit="MB"),
        ],
        {"heard": [asdict(each) for each in heard]},
        draw(plan.plots, "flat", title, "seconds", [Panel("RSS MiB, server and children", lines, marked=False)]),
    )
