"""The command from its words to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from command_line.arguments import STDIN, Asked, parsed
from command_line.files import NotWritten, Source, Target, check_targets, sources_of, targets_of, write
from command_line.progress import Bars
from command_line.server import Server, answers
from command_line.transcribing import Exit, Failed, Made, Opened, Transcribing
from settings import Settings

PROGRAM = "scripts/transcribe"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    asked = parsed(arguments)
    bars = Bars(shown=sys.stderr.isatty() and not asked.quiet)
    try:
        with contextlib.ExitStack() as stack:
            found = sources_of(asked.sources, asked.folder)
            # NOTE: here, where Ctrl-C ends the reading.
            return asyncio.run(_run(asked, [stack.enter_context(_readable(source)) for source in found], bars))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


async def _run(asked: Asked, sources: Sequence[Source], bars: Bars) -> Exit:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C: the server's job is cancelled, the engine ends.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    failures: list[Exit] = []
    if work := _planned(asked, sources, bars, failures):
        try:
            async with await _opened(asked) as transcribing:
                with bars.running():
                    failures += await _all_done(asked, work, transcribing, bars)
        except Failed as failed:
            bars.say(f"{PROGRAM}: {failed}")
            return failed.exit
    return exit_code(failures)


def exit_code(failures: Sequence[Exit]) -> Exit:
    """Of a run in which these failed: their own where they agree."""
    return failures[0] if len(set(failures)) == 1 else Exit.FAILED if failures else Exit.DONE


# --- what is to be done ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Recording:
    source: Source
    targets: Sequence[Target]


def _planned(asked: Asked, sources: Sequence[Source], bars: Bars, failures: list[Exit]) -> list[_Recording]:
    """What can be begun; what cannot is told, before anything is transcribed in vain."""
    planned, taken = [], set[Path]()
    for source in sources:
        targets = targets_of(source, asked.formats, asked.folder, asked.output, alone=len(sources) == 1)
        try:
            if source.path is not None and not source.path.is_file():
                raise NotWritten("there is no such file")
            check_targets(source, targets, taken, force=asked.force)
        except NotWritten as error:
            bars.say(f"{PROGRAM}: {source.name}: {error}")
            failures.append(Exit.FAILED)
        else:
            planned.append(_Recording(source, targets))
    return planned


@contextlib.contextmanager
def _readable(source: Source) -> Iterator[Source]:
    """*source*, standard input as a file: its length must be known, and it may have to be sent again."""
    if source.name != STDIN:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="stenogate-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield replace(source, path=path)


# --- where -----------------------------------------------------------------------------------------------------------


async def _opened(asked: Asked) -> Opened:
    """A server, or the engine here. Raises Failed where there is neither."""
    settings = _settings()
    named = None if asked.local else asked.server or os.environ.get("STENOGATE_URL")
    if named:
        address = named.rstrip("/")
        if not await answers(address):
            raise Failed(f"No server answers at {address}.", exit=Exit.NOBODY)
        return Server(address, key_for(address, asked, settings), wait=asked.wait)
    address = f"http://{reached_at(settings.host)}:{settings.port}"
    if not asked.local and settings.port and await answers(address):
        return Server(address, key_for(address, asked, settings), wait=asked.wait)
    # NOTE: here, since who asks a server need not wait for the engine's libraries.
    from command_line.local import opened

    return opened(settings)


def _settings() -> Settings:
    """Raises Failed where they are wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        raise Failed(f"These settings are wrong: {wrong}.", exit=Exit.USAGE) from None


def made_key(settings: Settings) -> str | None:
    """The key of this folder's own server: one of its keys, or the one that it made itself."""
    if settings.api_keys:
        return settings.api_keys[0].get_secret_value()
    with contextlib.suppress(OSError):
        return (settings.data_dir.resolve() / "api-key").read_text("ascii").strip() or None
    return None


def key_for(address: str, asked: Asked, settings: Settings) -> str | None:
    """What opens the server at *address*: the key that was named, or, for the own server alone, its own.

    Raises Failed where the file with the key cannot be read.
    """
    if asked.key_file is None:
        named = os.environ.get("STENOGATE_API_KEY")
        return named or (made_key(settings) if is_own(address, settings) else None)
    try:
        return asked.key_file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise Failed(f"The key in {asked.key_file} cannot be read.", exit=Exit.USAGE) from error


def is_own(address: str, settings: Settings) -> bool:
    """Whether *address* is that of this folder's own server: no other one is given its key."""
    parts = urlsplit(address)
    here = ("127.0.0.1", "localhost", "::1", reached_at(settings.host).strip("[]"))
    return parts.hostname in here and parts.port == settings.port


def reached_at(host: str) -> str:
    """Where a server is found that listens on *host*."""
    found = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{found}]" if ":" in found else found


# --- doing it --------------------------------------------------------------------------------------------------------


async def _all_done(asked: Asked, work: Sequence[_Recording], transcribing: Transcribing, bars: Bars) -> list[Exit]:
    """How those ended that failed."""
    at_once = asyncio.Semaphore(transcribing.at_once)

    async def one(recording: _Recording) -> Exit | None:
        source = recording.source
        async with at_once:
            try:
                with bars.bar(source.name) as bar:
                    made = await transcribing.transcribe(source, asked.parameters, asked.formats, bar)
                _deliver(asked, recording, made, bars)
            except (Failed, NotWritten) as error:
                bars.say(f"{PROGRAM}: {source.name}: {error}")
                return error.exit if isinstance(error, Failed) else Exit.FAILED
        return None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(recording)) for recording in work]
    return [ended for task in tasks if (ended := task.result()) is not None]


def _deliver(asked: Asked, recording: _Recording, made: Made, bars: Bars) -> None:
    for target in recording.targets:
        content = made.contents[target.format]
        if target.path is None:
            _print(content)
            continue
        write(target.path, content, force=asked.force)
        if not asked.quiet:
            bars.say(f"{recording.source.name}: {target.path}")
    if not asked.quiet:
        for warning in made.warnings:
            bars.say(f"{recording.source.name}: warning: {warning}")


def _print(content: bytes) -> None:
    """Raises NotWritten where nobody reads any more."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise NotWritten("nobody reads standard output any more") from None
