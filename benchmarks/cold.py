"""Many requests at once for a model that is not loaded: it is loaded once, and all are answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import Heard, ask_all, attempt
from benchmarks.server import Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown
from benchmarks.weights import weights_folder

ASKED = "base"
CALLERS = 20


@dataclass(frozen=True, slots=True)
class Start:
    """One server, asked for a model that it had not loaded; then again."""

    engines: int
    loads: int
    failures: tuple[str, ...]
    cold_s: float
    loaded_s: float


def all_at_once(server: Server, clips: Sequence[Clip]) -> tuple[float, list[Heard]]:
    """(seconds until the last answer, answers)"""
    started = time.perf_counter()
    heard = ask_all(
        lambda clip: server.client.transcribe(clip, ASKED, clip.language).text, clips, at_once=len(clips), way=attempt
    )
    return time.perf_counter() - started, heard


def one_start(clips: Sequence[Clip]) -> Start:
    with Server(MODEL, log_level="info") as server:
        cold_s, cold = all_at_once(server, clips)
        loads = [event for event in server.events("model loaded") if event.get("model") == ASKED]
        loaded_s, loaded = all_at_once(server, clips)
        failures = tuple(heard.failure for heard in (*cold, *loaded) if heard.failure)
        return Start(len(server.engines()), len(loads), failures, cold_s, loaded_s)


def aims(starts: Sequence[Start]) -> list[Aim]:
    failed = sum(len(start.failures) for start in starts)
    return [
        Aim("requests not answered with a text", failed, most=0, unit=""),
        Aim(f"loads of {ASKED} an engine", max(start.loads / start.engines for start in starts), most=1.0, unit=""),
        Aim("wall time, model not loaded over loaded", median(start.cold_s / start.loaded_s for start in starts)),
    ]


def measure(plan: Plan) -> Report:
    weights_folder(ASKED)  # put together before the clock starts
    clips = SpeechSet(speech_dir()).short(CALLERS)
    starts = []
    for repeat in range(plan.repeats):
        say(f"cold, repeat {repeat + 1}")
        starts.append(one_start(clips))
    cells = [
        [
            str(number),
            f"{2 * CALLERS - len(start.failures)} of {2 * CALLERS}",
            f"{start.loads} in {start.engines}",
            f"{start.cold_s:.1f}",
            f"{start.loaded_s:.1f}",
            ", ".join(start.failures),
        ]
        for number, start in enumerate(starts, 1)
    ]
    return Report(
        f"{CALLERS} requests at once for {ASKED}, which is not loaded, then for {ASKED} once more",
        [
            markdown(
                ["start", "answered", "loads in engines", "wall s, not loaded", "wall s, loaded", "problems"], cells
            )
        ],
        aims(starts),
        {"starts": [asdict(start) for start in starts]},
    )
