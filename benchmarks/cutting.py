"""What a cutting rule and a window cost in words and seconds: the engine room alone, without server and processes.

One row a rule, one column a set of recordings. Seconds are of CPU time, so that a busy machine does not change them
much. The figures of docs/decisions/0002-cutting.md and 0003-window.md are of this kind.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring import Score, score, total
from benchmarks.speech_set import Clip, SpeechSet, speech_dir
from benchmarks.tables import markdown, percent
from benchmarks.weights import weights_folder
from ffmpeg import FFmpeg
from transcription import audio, whisper
from transcription.core import Segment, SegmentRequest, TranscriptionOptions, VoiceActivity
from transcription.pcm import GrowingPcm
from transcription.planner import BatchPlanner, Pending
from transcription.speech import CuttingRule, SpeechCutter

BATCH_SIZE = 4
LONGEST_CLIP_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One rule, one window, and what came of them in each set."""

    rule: CuttingRule
    floor: int
    margin: int
    segments: int
    scores: dict[str, Score]
    cpu_s: float

    def row(self) -> list[str]:
        rule = self.rule
        return [
            f"{rule.merge_pause_s:g} s, {rule.max_segment_s:g} s, {rule.padding_s:g} s",
            f"{self.floor}, {self.margin}",
            str(self.segments),
            *(percent(one.error_rate) for one in self.scores.values()),
            percent(total(self.scores.values()).error_rate),
            f"{self.cpu_s:.1f}",
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
    return [[segment async for segment in cutter.segments(GrowingPcm(path), VoiceActivity.SILERO)] for path in paths]


def heard(
    model: whisper.Whisper, recordings: Sequence[Sequence[Segment]], options: Sequence[TranscriptionOptions]
) -> list[str]:
    """Each recording's text; batches are planned as the server plans them."""
    planner = BatchPlanner(BATCH_SIZE)
    for number, segments in enumerate(recordings):
        for segment in segments:
            planner.add(Pending(number, segment, options[number]))
    texts: dict[tuple[int, int], str] = {}
    while batch := planner.next_batch():
        results = model.transcribe([SegmentRequest(pending.segment, pending.options) for pending in batch])
        texts |= {(p.request, p.segment.index): result.text for p, result in zip(batch, results, strict=True)}
    return ["".join(texts[number, segment.index] for segment in segments) for number, segments in enumerate(recordings)]


def tried(
    model: whisper.Whisper, name: str, sets: dict[str, list[tuple[Clip, list[Segment]]]], rule: CuttingRule
) -> Trial:
    scores = {}
    begun = time.process_time()
    for title, recordings in sets.items():
        clips = [clip for clip, _ in recordings]
        options = [TranscriptionOptions(name, clip.language or "en") for clip in clips]
        texts = heard(model, [segments for _, segments in recordings], options)
        scores[title] = total(score(clip.text, text, clip.language) for clip, text in zip(clips, texts, strict=True))
    return Trial(
        rule=rule,
        floor=model.shortest_window_frames,
        margin=whisper.WINDOW_MARGIN_FRAMES,
        segments=sum(len(segments) for recordings in sets.values() for _, segments in recordings),
        scores=scores,
        cpu_s=time.process_time() - begun,
    )


SETS: dict[str, Callable[[SpeechSet], list[Clip]]] = {
    "english": SpeechSet.english,
    "long": lambda speech: [speech.long()],
    "multilingual": SpeechSet.multilingual,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/cutting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = CuttingRule()
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--set", choices=SETS, nargs="+", default=["long"])
    parser.add_argument("--pause", type=float, nargs="+", default=[usual.merge_pause_s], help="seconds")
    parser.add_argument("--longest", type=float, nargs="+", default=[usual.max_segment_s], help="seconds")
    parser.add_argument("--padding", type=float, nargs="+", default=[usual.padding_s], help="seconds")
    parser.add_argument("--floor", type=int, nargs="+", help="10 ms frames; absent: the model's own")
    parser.add_argument("--margin", type=int, nargs="+", default=[whisper.WINDOW_MARGIN_FRAMES], help="10 ms frames")
    asked = parser.parse_args()

    speech = SpeechSet(speech_dir())
    chosen = {title: SETS[title](speech) for title in asked.set}
    model = whisper.Whisper(weights_folder(asked.model), device="cpu", device_index=0, compute_type="int8", threads=1)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for title, clips in chosen.items():
            (place := Path(folder) / title).mkdir()
            paths[title] = asyncio.run(decoded(clips, place))
        for pause, longest, padding in itertools.product(asked.pause, asked.longest, asked.padding):
            rule = CuttingRule(merge_pause_s=pause, max_segment_s=longest, padding_s=padding)
            sets = {
                title: list(zip(clips, asyncio.run(cut(paths[title], rule)), strict=True))
                for title, clips in chosen.items()
            }
            for floor, margin in itertools.product(asked.floor or [model.shortest_window_frames], asked.margin):
                model.shortest_window_frames, whisper.WINDOW_MARGIN_FRAMES = floor, margin
                trials.append(tried(model, asked.model, sets, rule))
                print(f"{floor}, {margin}: done", file=sys.stderr, flush=True)
    print(
        markdown(
            ["pause, longest, padding", "floor, margin", "segments", *asked.set, "all", "CPU s"],
            [trial.row() for trial in trials],
        )
    )


if __name__ == "__main__":
    main()
