"""Memory over many short jobs: what is held after each block of them, when nothing is in flight."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.experiment import MODEL, Aim, Plan, Report, say
from benchmarks.load import ask_all
from benchmarks.plots import Panel, draw
from benchmarks.processes import TreeMemory, tree_memory
from benchmarks.results import memory_cells
from benchmarks.server import Server
from benchmarks.speech_set import SpeechSet, speech_dir
from benchmarks.tables import markdown

BLOCK = 50
QUICK_BLOCK = 8
BLOCKS = 4
"""At each number of callers."""
AT_ONCE = (1, 8)
MOST_GROWTH_MB = 50


@dataclass(frozen=True, slots=True)
class Block:
    """What was held after a block of jobs."""

    jobs: int
    """Since the server started."""
    at_once: int
    held: TreeMemory


def growth_mb(blocks: Sequence[Block]) -> float:
    """Resident megabytes between the first block's end and the last's."""
    return (blocks[-1].held.rss - blocks[0].held.rss) / 1e6


def aims(blocks: Sequence[Block]) -> list[Aim]:
    found = [
        Aim(
            f"growth from the first block's end to the last's, {at_once} at once",
            growth_mb([block for block in blocks if block.at_once == at_once]),
            most=MOST_GROWTH_MB,
            unit="MB",
        )
        for at_once in AT_ONCE
    ]
    return [*found, Aim("growth over all of them", growth_mb(blocks), most=MOST_GROWTH_MB, unit="MB")]


def measure(plan: Plan) -> Report:
    size = QUICK_BLOCK if plan.quick else BLOCK
    jobs = itertools.cycle(SpeechSet(speech_dir()).short())
    blocks: list[Block] = []
    with Server(MODEL) as server:
        for at_once, _ in itertools.product(AT_ONCE, range(BLOCKS)):
            ask_all(server.hear, list(itertools.islice(jobs, size)), at_once)
            blocks.append(Block((len(blocks) + 1) * size, at_once, tree_memory(server.pid)))
            say(f"memory: {blocks[-1].jobs} jobs")
    cells = [[str(block.jobs), str(block.at_once), *memory_cells(block.held)] for block in blocks]
    title = f"Memory over {blocks[-1].jobs} short jobs"
    lines = {
        kind: [(float(block.jobs), getattr(block.held, field) / 2**20) for block in blocks]
        for kind, field in (("RSS", "rss"), ("PSS", "pss"))
    }
    return Report(
        title,
        [markdown(["jobs so far", "at once", "RSS MiB", "PSS MiB"], cells)],
        aims(blocks),
        {"blocks": [asdict(block) for block in blocks]},
        draw(plan.plots, "memory", title, "jobs so far", [Panel("MiB, server and children", lines)]),
    )
