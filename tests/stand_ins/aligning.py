"""Aligns what it is told on stdin, by our aligner and by WhisperX's own, and prints what came of it as JSON.

A process of its own, since it holds torch: `python tests/stand_ins/aligning.py`, with tests/stand_ins and the project
on PYTHONPATH, so that the stand-in model is found.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transcription.alignment_text import AlignmentRequest
from transcription.core import SAMPLE_RATE, Segment

if TYPE_CHECKING:
    import torch

    from transcription.alignment import Aligner


def requests_of(told: list[dict[str, Any]]) -> list[AlignmentRequest]:
    return [
        AlignmentRequest(Segment(Path(one["path"]), one["first"], one["samples"], place), tuple(one["words"]))
        for place, one in enumerate(told)
    ]


def by_whisperx(aligner: Aligner, request: AlignmentRequest) -> list[dict[str, Any]]:
    """Each word that WhisperX sees in the segment, alone, as `whisperx.align` gives it."""
    import whisperx.alignment

    from transcription.pcm import samples_of

    metadata = {"language": "en", "dictionary": aligner._dictionary, "type": aligner._kind}
    segment = {"start": 0.0, "end": request.segment.duration_s, "text": "".join(request.words)}
    sound = samples_of(request.segment)
    found = whisperx.alignment.align([segment], aligner._model, metadata, sound, "cpu")
    words: list[dict[str, Any]] = found["word_segments"]
    return words


class Remembering:
    """A model that hears each sound once: ours and WhisperX's call are the same, and its encoder takes a second.

    Known again by all of its samples, so who is given another sound hears another.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._heard: dict[bytes, Any] = {}

    def __call__(self, waves: torch.Tensor, **more: Any) -> Any:
        key = waves.numpy().tobytes()
        if key not in self._heard:
            self._heard[key] = self._model(waves, **more)
        return self._heard[key]


def small_models() -> dict[str, tuple[Any, str]]:
    """The networks whose batches are known, of either library and with either normalisation; weights by chance."""
    import torch
    import torchaudio
    from torchaudio.pipelines._wav2vec2.utils import _extend_model
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)

    def of_torchaudio(norm: str) -> Any:
        return torchaudio.models.wav2vec2_model(
            extractor_mode=norm,
            extractor_conv_layer_config=[(32, 10, 5), (32, 8, 4), (32, 16, 16)],
            extractor_conv_bias=norm == "layer_norm",
            encoder_embed_dim=48,
            encoder_projection_dropout=0.1,
            encoder_pos_conv_kernel=16,
            encoder_pos_conv_groups=4,
            encoder_num_layers=2,
            encoder_num_heads=4,
            encoder_attention_dropout=0.1,
            encoder_ff_interm_features=64,
            encoder_ff_interm_dropout=0.1,
            encoder_dropout=0.1,
            encoder_layer_norm_first=norm == "layer_norm",
            encoder_layer_drop=0.1,
            aux_num_out=11,
        )

    def of_transformers(norm: str) -> Any:
        return Wav2Vec2ForCTC(
            Wav2Vec2Config(
                vocab_size=11,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                feat_extract_norm=norm,
                conv_dim=(32, 32, 32),
                conv_kernel=(10, 8, 16),
                conv_stride=(5, 4, 16),
                num_feat_extract_layers=3,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                do_stable_layer_norm=norm == "layer",
            )
        )

    return {
        "torchaudio, group": (of_torchaudio("group_norm"), "torchaudio"),
        "torchaudio, layer": (of_torchaudio("layer_norm"), "torchaudio"),
        "torchaudio, layer, wrapped": (_extend_model(of_torchaudio("layer_norm"), True), "torchaudio"),
        "transformers, group": (of_transformers("group"), "huggingface"),
        "transformers, layer": (of_transformers("layer"), "huggingface"),
    }


def batches() -> dict[str, list[float]]:
    """(largest difference between a sound in a batch and the sound alone, the same for padding without more ado)"""
    import torch

    from transcription.alignment import Aligner, batched

    chance = np.random.default_rng(1)
    sounds = [chance.normal(0, 0.1, samples).astype(np.float32) for samples in (16_000, 9_000, 4_321)]
    waves = [torch.from_numpy(sound)[None] for sound in sounds]
    padded = torch.nn.utils.rnn.pad_sequence([wave[0] for wave in waves], batch_first=True)
    found = {}
    for name, (model, kind) in small_models().items():
        aligner = Aligner(model, {"type": kind, "language": "en", "dictionary": {}}, "cpu")
        alone = [torch.from_numpy(emission) for emission in aligner.emissions(sounds)]
        with torch.inference_mode():
            together = batched(model, waves)
            assert together is not None
            naive = aligner._model(padded)
            naive = naive.logits if kind == "huggingface" else naive[0]
        same = [torch.log_softmax(one, -1) - emission for one, emission in zip(together, alone, strict=True)]
        other = [torch.log_softmax(one[: len(e)], -1) - e for one, e in zip(naive, alone, strict=True)]
        found[name] = [max(float(one.abs().max()) for one in differences) for differences in (same, other)]
    return found


def refusal(folder: str, language: str, name: str | None) -> str:
    """What is said where a model cannot be had, and nothing may be fetched."""
    from transcription.alignment import Aligner, NoAlignmentModel

    try:
        Aligner.load(language, name, "cpu", folder, local_only=True)
    except NoAlignmentModel as problem:
        return str(problem)
    return ""


def main(told: dict[str, Any]) -> dict[str, Any]:
    torch_before = "torch" in sys.modules

    from transcription.alignment import Aligner

    aligner = Aligner.load("en", None, "cpu", None, local_only=True)
    requests = requests_of(told["requests"])
    compared = requests[: told["compared"]]
    size = aligner.bytes
    vars(aligner)["_model"] = Remembering(aligner._model)
    return {
        "torch_before": torch_before,
        "bytes": size,
        "ours": [None if words is None else [asdict(word) for word in words] for words in aligner.align(requests)],
        "whisperx": [by_whisperx(aligner, request) for request in compared],
        "batches": batches(),
        "refusals": [refusal(told["folder"], *one) for one in told["not_here"]],
        "sample_rate": SAMPLE_RATE,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        done = main(json.load(sys.stdin))
    print(json.dumps(done))
