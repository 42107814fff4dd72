"""The plan command: what it says is what `limits.plan` decides, for this machine and for others."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import classic
import limits
from errors import ConfigurationError
from memory import MemoryReading
from planning import (
    RAILWAY_MB,
    RAILWAY_MODELS,
    Planned,
    bytes_of,
    described,
    main,
    next_smaller,
    planned,
    railway,
    shown,
)
from transcription.footprint import footprint
from transcription.models import CATALOGUE, spec

ROOT = Path(__file__).resolve().parents[2]
MIB, GIB = 2**20, 2**30


def machine(total_bytes: int) -> MemoryReading:
    return MemoryReading(total_bytes, 0, "assumed")


def on_cpu(model: str, total_bytes: int, cores: int = 2) -> Planned:
    return planned(spec(model), machine(total_bytes), cores, "cpu")


def run(*arguments: str, gpus: tuple[int, ...] = ()) -> int:
    """The command on a machine of 4 GiB, 1 of them in use, with 3 cores."""
    return main(
        ["plan", *arguments],
        ram=lambda: MemoryReading(4 * GIB, GIB, "cgroup v2"),
        cuda=lambda: [MemoryReading(total_bytes, 0, "nvml") for total_bytes in gpus],
        own_cores=lambda: 3,
    )


def row(text: str, name: str) -> str:
    """What stands beside *name*."""
    [found] = [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]
    return found


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MB", 512 * MIB),
        ("8GB", 8 * GIB),
        ("2GiB", 2 * GIB),
        ("300 mib", 300 * MIB),
        ("1.5gb", 1536 * MIB),
        ("2048", 2 * GIB),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    """MB are powers of two, as in MEMORY_LIMIT_MB; a plain number counts them."""
    assert bytes_of(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "8TB", "8 B", "-1GB", "0", "0.0GB", "1e3", "8,5GB", "٨GB", "nan", "8GBs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A plan for a misread size would look like any other."""
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        bytes_of(text)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_it_prints_what_limits_decides(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure of the plan and of the footprint, for the machine that was named and not for this one."""
    assert run("--ram", "8GB", "--cores", "8", "--device", "cpu", "--model", "medium") == 0
    out = capsys.readouterr().out
    cost = footprint(spec("medium"), "auto", "cpu")
    made = limits.plan(machine(8 * GIB), 8, "cpu", cost)
    most_bytes = cost.total_bytes(made.streams + made.express, made.batch_size)
    idle_bytes = cost.process_bytes + cost.weights_bytes
    assert "medium in 8.0 GiB of main memory" in out
    assert "8 cores" in out.splitlines()[0]
    assert row(out, "engine").startswith(f"{made.replicas} replica,")
    assert (
        row(out, "decodes") == f"{made.streams} streams of {made.threads} threads, batches of up to {made.batch_size}"
    )
    assert row(out, "for clips") == "no stream of their own"
    assert row(out, "limited by").startswith("memory:")
    assert row(out, "memory") == f"{shown(idle_bytes)} idle, up to {shown(most_bytes)} at work or while it loads"
    left = (made.replica_bytes - idle_bytes, made.replica_bytes - most_bytes)
    assert row(out, "for requests") == f"{shown(left[0])} beside the idle engine, {shown(left[1])} beside the busiest"


@pytest.mark.parametrize(
    ("model", "total_bytes", "cores", "limit"),
    [
        ("base", 640 * MIB, 2, "memory: with more of it, more streams"),
        ("small", 2 * GIB, 2, "memory: with more of it, a stream for clips"),
        ("base", 8 * GIB, 2, "the cores"),
        ("base", 8 * GIB, 4, "the cores"),
        ("base", 8 * GIB, 8, "the most streams that pay"),
    ],
)
def test_the_limit_is_named_in_words(model: str, total_bytes: int, cores: int, limit: str) -> None:
    """Who wants more must know what to buy: memory, or cores."""
    assert row(described(on_cpu(model, total_bytes, cores)), "limited by").startswith(limit)


@pytest.mark.parametrize("model", RAILWAY_MODELS)
@pytest.mark.parametrize("memory_mb", RAILWAY_MB)
@pytest.mark.parametrize("cores", [1, 2, 8])
def test_more_memory_adds_something_where_memory_is_named_and_nothing_else(
    model: str, memory_mb: int, cores: int
) -> None:
    """Else somebody would pay for nothing."""
    made = on_cpu(model, memory_mb * MIB, cores)
    much = on_cpu(model, 1024 * GIB, cores)
    if made.fits:
        named = row(described(made), "limited by").startswith("memory")
        assert named == ((made.segments, made.plan.express) != (much.segments, much.plan.express))


@pytest.mark.parametrize("model", RAILWAY_MODELS)
@pytest.mark.parametrize("memory_mb", RAILWAY_MB)
def test_a_segment_of_the_plan_never_takes_more_than_one_in_an_engine_of_its_own(model: str, memory_mb: int) -> None:
    """The command says that shared weights win; this holds it for all that its table shows."""
    made = on_cpu(model, memory_mb * MIB)
    if made.fits:
        assert made.most_bytes <= made.plan.replica_bytes
        assert made.most_bytes / made.segments <= made.cost.total_bytes(1, 1)


def test_the_classic_rule_stands_beside_the_plan() -> None:
    """Both of its figures for a desktop, the container's, and what they cost."""
    out = described(on_cpu("small", 8 * GIB))
    desktop = classic.on_desktop(8192, 1000)
    assert (
        f"at most {desktop.at_most} engines on a desktop ({desktop.recommended} recommended), 4 in a container" in out
    )
    assert "own copy of the weights (1 GB)" in out
    assert f"{desktop.at_most} engines on 2 cores would wait for each other" in out
    assert "would wait" not in described(on_cpu("small", 8 * GIB, cores=desktop.at_most))


def test_where_one_segment_is_all_nobody_claims_more() -> None:
    """In 512 MB the plan decodes one segment at a time, as one engine of the rule does."""
    out = described(on_cpu("tiny.en", 512 * MIB))
    assert "1 segment at a time" in out
    assert "no more than one engine" in out
    assert "of its own" not in out


def test_the_classic_rule_has_no_figures_for_gpus_and_distilled_models() -> None:
    """None were published; made-up ones would look like the others."""
    assert "no figures for GPUs" in described(planned(spec("large-v3"), machine(24 * GIB), 8, "cuda"))
    assert "no figure for distil-large-v3" in described(on_cpu("distil-large-v3", 8 * GIB))


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_next_smaller_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts look at the status, people at the name."""
    assert run("--ram", "2GB", "--model", "large-v3") == 1
    out = capsys.readouterr().out
    assert "large-v3 does not fit: it takes 4.3 GiB at the least." in out
    assert "The next smaller model that fits is small." in out
    assert "decodes" not in out


@pytest.mark.parametrize(
    ("model", "total_bytes"),
    [("large-v3", 4 * GIB), ("medium", 2 * GIB), ("base", 512 * MIB), ("medium.en", GIB), ("small.en", 512 * MIB)],
)
def test_the_named_model_is_the_largest_that_fits_and_knows_as_many_languages(model: str, total_bytes: int) -> None:
    """Who asked for many languages is not helped by English alone, and who asked for English is helped by its own."""
    too_large = on_cpu(model, total_bytes)
    assert not too_large.fits
    smaller = next_smaller(too_large)
    assert smaller is not None
    assert smaller.fits
    assert smaller.model.english_only == spec(model).english_only
    between = [
        other.name
        for other in CATALOGUE
        if other.english_only == smaller.model.english_only
        and on_cpu(other.name, total_bytes).fits
        and on_cpu(other.name, total_bytes).cost.total_bytes(1, 1) > smaller.cost.total_bytes(1, 1)
    ]
    assert between == []


def test_where_nothing_fits_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """100 MiB hold no model at all; a plain number counts MiB."""
    assert run("--ram", "100", "--model", "base") == 1
    assert "No smaller model fits either." in capsys.readouterr().out


# --- which machine ---------------------------------------------------------------------------------------------------


def test_without_ram_it_is_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """With what others use already, its cores, and the model that the server would take."""
    assert run() == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "base in 4.0 GiB of main memory (cgroup v2, 1.0 GiB in use; 3.0 GiB for the engine), 3 cores"


def test_another_machine_does_not_get_this_ones_cores_or_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Two cores are assumed, and said."""
    assert run("--ram", "4GB", gpus=(24 * GIB,)) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("of main memory (assumed; 3.0 GiB for the engine), 2 cores")


@pytest.mark.parametrize(
    ("arguments", "gpus", "first"),
    [
        (("--vram", "24GB"), (), "base in 24.0 GiB of GPU memory (assumed"),
        (("--ram", "8GB", "--vram", "24GB", "--device", "cuda"), (), "base in 24.0 GiB of GPU memory (assumed"),
        ((), (16 * GIB,), "base in 16.0 GiB of GPU memory (nvml"),
        (("--device", "cpu"), (16 * GIB,), "base in 4.0 GiB of main memory (cgroup v2"),
    ],
)
def test_a_gpu_is_planned_for_where_there_is_one(
    arguments: tuple[str, ...], gpus: tuple[int, ...], first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the server takes every GPU by itself."""
    assert run(*arguments, gpus=gpus) == 0
    assert capsys.readouterr().out.startswith(first)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--ram", "8TB"), "'8TB' is no size"),
        (("--cores", "0"), "'0' is no number of cores"),
        (("--model", "huge"), "There is no model 'huge'"),
        (("--vram", "8GB", "--device", "cpu"), "--vram goes with --device cuda"),
        (("--device", "cuda"), "there is no GPU to plan for"),
        (("--device", "cuda", "--ram", "8GB"), "there is no GPU to plan for"),
        (("--railway", "--ram", "8GB"), "--railway goes with --cores only"),
        (("--table", "--model", "base"), "--railway goes with --cores only"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2: 1 means that the model does not fit."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_limit_that_is_no_number_is_refused_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """A typo in the environment gets no stack trace."""

    def unreadable() -> MemoryReading:
        raise ConfigurationError("MEMORY_LIMIT_MB=2G is no number of MiB.")

    with pytest.raises(SystemExit) as stopped:
        main(["plan"], ram=unreadable, cuda=lambda: [])
    assert stopped.value.code == 2
    assert "MEMORY_LIMIT_MB=2G is no number" in capsys.readouterr().err


# --- Railway ---------------------------------------------------------------------------------------------------------


def tables(text: str) -> list[dict[tuple[str, str], str]]:
    """Each Markdown table of *text*: the cells by memory and model."""
    found: list[dict[tuple[str, str], str]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| memory |"):
            header = cells
            found.append({})
        elif line.startswith("| ") and not line.startswith("| ---"):
            found[-1] |= {(cells[0], name): cell for name, cell in zip(header[1:], cells[1:], strict=True)}
    return found


def test_the_table_holds_the_plan_and_the_rule_for_every_size_and_model() -> None:
    """Seven sizes, seven models; "no" where the model does not fit, whatever the rule says."""
    plans, engines = tables(railway(2))
    assert set(plans) == set(engines)
    assert len(plans) == len(RAILWAY_MB) * len(RAILWAY_MODELS)
    assert plans["512 MB", "tiny.en"] == "1 × 1, 279 MiB"
    assert (plans["2 GB", "large-v3"], engines["2 GB", "large-v3"]) == ("no", "1")
    made = on_cpu("medium", 8 * GIB)
    assert plans["8 GB", "medium"] == f"{made.plan.streams} × {made.plan.batch_size}+, {shown(made.most_bytes)}"
    assert (plans["8 GB", "large-v2"][-8:], engines["8 GB", "medium"]) == (" 5.9 GiB", "3")


@pytest.mark.parametrize("flag", ["--railway", "--table"])
def test_the_table_is_for_two_cores_unless_others_are_named_and_says_so(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A size does not tell how many cores a service gets."""
    assert run(flag) == 0
    assert capsys.readouterr().out == f"{railway(2)}\n"
    assert run(flag, "--cores", "8") == 0
    assert capsys.readouterr().out.startswith("The plan with 8 cores; how many a service gets is not known here")


def test_the_documented_table_is_the_commands() -> None:
    """A footprint that is corrected must be corrected in docs/capacity.md, too."""
    assert railway(2) in (ROOT / "docs/capacity.md").read_text("utf-8"), "run scripts/plan --railway again"


# --- as a command ----------------------------------------------------------------------------------------------------


def test_limits_is_the_command() -> None:
    """`python -m limits plan`. That importing limits imports no transcription, tests/unit/test_imports.py holds."""
    done = subprocess.run(
        [sys.executable, "-m", "limits", "plan", "--ram", "512MB", "--model", "base"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "The next smaller model that fits is tiny." in done.stdout
