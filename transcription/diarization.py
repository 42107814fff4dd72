"""Speakers by pyannote's pipeline, as WhisperX drives it, a block of a recording at a time. Runs in a child only."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# NOTE: pyannote.audio tells its makers of each model that is loaded and how long each recording is, unless it is told
# not to before it is imported. Nobody who hosts this server has agreed to that; who does can set the variable.
os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "false")

import numpy as np
import torch
import whisperx.diarize
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from pyannote.audio.pipelines.speaker_verification import PyannoteAudioPretrainedSpeakerEmbedding

from transcription.core import SAMPLE_RATE, Segment
from transcription.pcm import samples_of
from transcription.speakers import Block, Turn

MODEL = "pyannote/speaker-diarization-community-1"
"""WhisperX's default."""

SHORTEST_S = 0.5
"""In less nobody can be told from anybody; the networks need some samples to begin with."""

WINDOWS_AT_ONCE, WINDOWS_AT_ONCE_ON_GPU = 4, 32
"""Windows of 10 s in one call of a network. More gain little speed on a CPU and cost memory (docs/benchmarks.md)."""


class NoDiarizationModel(ValueError):
    """The diarization model cannot be loaded; the message says what is missing."""


class Diarizer:
    """A diarization pipeline in memory. One block is diarized at a time."""

    def __init__(self, model: str | None, token: str | None, device: str) -> None:
        """*model*: its name on the hub, or a folder with a config.yaml, or such a file; None: WhisperX's default.

        Raises NoDiarizationModel.
        """
        name = model or MODEL
        try:
            self._pipeline = whisperx.diarize.DiarizationPipeline(model_name=name, token=token, device=device)
        except Exception as error:
            raise NoDiarizationModel(why(name, token, error)) from error
        make_faster(self._pipeline.model, WINDOWS_AT_ONCE if device == "cpu" else WINDOWS_AT_ONCE_ON_GPU)

    def diarize(self, segment: Segment, num: int | None, least: int | None, most: int | None) -> Block:
        """Who speaks when in *segment*, however long it is: what it takes of memory grows with its length.

        *num*, *least*, *most*: how many speakers there are, exactly, at least, at most. A segment with too few
        words for so many has fewer.
        """
        if segment.samples < SHORTEST_S * SAMPLE_RATE:
            return Block((), ())
        with warnings.catch_warnings():
            # They tell of too short a stretch for a voice or for so many speakers: the answer shows it, too.
            warnings.simplefilter("ignore")
            try:
                found, voices = self._heard(segment, num, least, most)
            except ValueError:
                # VBx clustering, which the default model has, refuses more speakers than there are windows of speech.
                if num is None and least is None:
                    raise
                found, voices = self._heard(segment, None, None, most if num is None else num)
        return block_of(list(zip(found["start"], found["end"], found["speaker"], strict=True)), voices, segment)

    def _heard(self, segment: Segment, num: int | None, least: int | None, most: int | None) -> Any:
        """(the turns as a table, voices by speaker)"""
        return self._pipeline(
            samples_of(segment), num_speakers=num, min_speakers=least, max_speakers=most, return_embeddings=True
        )


def block_of(
    turns: list[tuple[float, float, str]], voices: Mapping[str, list[float]] | None, segment: Segment
) -> Block:
    """The pipeline's answer as a block: times from the start of the recording, none past the segment's end.

    A voice that was not heard for long enough comes from the pipeline as NaN or zeros, and is left empty.
    """
    speakers = {label: number for number, label in enumerate(dict.fromkeys(label for _, _, label in sorted(turns)))}
    embeddings = []
    for label in speakers:
        voice = np.asarray((voices or {}).get(label, ()), np.float64)
        embeddings.append(tuple(voice.tolist()) if np.isfinite(voice).all() and voice.any() else ())
    ends = segment.start_s + segment.duration_s
    return Block(
        tuple(
            Turn(segment.start_s + start, min(segment.start_s + end, ends), speakers[label])
            for start, end, label in sorted(turns)
            if start < segment.duration_s
        ),
        tuple(embeddings),
    )


def make_faster(pipeline: Any, windows_at_once: int) -> None:
    """Set the pipeline's batch sizes, and let no sound go through the network of voices more than once.

    Changes no result. Pipelines without these parts stay as they are.
    """
    if hasattr(pipeline, "segmentation_batch_size"):
        pipeline.segmentation_batch_size = windows_at_once
    voices = getattr(pipeline, "_embedding", None)
    if isinstance(voices, PyannoteAudioPretrainedSpeakerEmbedding):
        # Set as a plain attribute, which wins over the one that the pipeline has registered.
        vars(pipeline)["_embedding"] = OncePerWindow(voices)
        pipeline.embedding_batch_size = windows_at_once * 3


class OncePerWindow:
    """A network of voices that hears each window once and tells all its speakers apart then.

    pyannote asks for each window three times, once for each speaker that may be in it, silent ones included. Networks
    take several masks a sound themselves: (windows, speakers, frames). Windows in which nobody speaks are not heard:
    what stands for a silent speaker's voice is never looked at.
    """

    def __init__(self, embedding: PyannoteAudioPretrainedSpeakerEmbedding) -> None:
        self._embedding = embedding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)

    def __call__(self, waveforms: torch.Tensor, masks: torch.Tensor | None = None) -> Any:
        """(sounds, 1, samples), (sounds, frames) -> (sounds, dimensions). Equal sounds stand side by side."""
        if masks is None:
            return self._embedding(waveforms)
        answers = np.ones((len(masks), self._embedding.dimension), np.float32)
        firsts = [0, *(at for at in range(1, len(masks)) if not torch.equal(waveforms[at], waveforms[at - 1]))]
        windows = [
            (first, last) for first, last in itertools.pairwise([*firsts, len(masks)]) if masks[first:last].any()
        ]
        for size in {last - first for first, last in windows}:
            places = torch.tensor([first for first, last in windows if last - first == size])
            rows = places[:, None] + torch.arange(size)
            heard = self._embedding(waveforms[places], masks=masks[rows])
            answers[rows.flatten().numpy()] = heard.reshape(len(places) * size, -1)
        return answers


def why(name: str, token: str | None, error: Exception) -> str:
    """What is to be done for *name* to be loaded, in a sentence."""
    if isinstance(error, GatedRepoError):
        return (
            f"The diarization model {name} is gated: accept its terms on its page on the hub with the account "
            "that the hub token belongs to."
        )
    if isinstance(error, RepositoryNotFoundError):
        lack = "the hub token does not open it" if token else "no hub token is set, which most of them need"
        return f"There is no diarization model {name} on the hub, or {lack}."
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)):
        return f"The diarization model {name} is not on this machine, and the hub cannot be reached to fetch it."
    if Path(name).is_absolute() and not Path(name).exists():
        return f"There is no diarization model at {name}: it should be a config.yaml or the folder of one."
    return f"The diarization model {name} cannot be loaded ({type(error).__name__}): {error}".rstrip(": ")
