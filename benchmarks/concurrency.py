"""How many recordings at once this server takes best: sends some at each level, and says what to set.

Asks the server at --server. Without it: the one at http://127.0.0.1:8000, or, where nobody answers there, one that is
started for this run (on the CPU, with the model of MODEL_SIZE) and ends with it. Recordings come from --file and --dir;
without them they are the English clips in SPEECH_DIR, else the sample call in the pyannote-audio package. They are read
where they lie. One is transcribed before the clock starts.

The key: --key, else STENOGATE_API_KEY, else, for a server on this machine, the one it has made itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.concurrency_calls import Asked, ask
from benchmarks.concurrency_levels import Level, Usage, level_of
from benchmarks.concurrency_report import Measured, plot
from benchmarks.concurrency_server import USUAL_ADDRESS, CannotMeasure, Target, is_here, opened, watched
from benchmarks.experiment import say
from benchmarks.machine import others_load
from benchmarks.server import ServerFailed
from benchmarks.speech_set import SpeechSet, SpeechSetMissing, speech_dir

ALL_LEVELS = (1, 2, 4, 6, 8)
MOST_AT_ONCE = 256
LEAST_REQUESTS = 16
"""At each level, so that levels of --test-all do the same work."""
PATIENCE = 5
MEDIA = ("aac", "aif", "aiff", "flac", "m4a", "mkv", "mov", "mp3", "mp4", "oga", "ogg", "opus", "wav", "webm", "wma")
"""What is taken from a folder, by the ends of names; --file takes any."""


# --- what is asked for -----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(
        prog="scripts/test_concurrency.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    levels = asked.add_mutually_exclusive_group(required=True)
    levels.add_argument(
        "--test-all", dest="levels", action="store_const", const=ALL_LEVELS, help="1, 2, 4, 6 and 8 at once"
    )
    levels.add_argument(
        "--concurrent", dest="levels", type=_at_once, nargs="+", metavar="N", help="so many at once; several: each"
    )
    asked.add_argument("--server", type=_address, metavar="URL", help=f"default: {USUAL_ADDRESS}")
    asked.add_argument("--key", help="the server's API key")
    asked.add_argument("--model", metavar="NAME", help="model_size of each request (default: the server's)")
    asked.add_argument("--file", type=_file, action="append", default=[], help="may be given several times")
    asked.add_argument("--dir", type=_folder, action="append", default=[], help="all recordings in it and below")
    asked.add_argument(
        "--requests", type=_count, metavar="N", help=f"at each level (default: {LEAST_REQUESTS}, or twice the level)"
    )
    asked.add_argument(
        "--ramp", type=_seconds, default=0.0, metavar="S", help="spread the first requests of a level over S seconds"
    )
    asked.add_argument(
        "--patient",
        type=_count,
        nargs="?",
        const=PATIENCE,
        default=0,
        metavar="N",
        help=f"after 429 and 503 wait as Retry-After says and send again, N times at most (default: {PATIENCE})",
    )
    asked.add_argument("--json", action="store_true", help="everything as JSON in place of tables")
    asked.add_argument("--plot", type=_picture, metavar="OUT.png", help="draw the curves, too")
    return asked


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, made whole. Exits with a sentence where they are wrong."""
    reader = parser()
    asked = reader.parse_args(arguments)
    asked.levels = sorted(set(asked.levels))
    if asked.requests is not None and asked.requests < asked.levels[-1]:
        reader.error(
            f"--requests {asked.requests} cannot keep {asked.levels[-1]} at once busy: give {asked.levels[-1]} or more"
        )
    for folder in asked.dir:
        if not in_folder(folder):
            reader.error(f"no recordings lie in {folder} (names ending in {', '.join(MEDIA)})")
    return asked


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
    return int(text)


def _at_once(text: str) -> int:
    return _whole(text, MOST_AT_ONCE)


def _count(text: str) -> int:
    return _whole(text, 1_000_000)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as {USUAL_ADDRESS}")
    return text.rstrip("/")


def _file(text: str) -> Path:
    if not (path := Path(text).expanduser()).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def _folder(text: str) -> Path:
    if not (path := Path(text).expanduser()).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


def _picture(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png and lie in a folder that is there")
    return path


# --- recordings ------------------------------------------------------------------------------------------------------


def in_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in MEDIA and path.is_file())


def recordings(asked: argparse.Namespace) -> tuple[list[Path], str]:
    """What to send, in turn, and a word on it. Raises CannotMeasure."""
    named = [*asked.file, *(path for folder in asked.dir for path in in_folder(folder))]
    if named:
        return named, f"{len(named)} of your recordings" if len(named) > 1 else f"one recording, {named[0].name}"
    try:
        clips = [clip.path for clip in SpeechSet(speech_dir()).short()]
    except SpeechSetMissing:
        clips = []
    if clips:
        return clips, f"{len(clips)} English clips of 2 to 15 s from SPEECH_DIR"
    # Brings the whole server's code with it: not for those who have named what to send.
    from main import sample_recording

    if (sample := sample_recording()) is None:
        raise CannotMeasure("There is no recording to send: name one with --file, or a folder of them with --dir.")
    return [sample], "pyannote's sample call, 30 s"


# --- measuring -------------------------------------------------------------------------------------------------------


def warm_up(target: Target, recording: Path) -> None:
    """Have the model loaded before the clock starts. Raises CannotMeasure where the server does not transcribe."""
    reply = ask(partial(target.send, recording), PATIENCE).last
    if reply.status == 401:
        raise CannotMeasure(
            f"The server at {target.address} wants an API key that it knows: --key, or set STENOGATE_API_KEY."
        )
    if reply.status != 200:
        raise CannotMeasure(f"The server at {target.address} did not transcribe {recording.name}: {reply.code}.")


def measure(
    target: Target,
    files: Sequence[Path],
    at_once: int,
    requests: int,
    *,
    patience: int = 0,
    ramp_s: float = 0.0,
    done: Callable[[Asked], None] = lambda _: None,
) -> Level:
    """Send *requests*, *at_once* of them at any time, the files in turn. *done* is called after each, on any thread."""

    def call(number: int, file: Path) -> Asked:
        if number < at_once:
            time.sleep(ramp_s * number / at_once)
        asked = ask(partial(target.send, file), patience)
        done(asked)
        return asked

    with watched(target) as server, ThreadPoolExecutor(at_once) as callers:
        started = time.perf_counter()
        asked = list(callers.map(call, range(requests), itertools.cycle(files)))
        wall_s = time.perf_counter() - started
    return level_of(at_once, wall_s, asked, server.usage)


@contextmanager
def progress(at_once: int, requests: int) -> Iterator[Callable[[Asked], None]]:
    """A line on the terminal that follows one level; where there is none, what it says at the end."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[counts]}"))
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(f"{at_once} at once", total=requests, counts="")
        finished: list[Asked] = []
        started = time.perf_counter()

        def done(asked: Asked) -> None:
            finished.append(asked)
            level = level_of(at_once, time.perf_counter() - started, tuple(finished), Usage())
            shown.update(task, completed=level.requests, counts=counts(level))

        yield done


def counts(level: Level) -> str:
    refused = [(level.answers_429, "× 429"), (level.answers_503, "× 503"), (level.errors, "errors")]
    told = [f"{number} {what}" for number, what in refused if number]
    return ", ".join([f"{level.speed:.1f} audio s / s", f"{level.successes} transcripts", *told])


def run(asked: argparse.Namespace) -> Measured:
    """All levels, fewest at once first; those that are done when somebody presses Ctrl-C. Raises CannotMeasure."""
    files, told = recordings(asked)
    load_before = others_load()
    levels: list[Level] = []
    with opened(asked.server, asked.key, asked.model) as (target, started_here):
        warm_up(target, files[0])
        try:
            for at_once in asked.levels:
                requests = asked.requests or max(LEAST_REQUESTS, 2 * at_once)
                with progress(at_once, requests) as done:
                    levels.append(
                        measure(
                            target,
                            files,
                            at_once,
                            requests,
                            patience=asked.patient,
                            ramp_s=asked.ramp,
                            done=done,
                        )
                    )
        except KeyboardInterrupt:
            if not levels:
                raise
            say("Stopped: these are the levels that were done")
    return Measured(
        target.address, started_here, is_here(target.address), target.model, told, tuple(levels), load_before
    )


def main() -> None:
    asked = parse(sys.argv[1:])
    # Ended from outside, a server that was started is stopped all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        measured = run(asked)
    except (CannotMeasure, ServerFailed) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    if asked.plot:
        plot(asked.plot, measured)
    print(json.dumps(measured.document(), indent=2) if asked.json else f"\n{measured.text()}")
    if not any(level.successes for level in measured.levels):
        sys.exit(1)


if __name__ == "__main__":
    main()
