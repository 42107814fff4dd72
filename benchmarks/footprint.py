"""What a server of a given model, batch size and threads takes in memory: idle, and over the long file.

    .venv/bin/python -m benchmarks.footprint tiny.en:1:1 base:2:2

Memory is the sum over the server and all its children, as in scripts/bench.
"""

from __future__ import annotations

import argparse

from benchmarks.processes import MemoryWatch, tree_memory
from benchmarks.server import Server
from benchmarks.speech_set import SpeechSet, speech_dir
from benchmarks.tables import markdown, mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="MODEL:BATCH_SIZE:CPU_THREADS")
    clip = SpeechSet(speech_dir()).long()
    rows = []
    for name in parser.parse_args().servers:
        model, batch_size, threads = name.split(":")
        with Server(model, int(threads), batch_size=int(batch_size)) as server:
            idle = tree_memory(server.pid)
            with MemoryWatch(server.pid) as watch:
                answer = server.client.transcribe(clip, model, "en")
        speed = f"{clip.duration_s / answer.seconds:.1f}"
        peaks = [mebibytes(size) for size in (idle.rss, watch.peak.rss, watch.peak.pss)]
        rows.append([model, batch_size, threads, *peaks, speed])
    print(markdown(["model", "batch size", "threads", "idle RSS MiB", "peak RSS MiB", "peak PSS MiB", "RTFx"], rows))


if __name__ == "__main__":
    main()
