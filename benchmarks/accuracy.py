"""Word error rates of Stenogate beside faster-whisper's batched pipeline: same weights, beam, threads, compute type.

Starts a server of its own on a free port (or asks --server), and the library in a process of its own. Recordings come
from SPEECH_DIR; what has no reference is left out. Errors of zh, ja and ko are counted in characters.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Library
from benchmarks.scoring import LETTER_LANGUAGES, Score, score, total
from benchmarks.server import Client, EngineSettings, Server
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder

SETS = ("english", "long", "multilingual", "nonspeech")
LIBRARY = "faster-whisper-batched"
LONG, UTTERANCES = "long file, whole", "long file, utterance by utterance"

Ask = Callable[[Clip, str | None], tuple[str, str]]
"""(clip, language) -> (text, language heard)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One clip, heard by both."""

    set: str
    clip: str
    language: str | None
    reference: str
    stenogate: str
    stenogate_language: str
    library: str

    def scores(self) -> tuple[Score, Score]:
        """(Stenogate's, the library's)"""
        return tuple(score(self.reference, text, self.language) for text in (self.stenogate, self.library))  # type: ignore[return-value]


def hear(name: str, clips: Sequence[Clip], ours: Ask, theirs: Ask, tell_language: bool) -> list[Row]:
    rows = []
    for number, clip in enumerate(clips, 1):
        language = clip.language if tell_language else None
        text, heard = ours(clip, language)
        rows.append(Row(name, clip.name, clip.language, clip.text, text, heard, theirs(clip, language)[0]))
        progress(f"{name}: {number} of {len(clips)}")
    progress("")
    return rows


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Hear every wanted set, one server and one library process a model."""
    speech = SpeechSet(speech_dir())
    wanted = arguments.only or SETS
    work: list[tuple[str, str, list[Clip]]] = []
    if "english" in wanted:
        work.append(("tiny.en", "English clips", speech.english()))
    if "long" in wanted:
        work.append(("tiny.en", LONG, [speech.long()]))
        work.append(("tiny.en", UTTERANCES, speech.long_utterances(folder)))
    if "nonspeech" in wanted:
        work.append(("tiny.en", "no speech, tiny.en", speech.nonspeech()))
    if "multilingual" in wanted:
        work.append(("base", "multilingual clips", speech.multilingual()))
    if "nonspeech" in wanted:
        work.append(("base", "no speech, base", speech.nonspeech()))

    rows = []
    for model in ("tiny.en", "base"):
        sets = [(name, clips) for used, name, clips in work if used == model]
        if not sets:
            continue
        with ExitStack() as stack:
            client = open_client(arguments, model, stack)
            library = stack.enter_context(
                Library(LIBRARY, weights_folder(model), arguments.threads, beam_size=arguments.beam_size)
            )

            def ours(clip: Clip, language: str | None, client: Client = client, model: str = model) -> tuple[str, str]:
                answer = client.transcribe(clip, model, language, arguments.beam_size)
                return answer.text, answer.language

            def theirs(clip: Clip, language: str | None, library: Library = library) -> tuple[str, str]:
                return library.transcribe(clip, language)[0], ""

            for name, clips in sets:
                rows += hear(name, clips, ours, theirs, not arguments.detect_language)
    return rows


def open_client(arguments: argparse.Namespace, model: str, stack: ExitStack) -> Client:
    """The server that was named, or one of our own that ends with *stack*."""
    if arguments.server:
        client = Client(arguments.server, arguments.key)
        stack.callback(client.close)
        return client
    return stack.enter_context(
        Server(model, EngineSettings(cores=arguments.threads), beam_size=arguments.beam_size)
    ).client


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line a set, and one a language where a set has several."""
    lines = []
    for name in dict.fromkeys(row.set for row in rows):
        within = [row for row in rows if row.set == name]
        languages = list(dict.fromkeys(row.language for row in within))
        lines.append(summary_line(name, within))
        if len(languages) > 1:
            lines += [summary_line(f"· {code}", [row for row in within if row.language == code]) for code in languages]
    return lines


def summary_line(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    ours, theirs = (total(side) for side in zip(*(row.scores() for row in rows), strict=True))
    letters = {row.language in LETTER_LANGUAGES for row in rows}
    return {
        "set": name,
        "files": len(rows),
        "unit": {True: "characters", False: "words"}[letters.pop()] if len(letters) == 1 else "both",
        "reference": ours.reference,
        "stenogate": asdict(ours) | {"error_rate": ours.error_rate},
        "library": asdict(theirs) | {"error_rate": theirs.error_rate},
        "texts_where_none_is_right": [
            f"{row.clip}: {row.stenogate!r}" for row in rows if not row.reference and row.stenogate
        ],
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    header = ["set", "files", "reference", "faster-whisper batched", "Stenogate", "difference, points"]
    cells = []
    for line in lines:
        ours, theirs = line["stenogate"], line["library"]
        if line["reference"]:
            rates = [percent(theirs["error_rate"]), percent(ours["error_rate"])]
            difference = f"{100 * (ours['error_rate'] - theirs['error_rate']):+.1f}"
        else:
            rates, difference = [f"{side['written']} words invented" for side in (theirs, ours)], ""
        cells.append([line["set"], str(line["files"]), f"{line['reference']} {line['unit']}", *rates, difference])
    return markdown(header, cells)


def lost_by_length(lines: Sequence[dict[str, Any]]) -> str:
    """What hearing the long file in one go costs beside its utterances one by one; "" where it was not measured."""
    rates = {line["set"]: (line["stenogate"]["error_rate"], line["library"]["error_rate"]) for line in lines}
    if LONG not in rates:
        return ""
    ours, theirs = (100 * (whole - single) for whole, single in zip(rates[LONG], rates[UTTERANCES], strict=True))
    return (
        f"Lost by hearing the long file in one go: Stenogate {ours:+.1f} points, faster-whisper batched {theirs:+.1f}."
    )


def per_file(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        ours, theirs = row.scores()
        cells.append([row.clip, row.stenogate_language, str(ours.reference), str(theirs.errors), str(ours.errors)])
    return markdown(["file", "language heard", "reference", "errors, faster-whisper", "errors, Stenogate"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SETS, action="append", help="this set alone; may be given several times")
    parser.add_argument("--verbose", action="store_true", help="a row a file as well")
    parser.add_argument("--json", action="store_true", help="everything, texts included, as JSON")
    parser.add_argument("--detect-language", action="store_true", help="do not tell either side the language")
    parser.add_argument("--server", help="ask the server at this address in place of starting one")
    parser.add_argument("--key", default="", help="that server's API key")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beam-size", type=int, default=5)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="stenogate-utterances-") as folder:
        rows = measure(arguments, Path(folder))
    lines = summary(rows)
    if arguments.json:
        print(json.dumps({"sets": lines, "files": [asdict(row) for row in rows]}, ensure_ascii=False, indent=2))
        return
    if arguments.verbose:
        print(per_file(rows), end="\n\n")
    print(table(lines))
    for line in lines:
        for text in line["texts_where_none_is_right"]:
            print(f"\nInvented where nothing was said, {text}")
    if loss := lost_by_length(lines):
        print(f"\n{loss}")


if __name__ == "__main__":
    main()
