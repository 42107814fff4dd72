"""What a Whisper model takes in memory, from its dimensions. Pure; the figures were held against what was seen.

B stands for bytes of a float where the model computes: 4 on the CPU, 2 on CUDA unless float32 is asked for.
"""

from __future__ import annotations

from limits import Footprint
from transcription.models import ModelSpec

WINDOW_STATES = 1_500
"""Encoder states of a full window: 3,000 mel frames, halved by the second convolution."""

VOCABULARY = 51_865
TEXT_POSITIONS = 448

TOKENS = 100
"""Of a full segment: 30 s at 150 words a minute, at four tokens to three words."""

CPU_PROCESS_BYTES = 75_000_000
"""The engine's child before it loads a model: Python, numpy, CTranslate2, faster-whisper. Seen: 71 MiB."""

CUDA_PROCESS_BYTES = 1_000_000_000
"""Of the device: CUDA's context, kernels, cuBLAS and cuDNN with their workspaces. Not seen here: what is left of
faster-whisper's published 4,525 MB for large-v2 in float16 when all other parts of this footprint are taken off."""

TOKENIZER_BYTES = 45_000_000
"""The tokenizer's and CTranslate2's tables of words, in main memory. Seen: 28 MB (English) to 50 MB (multilingual)."""


def footprint(model: ModelSpec, compute_type: str, device: str, beam_size: int = 5) -> Footprint:
    """What *model* takes on *device* ("cpu" or "cuda…") with CTranslate2's *compute_type*, over full windows.

    On the CPU segments are encoded one by one and decoded together; on CUDA both are done to the whole batch. Decoder
    and word times follow one another over the same states, so the larger of them counts. The heap keeps much of what
    the encoder has freed, so encoder and decoder are added up.
    """
    shape = model.dimensions
    on_cpu = device == "cpu"
    float_bytes = 4 if on_cpu or compute_type in ("float32", "int8_float32") else 2
    # Scores and probabilities of one layer's attention, and about twelve buffers as wide as the states.
    encoder = (2 * shape.heads * WINDOW_STATES**2 + 12 * WINDOW_STATES * shape.width) * float_bytes
    # The states themselves: of the encoder, joined to a batch, in the decoder.
    states = 3 * WINDOW_STATES * shape.width * float_bytes
    # Keys and values of all decoder layers: over the states once, over the text once a beam.
    cross_attention = shape.decoder_layers * 2 * WINDOW_STATES * shape.width * float_bytes
    self_attention = shape.decoder_layers * 2 * beam_size * TOKENS * shape.width * float_bytes
    # Word times look at all tokens at once: a row of the vocabulary each, and each head's weights over the states.
    word_times = (TOKENS * VOCABULARY + shape.heads * TOKENS * WINDOW_STATES) * float_bytes
    weights_bytes = _weights_bytes(model, compute_type, device, float_bytes)
    return Footprint(
        weights_bytes=weights_bytes + (TOKENIZER_BYTES if on_cpu else 0),
        slot_bytes=states + cross_attention + max(self_attention, word_times),
        stream_bytes=encoder,
        process_bytes=CPU_PROCESS_BYTES if on_cpu else CUDA_PROCESS_BYTES,
        loading_bytes=_loading_bytes(model) if on_cpu else weights_bytes,
    )


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

    CTranslate2 reads all of it, then turns one matrix after another. Seen: 169 MiB for tiny.en, 259 MiB for base.
    """
    return model.weights_bytes + 5 * VOCABULARY * model.dimensions.width
