"""One Whisper model in memory: segments in, text and word times out. Runs in the engine's process only.

The weights and the mathematics are CTranslate2's; tokenizer, features and word splitting are faster-whisper's. What is
decided here: how long a window each batch is encoded over, and what is done about segments whose decoding fails.
"""

from __future__ import annotations

import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens

from transcription.core import (
    SAMPLE_RATE,
    Segment,
    SegmentRequest,
    Token,
    TranscriptionOptions,
    TranscriptSegment,
    Word,
)
from transcription.pcm import samples_of
from transcription.protocol import Language
from transcription.tokens import LEAST_PROBABILITY, bytes_of, prompt_tokens
from transcription.words import TimedWord, fitted, loudness, tidied

FULL_WINDOW_FRAMES = 3_000
"""Whisper's own window: 30 s in mel frames of 10 ms."""

WINDOW_MARGIN_FRAMES = 200
SHORTEST_WINDOW_FRAMES = 1_500
SHORTEST_WINDOW_FRAMES_OF_TINY = 1_000
"""A window is as long as the batch's longest segment and this margin, and never shorter than the floor: no words are
lost, and more than half of the encoder's work is saved (docs/decisions/0003-window.md)."""

TINY_WIDTH = 384
"""Of the encoder's states, by which the smallest model is known."""

HOTTER = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Temperatures tried in turn where the safeguards fail (Whisper, `transcribe.py`)."""

MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_ABOVE = 0.6
"""Whisper's safeguards (Radford et al. 2022, section 4.5): text that repeats itself, text the model does not believe,
and silence: *no speech* is believed where the text is not."""

HUM = re.compile(r"[\W_]*[hmn]+([\W_]+[hmn]+)*[\W_]*", re.IGNORECASE)
"""What Whisper writes for music and wind: "Mmm." Taken for silence where the model itself leans to *no speech*."""

MAX_TOKENS_A_SECOND = 8.0
"""Faster than anybody speaks: a loop, in a window that was too short for the model to stop."""

MAX_TOKENS = 448
"""Whisper's text context, prompt included."""

WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages that are written without spaces between sentences' words."""

INAUDIBLE = 0.001
"""Peak of a segment in which nothing can be heard (-60 dB): Whisper is sure of its "Thank you." there."""

Sound = npt.NDArray[np.float32]
Mel = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decoding:
    """One decoding of one segment, and how well it went."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text over its compressed bytes: loops compress well. 0 for no text."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data)) if data else 0.0

    @property
    def is_silence(self) -> bool:
        return not self.text.strip() or (
            self.no_speech_prob > NO_SPEECH_ABOVE
            and (self.avg_logprob < MIN_AVG_LOGPROB or HUM.fullmatch(self.text) is not None)
        )

    @property
    def is_sound(self) -> bool:
        """Whether Whisper's safeguards let it pass."""
        return self.is_silence or (
            self.compression_ratio <= MAX_COMPRESSION_RATIO and self.avg_logprob >= MIN_AVG_LOGPROB
        )

    def fits(self, duration_s: float) -> bool:
        """Whether so many tokens can have been said in that time."""
        return len(self.tokens) <= 10 + MAX_TOKENS_A_SECOND * duration_s


def window_frames(duration_s: float, shortest: int = SHORTEST_WINDOW_FRAMES) -> int:
    """Mel frames to encode for segments of at most *duration_s*: whole half seconds, so that shapes repeat."""
    needed = max(shortest, duration_s * 100 + WINDOW_MARGIN_FRAMES)
    return min(FULL_WINDOW_FRAMES, int(-(-needed // 50) * 50))


class Timed:
    """A CTranslate2 model with a clock: `busy_s` are the seconds that the calling thread has spent inside it."""

    def __init__(self, model: ctranslate2.models.Whisper) -> None:
        self._model = model
        self._thread = threading.local()

    @property
    def busy_s(self) -> float:
        return getattr(self._thread, "busy_s", 0.0)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        return self._timed(found) if name in ("encode", "generate", "align", "detect_language") else found

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self._thread.busy_s = self.busy_s + time.perf_counter() - begun

        return timed


class Whisper:
    """A loaded model. As many threads as it has streams may use it at once. Keeps nothing of what it transcribes."""

    def __init__(
        self, path: Path, *, device: str, device_index: int, compute_type: str, threads: int, streams: int = 1
    ) -> None:
        """*path*: a folder with a CTranslate2 Whisper model. *threads*: of one stream, on the CPU."""
        self._whisper = WhisperModel(
            str(path),
            device=device,
            device_index=device_index,
            compute_type=compute_type,
            cpu_threads=threads,
            num_workers=streams,
            local_files_only=True,
        )
        self._model = self._whisper.model = Timed(self._whisper.model)
        self._on_cpu = device == "cpu"
        width = self._encode([np.zeros((self._model.n_mels, 2), np.float32)], 2).shape[-1]
        self.shortest_window_frames = SHORTEST_WINDOW_FRAMES_OF_TINY if width == TINY_WIDTH else SHORTEST_WINDOW_FRAMES

    @property
    def busy_s(self) -> float:
        """Seconds that the calling thread has spent inside CTranslate2."""
        return self._model.busy_s

    def empty_cache(self) -> None:
        """Give memory that CTranslate2 keeps for later back to the GPU: its weights go out and come in again."""
        if not self._on_cpu:
            self._model.unload_model(to_cpu=True)
            self._model.load_model()

    def detect_language(self, segments: Sequence[Segment]) -> Language:
        """The language of the speech in *segments*, each weighted by its length."""
        if not self._model.is_multilingual:
            return Language("en", 1.0)
        weights = [segment.duration_s for segment in segments]
        heard: dict[str, float] = {}
        encoded = self._encode([self._mel(samples_of(segment)) for segment in segments], self._window(segments))
        for weight, languages in zip(weights, self._model.detect_language(encoded), strict=True):
            for token, probability in languages:
                code = token.strip("<|>")
                heard[code] = heard.get(code, 0.0) + probability * weight / sum(weights)
        code = max(heard, key=heard.__getitem__)
        return Language(code, heard[code])

    def transcribe(self, requests: Sequence[SegmentRequest]) -> list[TranscriptSegment]:
        """One result a request, in their order; text and words are empty where nobody speaks.

        Their options have a language, and differ in nothing but language and task. Segments that fail the safeguards
        are done again, alone, over the full window, unless they are to be decoded once.
        """
        sounds = [samples_of(request.segment) for request in requests]
        mels = [self._mel(sound) for sound in sounds]
        frames = self._window([request.segment for request in requests])
        encoded = self._encode(mels, frames)
        requests = self._in_their_languages(encoded, requests)
        decoded = self._decode(encoded, requests, requests[0].options.temperature)
        words = self._words(encoded, requests, decoded)
        results = []
        for request, sound, mel, decoding, timed in zip(requests, sounds, mels, decoded, words, strict=True):
            if np.abs(sound).max(initial=0.0) < INAUDIBLE:
                decoding = replace(decoding, tokens=(), text="")
            elif not decoding.is_sound or (
                frames < FULL_WINDOW_FRAMES and not decoding.fits(request.segment.duration_s)
            ):
                if request.options.once:
                    decoding, timed = replace(decoding, tokens=(), text=""), None
                else:
                    decoding, timed = self._rescued(request, mel, decoding, timed, frames)
            logprobs = self._logprobs(request, mel, decoding) if request.options.logprobs else None
            results.append(result(request, decoding, timed, sound, logprobs))
        return results

    def _in_their_languages(
        self, encoded: ctranslate2.StorageView, requests: Sequence[SegmentRequest]
    ) -> Sequence[SegmentRequest]:
        """*requests*, each with the likeliest language of its own, where that was asked for."""
        if not requests[0].options.multilingual or not self._model.is_multilingual:
            return requests
        likeliest = [languages[0][0].strip("<|>") for languages in self._model.detect_language(encoded)]
        return [
            replace(request, options=replace(request.options, language=language))
            for request, language in zip(requests, likeliest, strict=True)
        ]

    def _rescued(
        self,
        request: SegmentRequest,
        mel: Mel,
        decoding: Decoding,
        words: Sequence[TimedWord] | None,
        frames: int,
    ) -> tuple[Decoding, Sequence[TimedWord] | None]:
        """Decode a segment that failed over the full window, then hotter, until the safeguards let it pass."""
        temperatures = [request.options.temperature] if frames < FULL_WINDOW_FRAMES else []
        if request.options.temperature == 0:
            temperatures += HOTTER
        if not temperatures:
            return decoding, words
        encoded = self._encode([mel], FULL_WINDOW_FRAMES)
        tried = []
        for temperature in temperatures:
            [decoding] = self._decode(encoded, [request], temperature)
            if decoding.is_sound:
                break
            tried.append(decoding)
        else:
            # Whisper's choice among failures: the likeliest of those that do not repeat themselves.
            calm = [attempt for attempt in tried if attempt.compression_ratio <= MAX_COMPRESSION_RATIO]
            decoding = max(calm or tried, key=lambda attempt: attempt.avg_logprob)
        [words] = self._words(encoded, [request], [decoding])
        return decoding, words

    def _window(self, segments: Sequence[Segment]) -> int:
        """Mel frames that *segments* are encoded over together."""
        return window_frames(max(segment.duration_s for segment in segments), self.shortest_window_frames)

    def _tokenizer(self, options: TranscriptionOptions) -> Tokenizer:
        return Tokenizer(
            self._whisper.hf_tokenizer,
            self._model.is_multilingual,
            task=options.task.value,
            language=options.language if self._model.is_multilingual else "en",
        )

    def _mel(self, sound: Sound) -> Mel:
        """Log-mel spectrogram, shape (mels, frames of 10 ms)."""
        features: Mel = self._whisper.feature_extractor(sound)[:, :FULL_WINDOW_FRAMES]
        return features

    def _encode(self, mels: Sequence[Mel], frames: int) -> ctranslate2.StorageView:
        """Encoder states of a batch over a window of *frames*, shape (batch, frames / 2, width).

        On the CPU one segment after another: the encoder gains nothing from a batch there, and its attention over eight
        full windows takes 400 MB more than over one. The decoder, which does gain, gets them together.
        """
        padded = [np.pad(mel[:, :frames], ((0, 0), (0, max(0, frames - mel.shape[1])))) for mel in mels]
        if not self._on_cpu or len(padded) == 1:
            return self._model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(np.stack(padded))))
        states = [
            np.asarray(self._model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None]))))
            for mel in padded
        ]
        return ctranslate2.StorageView.from_array(np.concatenate(states))

    def _decode(
        self, encoded: ctranslate2.StorageView, requests: Sequence[SegmentRequest], temperature: float
    ) -> list[Decoding]:
        """One decoding a request. Each has a prompt of its own, so that languages and tasks may differ."""
        options = requests[0].options
        tokenizers = [self._tokenizer(request.options) for request in requests]
        previous = prompt_tokens(tokenizers[0].encode, options)
        search: dict[str, Any] = (
            {"beam_size": options.beam_size}
            if temperature == 0
            else {"beam_size": 1, "num_hypotheses": 5, "sampling_topk": 0, "sampling_temperature": temperature}
        )
        found = self._model.generate(
            encoded,
            [self._whisper.get_prompt(tokenizer, previous, without_timestamps=True) for tokenizer in tokenizers],
            max_length=MAX_TOKENS,
            suppress_blank=True,
            suppress_tokens=get_suppressed_tokens(tokenizers[0], [-1]),
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )
        return [self._decoding(one, tokenizer, temperature) for one, tokenizer in zip(found, tokenizers, strict=True)]

    @staticmethod
    def _decoding(found: Any, tokenizer: Tokenizer, temperature: float) -> Decoding:
        ids = found.sequences_ids[0]
        tokens = tuple(token for token in ids if token < tokenizer.eot)
        return Decoding(
            tokens=tokens,
            text=tokenizer.decode(list(tokens)),
            # CTranslate2's score is a mean over the tokens; Whisper's counts the end of the text as well.
            avg_logprob=found.scores[0] * len(ids) / (len(ids) + 1),
            no_speech_prob=found.no_speech_prob,
            temperature=temperature,
        )

    def _words(
        self, encoded: ctranslate2.StorageView, requests: Sequence[SegmentRequest], decoded: Sequence[Decoding]
    ) -> list[Sequence[TimedWord] | None]:
        """Words with times from the start of their segment, from the cross-attention over the states at hand."""
        timed: list[Sequence[TimedWord] | None] = [None] * len(requests)
        if not requests[0].options.word_timestamps:
            return timed
        # CTranslate2 aligns texts behind one and the same start: one language and task at a time.
        starts = [(request.options.language, request.options.task) for request in requests]
        for start in dict.fromkeys(starts):
            places = [place for place, one in enumerate(starts) if one == start]
            found = self._whisper.find_alignment(
                self._tokenizer(requests[places[0]].options),
                [list(decoded[place].tokens) for place in places],
                encoded if len(places) == len(requests) else rows(encoded, places),
                [max(2, round(requests[place].segment.duration_s * 100)) for place in places],
            )
            for place, words in zip(places, found, strict=True):
                timed[place] = [
                    TimedWord(str(word["word"]), float(word["start"]), float(word["end"]), float(word["probability"]))
                    for word in words
                ]
        return timed

    def _logprobs(self, request: SegmentRequest, mel: Mel, decoding: Decoding) -> tuple[Token, ...]:
        """What the model gives each token of the text, behind those before it."""
        tokens = [] if decoding.is_silence else list(decoding.tokens)
        if not tokens:
            return ()
        tokenizer = self._tokenizer(request.options)
        frames = self._window([request.segment])
        encoded = self._encode([mel], frames)
        [found] = self._model.align(encoded, tokenizer.sot_sequence, [tokens], [frames])
        spelled = [bytes_of(self._whisper.hf_tokenizer.id_to_token(token)) for token in tokens]
        return tuple(
            Token(data.decode("utf-8", "replace"), tuple(data), math.log(max(probability, LEAST_PROBABILITY)))
            for data, probability in zip(spelled, found.text_token_probs, strict=True)
        )


def rows(encoded: ctranslate2.StorageView, places: Sequence[int]) -> ctranslate2.StorageView:
    """Some segments' encoder states, by way of the CPU."""
    states = np.asarray(encoded.to_device(ctranslate2.Device.cpu))
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(states[list(places)]))


def spaced(text: str, language: str | None) -> str:
    """Text that can be appended to the text before it: Whisper leaves the first space out now and then."""
    return text if language in WITHOUT_SPACES or text.startswith(" ") else f" {text}"


def result(
    request: SegmentRequest,
    decoding: Decoding,
    words: Sequence[TimedWord] | None,
    sound: Sound,
    logprobs: tuple[Token, ...] | None = None,
) -> TranscriptSegment:
    """The segment's part of the transcript, its times counted from the start of the recording."""
    segment = request.segment
    text = "" if decoding.is_silence else spaced(decoding.text, request.options.language)
    spoken: Iterator[Word] | None = None
    if words is not None:
        tidy = fitted(tidied(words, segment.duration_s), loudness(sound)) if text else []
        spoken = (
            Word(segment.start_s + word.start, segment.start_s + word.end, word.text, word.probability) for word in tidy
        )
    return TranscriptSegment(
        id=segment.index,
        start=segment.start_s,
        end=segment.start_s + segment.samples / SAMPLE_RATE,
        text=text,
        avg_logprob=decoding.avg_logprob,
        no_speech_prob=decoding.no_speech_prob,
        compression_ratio=decoding.compression_ratio,
        temperature=decoding.temperature,
        words=None if spoken is None else tuple(spoken),
        language=request.options.language if request.options.multilingual and text else None,
        tokens=decoding.tokens if text else (),
        logprobs=logprobs,
    )
