"""What a Whisper model takes in memory, from its dimensions. Pure; `scripts/calibrate` holds it against what is seen.

Bytes of a float where the model computes: 4 on the CPU, 2 on CUDA unless float32 is asked for.
"""

from __future__ import annotations

from itertools import pairwise

from limits import Footprint
from transcription.core import MAX_SEGMENT_S
from transcription.models import ModelSpec
from transcription.planner import LENGTH_CLASSES_S

CPU_BATCH_S = 40.0
"""Audio in a batch on a CPU, where it takes as long as its audio: four segments of the shortest window's length."""

WINDOW_STATES = 1_500
"""Encoder states of a full window: 3,000 mel frames, halved by the second convolution."""

WINDOW_MARGIN_S = 2.0
SHORTEST_WINDOW_S = 15.0
SHORTEST_WINDOW_OF_TINY_S = 10.0
TINY_WIDTH = 384
"""Windows are as long as `transcription.whisper` makes them, in whose words these stand in frames."""

VOCABULARY = 51_865
TEXT_POSITIONS = 448

TOKENS_A_SECOND = 4.0
"""Of brisk speech: 180 words a minute, at four tokens to three words. Seen: up to 3 over 30 s, up to 5 over 10 s."""

START_TOKENS = 5
"""Before and after a segment's text: start, language, task, no times, end."""

HYPOTHESES = 5
"""Tries at once where a segment is done again hotter (`Whisper._decode`), each with states of its own."""

CUDA_TOKENS = 100
"""Of a full segment: 30 s at 150 words a minute."""

CPU_PROCESS_BYTES = 83_500_000
"""The engine's child before it loads a model: Python, numpy, CTranslate2, faster-whisper. Seen: 79 MiB."""

CUDA_PROCESS_BYTES = 1_000_000_000
"""Of the device: CUDA's context, kernels, cuBLAS and cuDNN with their workspaces. Not seen here: what is left of
faster-whisper's published 4,525 MB for large-v2 in float16 when all other parts of this footprint are taken off."""

ENGLISH_TOKENIZER_BYTES = 45_000_000
TOKENIZER_BYTES = 70_000_000
"""The tokenizer's and CTranslate2's tables of words, in main memory. Seen: 42 MiB of a vocabulary of English alone,
64 to 68 MiB of one with languages."""

LISTED_BATCHES = 8
"""Batch sizes whose bytes are told one by one. On a CPU larger ones only hold more segments of the shortest window."""


def footprint(model: ModelSpec, compute_type: str, device: str, beam_size: int = 5) -> Footprint:
    """What *model* takes on *device* ("cpu" or "cuda…") with CTranslate2's *compute_type*, in the worst batches."""
    on_cpu = device == "cpu"
    float_bytes = 4 if on_cpu or compute_type in ("float32", "int8_float32") else 2
    weights_bytes = _weights_bytes(model, compute_type, device, float_bytes)
    if not on_cpu:
        first, each = _on_cuda(model, float_bytes, beam_size)
        return Footprint(
            weights_bytes, CUDA_PROCESS_BYTES, (first + each, first + 2 * each), loading_bytes=weights_bytes
        )
    return Footprint(
        weights_bytes=weights_bytes + (TOKENIZER_BYTES if model.multilingual else ENGLISH_TOKENIZER_BYTES),
        process_bytes=CPU_PROCESS_BYTES,
        batch_bytes=tuple(_cpu_batch_bytes(model, size, beam_size) for size in range(1, LISTED_BATCHES + 1)),
        retry_bytes=_cpu_retry_bytes(model),
        loading_bytes=_loading_bytes(model),
    )


def _cpu_batch_bytes(model: ModelSpec, batch_size: int, beam_size: int) -> int:
    """What a stream takes for one segment after another that fills the window, or for up to *batch_size* together.

    Segments are encoded one by one and decoded together. The encoder's memory is returned before the decoder takes its
    own, and the decoder's before words are timed, so the largest of the three counts. The planner gives a batch of
    more than one segment CPU_BATCH_S of audio at most: four full windows never share one.
    """
    shape = model.dimensions
    state_bytes = 4 * shape.width
    # One layer's attention over itself (its scores become the probabilities in place), twelve buffers of states' size.
    encoder = 4 * shape.heads * WINDOW_STATES**2 + 12 * WINDOW_STATES * state_bytes
    most = [encoder]
    for segments in range(1, batch_size + 1):
        # All are as wide as the longest of them, in states and in text.
        states = segments * round(WINDOW_STATES * window_s(model, longest_s(segments)) / MAX_SEGMENT_S)
        tokens = segments * (START_TOKENS + round(TOKENS_A_SECOND * longest_s(segments)))
        text = _text_bytes(model, tokens, beam_size) + 3 * _row_bytes(segments * beam_size)
        # Word times look at all tokens at once, one layer after another: sums, their floats, probabilities.
        words = states * 2 * state_bytes + 3 * _row_bytes(tokens)
        most += [_states_bytes(model, states) + text, states * state_bytes + words]
    return max(most)


def _cpu_retry_bytes(model: ModelSpec) -> int:
    """A full segment that failed the safeguards, done again: CTranslate2 gives each hypothesis a copy of the states."""
    tokens = START_TOKENS + round(TOKENS_A_SECOND * MAX_SEGMENT_S)
    states = HYPOTHESES * _states_bytes(model, WINDOW_STATES)
    return states + _text_bytes(model, tokens, HYPOTHESES) + 3 * _row_bytes(HYPOTHESES)


def _states_bytes(model: ModelSpec, states: int) -> int:
    """The encoder's states, and their keys and values in each of the decoder's layers."""
    return (1 + 2 * model.dimensions.decoder_layers) * states * 4 * model.dimensions.width


def _text_bytes(model: ModelSpec, tokens: int, beams: int) -> int:
    """Keys and values of *tokens* in each of the decoder's layers, once a beam, and as much while they grow by one."""
    return 2 * 2 * model.dimensions.decoder_layers * beams * tokens * 4 * model.dimensions.width


def _row_bytes(rows: int) -> int:
    """A number for each word of the vocabulary, so many times."""
    return rows * VOCABULARY * 4


def longest_s(segments: int) -> float:
    """How long the longest of so many segments of one batch can be on a CPU: they are of like length, and bounded."""
    classes = pairwise((0.0, *LENGTH_CLASSES_S, MAX_SEGMENT_S))
    return max(min(most_s, CPU_BATCH_S - (segments - 1) * least_s) for least_s, most_s in classes)


def window_s(model: ModelSpec, duration_s: float) -> float:
    """What a batch is encoded over whose longest segment lasts so long."""
    shortest_s = SHORTEST_WINDOW_OF_TINY_S if model.dimensions.width == TINY_WIDTH else SHORTEST_WINDOW_S
    return min(MAX_SEGMENT_S, max(shortest_s, duration_s + WINDOW_MARGIN_S))


def _on_cuda(model: ModelSpec, float_bytes: int, beam_size: int) -> tuple[int, int]:
    """What the encoder takes, and each segment of a batch: full windows, for the planner bounds no audio there.

    CTranslate2 keeps the encoder's blocks for later, so both are added up. Held against what others published.
    """
    shape = model.dimensions
    # Scores and probabilities of one layer's attention, and about twelve buffers as wide as the states.
    encoder = (2 * shape.heads * WINDOW_STATES**2 + 12 * WINDOW_STATES * shape.width) * float_bytes
    # The states themselves: of the encoder, joined to a batch, in the decoder.
    states = 3 * WINDOW_STATES * shape.width * float_bytes
    # Keys and values of all decoder layers: over the states once, over the text once a beam.
    cross_attention = shape.decoder_layers * 2 * WINDOW_STATES * shape.width * float_bytes
    self_attention = shape.decoder_layers * 2 * beam_size * CUDA_TOKENS * shape.width * float_bytes
    # Word times look at all tokens at once: a row of the vocabulary each, and each head's weights over the states.
    word_times = (CUDA_TOKENS * VOCABULARY + shape.heads * CUDA_TOKENS * WINDOW_STATES) * float_bytes
    return encoder, states + cross_attention + max(self_attention, word_times)


def parameters(model: ModelSpec) -> tuple[int, int]:
    """Numbers in the matrices that a compute type may make smaller, and in the others, which stay floats.

    Both attentions and the feed-forward network of a decoder layer are 16 squares of the width, an encoder layer's 12.
    Biases and norms are left out: less than a hundredth.
    """
    shape = model.dimensions
    square = shape.width**2
    matrices = (12 * shape.encoder_layers + 16 * shape.decoder_layers) * square + VOCABULARY * shape.width
    convolutions = 3 * model.n_mels * shape.width + 3 * square
    return matrices, convolutions + (WINDOW_STATES + TEXT_POSITIONS) * shape.width


def _weights_bytes(model: ModelSpec, compute_type: str, device: str, float_bytes: int) -> int:
    """Embeddings are quantized like other matrices, convolutions and positions are not (CTranslate2, `whisper.cc`)."""
    matrices, others = parameters(model)
    if compute_type.startswith("int8") or (compute_type == "auto" and device == "cpu"):
        return matrices + others * float_bytes
    if compute_type == "int16":
        return matrices * 2 + others * float_bytes
    return (matrices + others) * float_bytes


def _loading_bytes(model: ModelSpec) -> int:
    """The file as it lies on disk, in float16, and its largest matrix, the embeddings, in float32 and int8 besides.

    CTranslate2 reads all of it, then turns one matrix after another. Seen: 170 MiB for tiny.en, 260 MiB for base.
    """
    return model.weights_bytes + 5 * VOCABULARY * model.dimensions.width
