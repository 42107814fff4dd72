"""Who speaks when, over a whole recording: block after block by the process that has the models, then linked."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from errors import DiarizationUnavailable, WorkerCrashed
from fair_slots import FairSlots
from transcription import protocol
from transcription.core import NOBODY, SAMPLE_RATE, Caller, Segment, TranscriptionOptions
from transcription.scheduler import MAX_ATTEMPTS
from transcription.speakers import Block, Limits, Turn, block_limits, blocks, linked
from transcription.torch_process import TorchProcess

ANSWER_S = 300.0
"""A block takes no longer, the models' download included, and four times its audio: else the process is stuck."""


class SpeakerFinder:
    """Finds speakers for all requests, one block at a time, in fair turns. An async context manager."""

    def __init__(self, process: TorchProcess) -> None:
        self.process = process
        self._turns = FairSlots(1)

    async def __aenter__(self) -> SpeakerFinder:
        await self.process.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.process.__aexit__()

    def check(self) -> None:
        """Raises DiarizationUnavailable where nobody can be told apart here."""
        if not self.process.is_possible():
            raise DiarizationUnavailable

    async def turns(
        self, path: Path, samples: int, options: TranscriptionOptions, caller: Caller = NOBODY
    ) -> list[Turn]:
        """Who speaks when in the *samples* at *path*, which are all there.

        Raises DiarizationUnavailable, WorkerCrashed, OutOfMemory, EngineFailed.
        """
        cut = blocks(samples)
        limits = block_limits(options.num_speakers, options.min_speakers, options.max_speakers, len(cut))
        found = []
        for number, (first_sample, count) in enumerate(cut):
            # NOTE: a turn for each block: a clip does not wait for a long recording's end.
            async with self._turns.slot(caller.key, caller.priority):
                found.append(await self._tried(Segment(path, first_sample, count, number), limits))
        return await asyncio.to_thread(
            linked, found, num=options.num_speakers, least=options.min_speakers, most=options.max_speakers
        )

    async def _tried(self, segment: Segment, limits: Limits) -> Block:
        """A process that dies costs a retry, not the recording."""
        for _ in range(MAX_ATTEMPTS - 1):
            with contextlib.suppress(WorkerCrashed):
                return await self._heard(segment, limits)
        return await self._heard(segment, limits)

    async def _heard(self, segment: Segment, limits: Limits) -> Block:
        num, least, most = limits
        reply = await self.process.call(
            ANSWER_S + 4 * segment.samples / SAMPLE_RATE,
            segment=protocol.plain(segment),
            num=num,
            least=least,
            most=most,
        )
        if "unavailable" in reply:
            raise DiarizationUnavailable(str(reply["unavailable"]))
        return block_from(reply)


def block_from(data: dict[str, Any]) -> Block:
    return Block(
        tuple(Turn(turn["start"], turn["end"], turn["speaker"]) for turn in data["turns"]),
        tuple(tuple(embedding) for embedding in data["embeddings"]),
    )
