"""What a cutting rule and a window cost in words and seconds: the engine room alone, without server and processes.

One row a rule. The figures of docs/decisions/0002-cutting.md and 0003-window.md are of this kind.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring import Score, score, total
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder
from ffmpeg import FFmpeg
from transcription import audio, whisper
from transcription.core import Segment, TranscriptionOptions, VoiceActivity
from transcription.planner import BatchPlanner, Pending
from transcription.speech import CuttingRule, SpeechCutter

BATCH_SIZE = 8
LONGEST_CLIP_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One rule, one window, and what came of them."""

    rule: CuttingRule
    floor: int
    margin: int
    segments: int
    score: Score
    seconds: float

    def row(self) -> list[str]:
        rule = self.rule
        return [
            f"{rule.merge_pause_s:g} s, {rule.max_segment_s:g} s, {rule.padding_s:g} s",
            f"{self.floor}, {self.margin}",
            str(self.segments),
            percent(self.score.error_rate),
            str(self.score.written),
            f"{self.seconds:.1f}",
        ]


async def decoded(clips: Sequence[Clip], folder: Path) -> list[Path]:
    """Each clip as PCM in *folder*."""
    ffmpeg = FFmpeg.locate()
    paths = [folder / f"{number}.pcm" for number in range(len(clips))]
    for clip, path in zip(clips, paths, strict=True):
        await audio.decode(ffmpeg, clip.path, path, max_duration_s=LONGEST_CLIP_S)
    return paths


async def cut(paths: Sequence[Path], rule: CuttingRule) -> list[list[Segment]]:
    cutter = SpeechCutter(rule)
    return [[segment async for segment in cutter.segments(path, VoiceActivity.SILERO)] for path in paths]


def heard(model: whisper.Whisper, recordings: Sequence[Sequence[Segment]], options: TranscriptionOptions) -> list[str]:
    """Each recording's text; batches are planned as the server plans them."""
    planner = BatchPlanner(BATCH_SIZE)
    for number, segments in enumerate(recordings):
        for segment in segments:
            planner.add(Pending(number, segment, options))
    texts: dict[tuple[int, int], str] = {}
    while batch := planner.next_batch():
        results = model.transcribe([pending.segment for pending in batch], options)
        texts |= {(p.request, p.segment.index): result.text for p, result in zip(batch, results, strict=True)}
    return ["".join(texts[number, segment.index] for segment in segments) for number, segments in enumerate(recordings)]


def tried(
    model: whisper.Whisper,
    clips: Sequence[Clip],
    recordings: Sequence[Sequence[Segment]],
    options: TranscriptionOptions,
    rule: CuttingRule,
) -> Trial:
    begun = time.perf_counter()
    texts = heard(model, recordings, options)
    return Trial(
        rule=rule,
        floor=whisper.SHORTEST_WINDOW_FRAMES,
        margin=whisper.WINDOW_MARGIN_FRAMES,
        segments=sum(len(segments) for segments in recordings),
        score=total(score(clip.text, text, clip.language) for clip, text in zip(clips, texts, strict=True)),
        seconds=time.perf_counter() - begun,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/cutting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = CuttingRule()
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--set", choices=("long", "english"), default="long")
    parser.add_argument("--pause", type=float, nargs="+", default=[usual.merge_pause_s], help="seconds")
    parser.add_argument("--longest", type=float, nargs="+", default=[usual.max_segment_s], help="seconds")
    parser.add_argument("--padding", type=float, nargs="+", default=[usual.padding_s], help="seconds")
    parser.add_argument("--floor", type=int, nargs="+", default=[whisper.SHORTEST_WINDOW_FRAMES], help="10 ms frames")
    parser.add_argument("--margin", type=int, nargs="+", default=[whisper.WINDOW_MARGIN_FRAMES], help="10 ms frames")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()

    speech = SpeechSet(speech_dir())
    clips = [speech.long()] if asked.set == "long" else speech.english()
    model = whisper.Whisper(
        weights_folder(asked.model), device="cpu", device_index=0, compute_type="int8", threads=asked.threads
    )
    options = TranscriptionOptions(asked.model, "en")
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = asyncio.run(decoded(clips, Path(folder)))
        for pause, longest, padding in itertools.product(asked.pause, asked.longest, asked.padding):
            rule = CuttingRule(merge_pause_s=pause, max_segment_s=longest, padding_s=padding)
            recordings = asyncio.run(cut(paths, rule))
            for floor, margin in itertools.product(asked.floor, asked.margin):
                whisper.SHORTEST_WINDOW_FRAMES, whisper.WINDOW_MARGIN_FRAMES = floor, margin
                trials.append(tried(model, clips, recordings, options, rule))
    print(
        markdown(
            ["pause, longest, padding", "floor, margin", "segments", "WER", "words written", "s"],
            [trial.row() for trial in trials],
        )
    )


if __name__ == "__main__":
    main()
