"""A child process's side of its life with the server: how it answers, and how it ends with it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Any, BinaryIO, Self

import telemetry
from transcription import protocol

PR_SET_PDEATHSIG = 1
"""prctl(2)."""

OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "bad_alloc",
    "failed to allocate memory",
    "could not create a memory object",
    "DefaultCPUAllocator",
)
"""What CTranslate2 and PyTorch, and MKL and oneDNN beneath them, say when an allocation fails."""


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def die_with(parent: int) -> None:
    """Be killed when *parent* dies, even while stopped. Only Linux can do that; the end of stdin does the rest."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class Answers:
    """The way back to the server: one line at a time, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    @classmethod
    def on_stdout(cls) -> Self:
        """On what is stdout now. NOTE: from then on stdout belongs to the protocol; what is printed goes to stderr."""
        answers = cls(os.fdopen(os.dup(1), "wb"))
        os.dup2(2, 1)
        return answers

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(protocol.line(message))
            self._stream.flush()


def begin(parent: int, log_level: str, name: str) -> Answers:
    """What a child does first. *name* stands in its log lines."""
    die_with(parent)
    telemetry.configure(log_level, process=name)
    # Ctrl-C in a terminal reaches the whole group: the server decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Answers.on_stdout()
