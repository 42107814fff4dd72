"""Forced alignment: words timed by a CTC acoustic model, with WhisperX's models and results.

Runs in a child process only: it holds torch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio  # type: ignore[import-untyped]
import whisperx.alignment
from transformers import Wav2Vec2ForCTC

from transcription.alignment_text import (
    AlignedWord,
    AlignmentRequest,
    Emission,
    Spelling,
    blank_column,
    spelled,
    timed,
    ways,
)
from transcription.pcm import samples_of

SHORTEST_SAMPLES = 400
"""What wav2vec2's convolutions need for one frame; shorter sounds are filled up with silence (WhisperX)."""

BATCH_SAMPLES = 4_000_000
"""Of one model call on a GPU, silence at the ends included: eight segments of 30 s."""

WAYS_AT_ONCE = 8
"""Segments whose ways are found together: 3 MB for one of 30 s and 300 characters; more at once are no faster."""

Sound = npt.NDArray[np.float32]


class NoAlignmentModel(ValueError):
    """The language has no alignment model of its own and none was named, or its weights cannot be had."""


class Aligner:
    """One alignment model in memory. Keeps nothing of what it aligns."""

    def __init__(self, model: torch.nn.Module, metadata: dict[str, Any], device: str) -> None:
        """*model*, *metadata*: as `whisperx.alignment.load_align_model` gives them. *device*: where the model is."""
        self._model = model.eval()
        self._device = device
        self._kind: str = metadata["type"]
        self._language: str = metadata["language"]
        self._dictionary: dict[str, int] = metadata["dictionary"]
        self._blank = blank_column(self._dictionary)

    @classmethod
    def load(cls, language: str, name: str | None, device: str, folder: str | None, local_only: bool) -> Aligner:
        """The model *name*, or WhisperX's for *language* (Whisper's code), from *folder* or the libraries' caches.

        *local_only*: nothing is fetched. Raises NoAlignmentModel.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr), _fetching(not local_only):
                model, metadata = whisperx.alignment.load_align_model(
                    language, device, model_name=name, model_dir=folder, model_cache_only=local_only
                )
        except (ValueError, OSError, RuntimeError) as problem:
            if name is None and not has_default(language):
                raise NoAlignmentModel(f"There is no alignment model for the language {language}; name one.") from None
            wanted = f"The alignment model {name}" if name else f"The alignment model for the language {language}"
            raise NoAlignmentModel(f"{wanted} cannot be had: {problem}") from problem
        return cls(model, metadata, device)

    @property
    def bytes(self) -> int:
        """Size of the model's parameters."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self._model.parameters())

    def align(self, requests: Sequence[AlignmentRequest]) -> list[list[AlignedWord] | None]:
        """Times for each request's words; None where the model knows no character of them, or there are too many."""
        aligned: list[list[AlignedWord] | None] = [None] * len(requests)
        spellings: dict[int, Spelling] = {}
        for place, request in enumerate(requests):
            if request.segment.samples and (spelling := spelled(request.words, self._dictionary, self._language)):
                spellings[place] = spelling
        # Like lengths together: what is filled up is work for nothing.
        places = sorted(spellings, key=lambda place: requests[place].segment.samples)
        for batch in self._batches(places, requests):
            emissions = self.emissions([samples_of(requests[place].segment) for place in batch])
            found = ways(emissions, [spellings[place].columns for place in batch], self._blank)
            for place, emission, way in zip(batch, emissions, found, strict=True):
                request = requests[place]
                if way:
                    duration_s = request.segment.duration_s
                    aligned[place] = timed(len(request.words), spellings[place], way, len(emission), duration_s)
        return aligned

    def emissions(self, sounds: Sequence[Sound]) -> list[Emission]:
        """Log probabilities for each sound, as the model gives them for that sound alone.

        On the CPU one sound after another, which is no slower there. On a GPU, wav2vec2's convolutions one after
        another (most models' first one is normalised over the whole sound, which silence at its end would change) and
        the transformer, which can be told where each sound ends, for all of them.
        """
        filled = [np.pad(sound, (0, max(0, SHORTEST_SAMPLES - len(sound)))) for sound in sounds]
        waves = [torch.from_numpy(sound)[None].to(self._device) for sound in filled]
        with torch.inference_mode():
            together = None if self._device == "cpu" or len(waves) == 1 else batched(self._model, waves)
            if together is None:
                together = [self._alone(wave) for wave in waves]
            return [torch.log_softmax(logits, dim=-1).float().cpu().numpy() for logits in together]

    def _alone(self, wave: torch.Tensor) -> torch.Tensor:
        """Logits of one sound, shape (frames, columns)."""
        found = self._model(wave)
        logits: torch.Tensor = (found.logits if self._kind == "huggingface" else found[0])[0]
        return logits

    def _batches(self, places: Sequence[int], requests: Sequence[AlignmentRequest]) -> Iterator[list[int]]:
        """*places*, shortest segment first, in batches that fit one call."""
        batch: list[int] = []
        for place in places:
            samples = requests[place].segment.samples
            if batch and (len(batch) == WAYS_AT_ONCE or samples * (len(batch) + 1) > BATCH_SAMPLES):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch


def batched(model: torch.nn.Module, waves: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """Logits of each of *waves*, shape (1, samples), by one call of the transformer; None where that is not known.

    Known are torchaudio's Wav2Vec2Model, as it is or as its pipelines wrap it, and transformers' Wav2Vec2ForCTC.
    """
    if isinstance(model, Wav2Vec2ForCTC):
        return None if model.wav2vec2.adapter else _of_transformers(model, waves)
    bare = getattr(model, "model", model)
    if not isinstance(bare, torchaudio.models.Wav2Vec2Model) or getattr(model, "append_star", False):
        return None
    if getattr(model, "normalize_waveform", False):
        waves = [torch.nn.functional.layer_norm(wave, wave.shape) for wave in waves]
    frames, padded = _padded([bare.feature_extractor(wave, None)[0][0] for wave in waves])
    logits = bare.encoder(padded, frames)
    return _rows(logits if bare.aux is None else bare.aux(logits), frames)


def _of_transformers(model: Wav2Vec2ForCTC, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    bare = model.wav2vec2
    frames, padded = _padded([bare.feature_extractor(wave)[0].transpose(0, 1) for wave in waves])
    there = torch.arange(padded.shape[1], device=padded.device) < frames[:, None]
    hidden, _ = bare.feature_projection(padded)
    return _rows(model.lm_head(bare.encoder(hidden, attention_mask=there).last_hidden_state), frames)


def _rows(logits: torch.Tensor, frames: torch.Tensor) -> list[torch.Tensor]:
    """Each sound's own logits, without those of what was filled up."""
    return [row[:count] for row, count in zip(logits, frames.tolist(), strict=True)]


def _padded(features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(frames of each, all of them in one tensor)"""
    frames = torch.tensor([len(one) for one in features], device=features[0].device)
    return frames, torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)


def has_default(language: str) -> bool:
    """Whether WhisperX has an alignment model for *language*."""
    known = (whisperx.alignment.DEFAULT_ALIGN_MODELS_TORCH, whisperx.alignment.DEFAULT_ALIGN_MODELS_HF)
    return any(language in models for models in known)


@contextlib.contextmanager
def _fetching(allowed: bool) -> Iterator[None]:
    """torchaudio's models have no *local only* of their own: where it is not allowed, their fetching fails."""
    usual = torch.hub.download_url_to_file

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise OSError(f"{url.rpartition('/')[2]} is not here, and nothing may be fetched")

    if not allowed:
        torch.hub.download_url_to_file = refuse
    try:
        yield
    finally:
        torch.hub.download_url_to_file = usual
