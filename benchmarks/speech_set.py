"""The recordings that are measured: read from the manifest in SPEECH_DIR, chosen by what is to be shown."""

from __future__ import annotations

import json
import math
import os
import re
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

LONG_FILE = "long/libri_10spk_long.mp3"
LONG_SEGMENTS = "ref/libri_10spk_long.segments.json"
SAMPLE_RATE = 16_000


class SpeechSetMissing(Exception):
    """There is no manifest.jsonl where the recordings should be; set SPEECH_DIR to their folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"No manifest.jsonl in {folder}: set SPEECH_DIR to the folder of the recordings.")


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what is said in it."""

    path: Path
    name: str
    text: str
    """The reference; "" where nobody speaks."""
    language: str | None
    duration_s: float


def speech_dir() -> Path:
    """The folder of the recordings: SPEECH_DIR, else ../shared/speech beside the project."""
    return Path(os.environ.get("SPEECH_DIR") or ROOT.parent / "shared" / "speech").resolve()


def clips_of(lines: Iterable[str], folder: Path) -> list[Clip]:
    """The manifest's recordings whose text is known; those with none (null) cannot be scored and are left out."""
    entries = [json.loads(line) for line in lines if line.strip()]
    return [
        Clip(folder / entry["file"], entry["file"], entry["text"], entry.get("language"), float(entry["duration_s"]))
        for entry in entries
        if entry["text"] is not None
    ]


class SpeechSet:
    """The recordings in one folder, by set. Read once; raises SpeechSetMissing where there is no manifest."""

    def __init__(self, folder: Path) -> None:
        manifest = folder / "manifest.jsonl"
        if not manifest.is_file():
            raise SpeechSetMissing(folder)
        self._folder = folder
        self._clips = clips_of(manifest.read_text(encoding="utf-8").splitlines(), folder)

    def _under(self, *folders: str) -> list[Clip]:
        return [clip for clip in self._clips if clip.name.split("/")[0] in folders]

    def english(self) -> list[Clip]:
        return self._under("librispeech_other", "en")

    def multilingual(self) -> list[Clip]:
        return self._under("lang")

    def nonspeech(self) -> list[Clip]:
        return self._under("nonspeech")

    def long(self) -> Clip:
        return next(clip for clip in self._clips if clip.name == LONG_FILE)

    def short(self, count: int = 48, shortest_s: float = 2.0, longest_s: float = 15.0) -> list[Clip]:
        """*count* English clips of a length that people dictate, from as many speakers and collections as there are."""
        return spread(
            [clip for clip in self.english() if shortest_s <= clip.duration_s <= longest_s and clip.text], count
        )

    def near(self, duration_s: float) -> Clip:
        """The English clip that comes nearest to that length."""
        return min(self.english(), key=lambda clip: abs(clip.duration_s - duration_s))

    def long_start(self, folder: Path, longest_s: float) -> Clip:
        """The long file's utterances that end within *longest_s*, as one WAV file in *folder*: for a quick look."""
        utterances = self._utterances(longest_s)
        path = folder / "start.wav"
        end_s = max(utterance["end"] for utterance in utterances)
        write_wav(path, self._pcm(0, end_s))
        return Clip(path, "long file's start", " ".join(each["text"] for each in utterances), "en", end_s)

    def long_utterances(self, folder: Path, longest_s: float = math.inf) -> list[Clip]:
        """The utterances that end within *longest_s*, a WAV file each: what is lost by hearing them in one go."""
        clips = []
        for index, utterance in enumerate(self._utterances(longest_s)):
            start_s, end_s = utterance["start"], utterance["end"]
            path = folder / f"{index:03d}.wav"
            write_wav(path, self._pcm(start_s, end_s))
            clips.append(Clip(path, f"utterance {index:03d}", utterance["text"], "en", end_s - start_s))
        return clips

    def _utterances(self, longest_s: float) -> list[dict[str, Any]]:
        utterances = json.loads((self._folder / LONG_SEGMENTS).read_text(encoding="utf-8"))
        return [utterance for utterance in utterances if utterance["end"] <= longest_s]

    @cached_property
    def _long_samples(self) -> Any:
        from faster_whisper.audio import decode_audio

        return decode_audio(str(self.long().path), sampling_rate=SAMPLE_RATE)

    def _pcm(self, start_s: float, end_s: float) -> bytes:
        samples = self._long_samples[int(start_s * SAMPLE_RATE) : int(end_s * SAMPLE_RATE)]
        pcm: bytes = (samples * 32767).clip(-32768, 32767).astype("<i2").tobytes()
        return pcm


def spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """*count* of the clips: one of each source, then a second of each, and so on, each source in its given order.

    A source is a speaker or a collection: what the file's name has before its first - or _.
    """
    sources: dict[str, list[Clip]] = {}
    for clip in clips:
        sources.setdefault(re.split("[-_]", clip.path.name, maxsplit=1)[0], []).append(clip)
    ranked = [(rank, clip) for of_source in sources.values() for rank, clip in enumerate(of_source)]
    return [clip for _, clip in sorted(ranked, key=lambda pair: pair[0])][:count]


def write_wav(path: Path, pcm: bytes) -> None:
    """Write mono 16 kHz signed 16 bit samples."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm)


def total_s(clips: Sequence[Clip]) -> float:
    return sum(clip.duration_s for clip in clips)
