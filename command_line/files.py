"""Which recordings are meant, and where what becomes of them is written: never over what is there, unless asked."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from command_line.arguments import STDIN
from transcription import formats
from transcription.core import ResponseFormat

TEXTS = tuple(one for one in ResponseFormat if one is not ResponseFormat.DOCX)
"""What may go to a terminal."""

_FULLER = {ResponseFormat.VERBOSE_JSON: ResponseFormat.JSON, ResponseFormat.VTT_WORDS: ResponseFormat.VTT}
"""Formats that share an extension with a plainer one."""
_FULLER_EXTENSIONS = {ResponseFormat.VERBOSE_JSON: "verbose.json", ResponseFormat.VTT_WORDS: "words.vtt"}


@dataclass(frozen=True, slots=True)
class Source:
    """One recording: *path* or *url*, or standard input, which has neither until it was read."""

    name: str
    """As its user wrote it."""
    path: Path | None = None
    url: str | None = None

    @property
    def stem(self) -> str:
        """What the names of files about it begin with."""
        if self.path is not None:
            return self.path.stem
        if self.url is None:
            return "stdin"
        parts = urlsplit(self.url)
        last = unquote(parts.path).rstrip("/").rpartition("/")[2]
        return re.sub(r"[^\w.-]+", "_", Path(last).stem).strip("._") or parts.hostname or "link"


@dataclass(frozen=True, slots=True)
class Target:
    """Where one format of one recording goes; None: to standard output."""

    format: ResponseFormat
    path: Path | None


class NotWritten(Exception):
    """A file cannot be written as asked."""


def sources_of(names: Iterable[str], folder: Path) -> list[Source]:
    """What *names* mean, patterns taken apart in the order of their names. A file that is not there stays in it: its
    turn comes, and its error."""
    found = []
    for name in names:
        if name == STDIN:
            found.append(Source(name))
        elif re.match(r"https?://", name, re.IGNORECASE):
            found.append(Source(name, url=name))
        elif not (folder / name).exists() and (paths := sorted(glob.glob(name, root_dir=folder, recursive=True))):
            found += [Source(path, folder / path) for path in paths if (folder / path).is_file()]
        else:
            found.append(Source(name, folder / name))
    return found


def extension(response_format: ResponseFormat, all_formats: Sequence[ResponseFormat]) -> str:
    """Of a file's name; the fuller of two formats with the same extension has a longer one."""
    if _FULLER.get(response_format) in all_formats:
        return _FULLER_EXTENSIONS[response_format]
    return formats.extension(response_format)


def targets_of(
    source: Source, wanted: Sequence[ResponseFormat], folder: Path, output: Path | None, *, alone: bool
) -> list[Target]:
    """Where each format of *source* goes. *alone*: it is the only recording. *folder*: where files go that have no
    recording to lie beside."""
    if alone and output is None and len(wanted) == 1 and wanted[0] in TEXTS:
        return [Target(wanted[0], None)]
    place = output or (source.path.parent if source.path else folder)
    return [Target(one, place / f"{source.stem}.{extension(one, wanted)}") for one in wanted]


def check_targets(source: Source, targets: Iterable[Target], taken: set[Path], *, force: bool) -> None:
    """Refuse to write over a recording, over what another one of this run writes, and, without *force*, over anything.
    Raises NotWritten."""
    for path in (target.path for target in targets if target.path is not None):
        if source.path is not None and path.resolve() == source.path.resolve():
            raise NotWritten(f"{path} is the recording itself")
        if path.resolve() in taken:
            raise NotWritten(f"{path} is written for another recording of the same name: choose folders with -o")
        if path.exists() and not force:
            raise NotWritten(f"{path} is there already: --force replaces it")
    taken |= {target.path.resolve() for target in targets if target.path is not None}


def write(path: Path, content: bytes, *, force: bool) -> None:
    """Whole or not at all. Raises NotWritten."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True)
        with aside.open("xb") as file:
            file.write(content)
        if force:
            aside.replace(path)
        else:
            os.link(aside, path)
    except FileExistsError:
        raise NotWritten(f"{path} is there already: --force replaces it") from None
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
