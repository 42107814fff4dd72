"""What the command line says, checked as far as it can be without a server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transcription.core import Channels, Provider, ResponseFormat, Task, VoiceActivity

STDIN = "-"

_NOTES = """\
Without a server named by --server or STENOGATE_URL, the one of this folder's settings is asked; where none runs, the
engine is started here for as long as it is needed. The server's key comes from --key-file, STENOGATE_API_KEY or the
settings of this folder, and is never an argument, which other users of the machine could read.

Exit codes: 0 all done, 1 something failed, 2 wrong usage, 3 no server and no engine, 4 refused for now, 130 Ctrl-C.
More in docs/command-line.md.
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One command."""

    sources: tuple[str, ...]
    """Files, patterns, links, STDIN."""
    formats: tuple[ResponseFormat, ...]
    parameters: dict[str, str]
    """Of POST /transcribe, without the recording and the format."""
    folder: Path
    """Where relative names begin."""
    output: Path | None
    """The folder for files that are asked for; None: beside each recording, or standard output."""
    force: bool
    server: str | None
    key_file: Path | None
    local: bool
    wait: bool
    quiet: bool


def parsed(arguments: Sequence[str] | None = None) -> Asked:
    """Exits with 2 and a sentence where the command is not understood."""
    parser = _parser()
    given = parser.parse_args(arguments)
    folder = Path(given.folder).resolve()
    if given.local and given.server:
        parser.error("--local and --server say two things: keep the one that you mean")
    if len(set(given.sources)) < len(given.sources):
        parser.error("a recording is named twice")
    return Asked(
        sources=tuple(given.sources),
        formats=tuple(dict.fromkeys(one for some in given.formats or [[ResponseFormat.TEXT]] for one in some)),
        parameters=_parameters(given),
        folder=folder,
        output=folder / given.output if given.output is not None else None,
        force=given.force,
        server=given.server,
        key_file=folder / given.key_file if given.key_file is not None else None,
        local=given.local,
        wait=given.wait,
        quiet=given.quiet,
    )


def _formats(text: str) -> list[ResponseFormat]:
    try:
        return [ResponseFormat(name.strip()) for name in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: there are {', '.join(ResponseFormat)}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/transcribe",
        description="Transcribe recordings, videos and links.",
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources", nargs="+", metavar="FILE_OR_URL", help="a file, a quoted pattern, a link; -: standard input"
    )
    parser.add_argument(
        *("-f", "--format"),
        dest="formats",
        action="append",
        type=_formats,
        metavar="FORMAT,…",
        help=f"{', '.join(ResponseFormat)}; several by commas, from one transcription (default: text)",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="write files there (default: one text to standard output, else beside)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes; errors are told")
    parser.add_argument("-C", dest="folder", default=".", metavar="DIR", help="where relative names begin")
    _add_places(parser.add_argument_group("where it is done"))
    _add_options(parser.add_argument_group("how it is done"))
    return parser


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--server", metavar="URL", help="ask this server (or STENOGATE_URL)")
    group.add_argument("--key-file", metavar="FILE", help="the server's key is in there (or STENOGATE_API_KEY)")
    group.add_argument("--local", action="store_true", help="without a server, whether one runs or not")
    group.add_argument("--provider", choices=list(Provider), type=str, help="openai: the server's upstream does it")
    group.add_argument("--wait", action="store_true", help="where the server is full, come back until it is not")


_OPTIONS = {
    "model": "model_size",
    "language": "language",
    "task": "task",
    "align_model": "align_model",
    "num_speakers": "num_speakers",
    "min_speakers": "min_speakers",
    "max_speakers": "max_speakers",
    "channels": "channels",
    "hotwords": "hotwords",
    "prompt": "initial_prompt",
    "vad": "vad",
    "clip_timestamps": "clip_timestamps",
    "beam_size": "beam_size",
    "temperature": "temperature",
    "provider": "provider",
}
"""From this command's options to parameters of POST /transcribe."""

_SWITCHES = {
    "words": "word_timestamps",
    "align": "align",
    "diarize": "diarize",
    "multilingual": "multilingual",
    "filter_fillers": "filter_fillers",
    "filter_profanity": "filter_profanity",
}


def _add_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="NAME", help="tiny.en, base, large-v3 …")
    group.add_argument("--language", metavar="CODE", help="that is spoken (default: detected)")
    group.add_argument("--task", choices=list(Task), type=str, help="translate: into English")
    group.add_argument("--words", action="store_true", help="give each word's times")
    group.add_argument("--align", action="store_true", help="time words by forced alignment")
    group.add_argument("--align-model", metavar="NAME", help="in place of the language's own")
    group.add_argument("--diarize", action="store_true", help="tell who speaks")
    for name in ("num", "min", "max"):
        group.add_argument(f"--{name}-speakers", type=int, metavar="N")
    group.add_argument("--channels", choices=list(Channels), type=str, help="split: each is a speaker of its own")
    group.add_argument("--hotwords", metavar="TEXT", help="names and words that are likely to be said")
    group.add_argument("--prompt", metavar="TEXT", help="text that sets spelling and style")
    group.add_argument("--vad", choices=list(VoiceActivity), type=str, help="which model finds the speech")
    group.add_argument("--clip-timestamps", metavar="START,END,…", help="hear only these stretches, in seconds")
    group.add_argument("--multilingual", action="store_true", help="detect the language again and again")
    group.add_argument("--beam-size", type=int, metavar="N")
    group.add_argument("--temperature", type=float, metavar="T")
    group.add_argument("--filter-fillers", action="store_true", help="leave out um and uh")
    group.add_argument("--filter-profanity", action="store_true", help="mask swear words")


def _parameters(given: argparse.Namespace) -> dict[str, str]:
    valued = {there: getattr(given, here) for here, there in _OPTIONS.items()}
    switched = {there: "true" for here, there in _SWITCHES.items() if getattr(given, here)}
    return {name: str(value) for name, value in valued.items() if value is not None} | switched
