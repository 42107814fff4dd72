"""The catalogue's prices against what the real engine takes: plans are made from them before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.speech import ROOT, speech_file
from transcription.core import SAMPLE_RATE
from transcription.footprint import footprint
from transcription.models import ModelLibrary, spec

WINDOW_S = 30
BATCHES = 3
BATCH_SIZE = 4

CHILD = """
import sys
from pathlib import Path

import transcription.engine_child
from transcription.core import SAMPLE_RATE, Segment, SegmentRequest, TranscriptionOptions
from transcription.whisper import Whisper

weights, pcm, window_s, batches, size = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
whisper = Whisper(weights, device="cpu", device_index=0, compute_type="int8", threads=1)
samples = window_s * SAMPLE_RATE
segments = [Segment(pcm, index * samples, samples, index) for index in range(batches * size)]
options = TranscriptionOptions("tiny.en", "en", word_timestamps=True)
requests = [SegmentRequest(segment, options) for segment in segments]
for first in range(0, len(requests), size):
    assert any(result.text for result in whisper.transcribe(requests[first : first + size]))
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells a process's peak.")
def test_tiny_takes_what_was_predicted(tmp_path: Path, ffmpeg_binary: Path) -> None:
    """Whole windows, word times asked for. Too low a price kills a container, too high a one wastes it."""
    pcm = tmp_path / "speech.pcm"
    source = speech_file("long/libri_10spk_long.mp3")
    seconds = BATCHES * BATCH_SIZE * WINDOW_S
    pcm_options = ("-t", str(seconds), "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le")
    subprocess.run([ffmpeg_binary, "-v", "error", "-i", source, *pcm_options, pcm], check=True)
    weights = ModelLibrary(tmp_path / "models", downloads=False, hf_token=None).ensure("tiny.en")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, weights, pcm, *map(str, (WINDOW_S, BATCHES, BATCH_SIZE))],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    predicted_bytes = footprint(spec("tiny.en"), "int8", "cpu").total_bytes(1, BATCH_SIZE)
    assert 0.85 < predicted_bytes / int(child.stdout) < 1.6
