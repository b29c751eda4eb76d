"""What does it cost? Ours and the peers on the same problems: gradients per probe, work to 1 % in every layer, memory.

Times are CPU seconds on one thread, in units of one gradient timed beside them. A way is timed at two numbers of
probes, which gives what is paid once and what every probe costs. K_l = σ_l²/(0.01 tr H_ll)² probes take the standard
error of layer l to 1 %, σ_l² the variance of one probe, which is measured. Peak memory is that of a fresh process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch

from hesstheory.bench import cost
from hesstheory.bench.cost import ERROR, Cost, Say, Spread, peaks
from hesstheory.bench.dense import measure_dense
from hesstheory.bench.problems import CONTROL, SETTINGS, WAYS, Setting, Way, check_names
from hesstheory.conformance.subjects import peers
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import RelativeClock
from hesstheory.run.provenance import provenance
from hesstheory.run.streams import stream

# --- one problem ------------------------------------------------------------------------------------------------------


def available(setting: Setting) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways of a problem that can run here, and why the others cannot."""
    installed = peers.installed()
    ways = {name: WAYS[name] for name in setting.ways}
    absent = {
        name: "not installed: pip install 'hesstheory[peers]'"
        for name, way in ways.items()
        if way.needs and way.needs not in installed
    }
    return {name: way for name, way in ways.items() if name not in absent}, absent


def warmed(
    problem: Problem, ways: Mapping[str, Way], absent: dict[str, str], say: Say
) -> dict[str, Way]:
    """Runs every way once; a library that cannot do the problem is listed with what it says."""
    kept = {}
    for name, way in ways.items():
        say(f"first call of {name}")
        try:
            way.call(
                cost.only(problem, next(iter(problem.partition.blocks))) if way.apart else problem,
                1,
                stream(0),
            )
            kept[name] = way
        except Exception as error:
            if way.kind != "peer":
                raise
            absent[name] = (
                f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    return kept


def measure(
    name: str, say: Say, *, repeats: int | None = None, tiny: bool = False
) -> dict[str, Any]:
    """Everything about one problem, and the rows of its panel of the figure."""
    setting = SETTINGS[name]
    repeats = repeats or setting.repeats
    if name == "dense":
        return measure_dense(repeats, tiny, say)
    problem, about = setting.build(tiny, True), setting.about + ", in small" * tiny
    ways, absent = available(setting)
    ways = warmed(problem, ways, absent, say)
    clock = cost.clock_of(problem)
    entries = _costs(clock, problem, setting, ways, repeats, say)
    traces, traces_found = cost.reference_traces(setting, problem)
    draws = min(setting.draws, 10) if tiny else setting.draws
    spreads = cost.measure_spreads(setting, problem, ways, traces, draws, say)
    say("peak memory of each")
    memory = _memory(name, ways, tiny)
    step, rows = memory["training step"], list[dict[str, Any]]()
    for key, way in ways.items():
        pieces = entries[key].pop("pieces")
        entries[key] |= _errors(way, pieces, spreads.get(key))
        peak = memory[key]
        entries[key] |= {
            "peak_bytes": peak,
            "peak_in_training_steps": peak / step if peak is not None and step else None,
        }
        kind = "exact" if way.exact else "total" if way.total else way.kind
        rows += [
            {"problem": about, "way": key, "kind": kind, **row}
            for row in entries[key].pop("frontier")
        ]
    return {
        "about": about,
        "num_params": problem.num_params,
        "num_samples": problem.num_samples,
        "num_blocks": len(problem.partition.blocks),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "loss": _loss(problem),
        "untrained_loss": _loss(setting.build(tiny, False)),
        "gradient_seconds": statistics.median(clock.units),
        "training_step_bytes": step,
        "traces": traces.to_dict(),
        "traces_found_by": traces_found,
        "repeats": repeats,
        "ways": entries,
        "absent": absent,
        "frontier": rows,
    }


def _memory(name: str, ways: Iterable[str], tiny: bool) -> dict[str, int | None]:
    """Peaks in a process that gives every large block back at once when it is freed; None where it was killed."""
    wanted = ["training step", *ways]
    try:
        found: dict[str, int | None] = cost.in_a_process(
            peaks, name, wanted, tiny, MALLOC_MMAP_THRESHOLD_="65536"
        )
    except MemoryError:
        return dict.fromkeys(wanted)
    return found


def _costs(
    clock: RelativeClock,
    problem: Problem,
    setting: Setting,
    ways: Mapping[str, Way],
    repeats: int,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """What every way costs, in the order of the ways; `pieces` is for the arithmetic of work."""
    together = {key: way for key, way in ways.items() if not way.apart}

    def call(key: str) -> Callable[[int], object]:
        return lambda k: together[key].call(problem, k, stream(0, key))

    costs = cost.cost_in_rounds(
        clock, {key: call(key) for key in together}, setting.counts, repeats, say
    )
    entries = {}
    for key, way in ways.items():
        if way.apart:
            say(f"cost of {key}, block by block")
            rounds = 1 if setting.stride > 1 else repeats
            entries[key] = _apart_entry(
                setting, cost.cost_by_block(clock, problem, way, setting, rounds), rounds
            )
        else:
            entries[key] = _together_entry(setting.counts, costs[key], way.exact)
        entries[key] = {"kind": way.kind, **entries[key]}
    return entries


def _together_entry(
    counts: tuple[int, int], gradients: tuple[float, float], exact: bool
) -> dict[str, Any]:
    if exact:
        once = statistics.mean(gradients)
        return {"once": once, "per_probe": 0.0, "pieces": (once, 0.0)}
    line = Cost.from_two(counts, gradients)
    at = {str(k): value for k, value in zip(counts, gradients, strict=True)}
    return {**vars(line), "gradients_at_num_probes": at, "pieces": (line.once, line.per_probe)}


def _apart_entry(
    setting: Setting, pieces: tuple[pd.Series[float], pd.Series[float]], rounds: int
) -> dict[str, Any]:
    once, per_probe = pieces
    note = f"each block alone at {' and '.join(map(str, setting.block_counts))} probes, rounds: {rounds}"
    if setting.stride > 1:
        note += f"; one block in {setting.stride} of {len(once)}, the others interpolated"
    of_block = {"once_by_block": once.to_dict(), "per_probe_by_block": per_probe.to_dict()}
    return {
        "once": float(once.sum()), "per_probe": float(per_probe.sum()), **of_block, "timed": note, "pieces": pieces
    }  # fmt: skip


def _errors(way: Way, pieces: tuple[Any, Any], spread: Spread | None) -> dict[str, Any]:
    """Work to 1 % and where the errors behind it come from; an exact way costs what it costs."""
    if spread is None:
        rows = [{"work": pieces[0], "error": None}]
        return {"work_to_1_percent": pieces[0], "judged_on": "every layer", "frontier": rows}

    def work(error: float) -> float:
        return cost.work_to(error, *pieces, spread, way.group)

    return {
        "work_to_1_percent": work(ERROR),
        "judged_on": "the total trace alone" if way.total else "every layer",
        "worst_relative_spread_of_one_probe": spread.worst,
        "relative_spread_of_one_probe": spread.relative.to_dict(),
        "spread_found_by": spread.found,
        "frontier": cost.frontier(work, spread.worst / way.group**0.5),
    }


def _loss(problem: Problem) -> float:
    return float(problem.loss(problem.batches[0]).detach())


# --- marks ------------------------------------------------------------------------------------------------------------


def peers_work(found: Mapping[str, Any]) -> dict[str, float]:
    """Work to 1 % of every layer in the ways of others, plain torch included; best first."""
    work = {
        name: way["work_to_1_percent"]
        for name, way in found["ways"].items()
        if way["kind"] != "ours" and way["judged_on"] == "every layer"
    }
    return dict(sorted(work.items(), key=lambda item: item[1]))


def marks(problems: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, what was measured, and whether it is met; limits are those of the full problems."""
    return [
        mark
        for name, found in problems.items()
        for mark in _marks_of(name, found)
        if mark["measured"] is not None
    ]


def _marks_of(name: str, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    ways = found["ways"]
    if name == "dense":
        for other in ("torch.func.hessian", "curvlinops"):
            if other in ways:
                yield _at_least(
                    f"dense Hessian: times faster than {other}", 4.0, ways[other]["times_ours"]
                )
        return
    work = peers_work(found)
    if "exact_traces" in ways:
        exact = ways["exact_traces"]
        yield _at_most(f"{name}: gradients of exact_traces", _EXACT_AT_MOST[name], exact["once"])
        yield _less_work(
            name, 1e5 if _is_full_scale(name) else 100.0, "exact_traces", exact["once"], work
        )
    else:
        ours = {key: ways[key]["work_to_1_percent"] for key in CONTROL}
        best = min(ours, key=lambda key: ours[key])
        yield _less_work(name, 3.0, best, ours[best], work)
    if _is_full_scale(name):
        yield _at_most(
            f"{name}: peak of exact_traces in training steps", 2.0, exact["peak_in_training_steps"]
        )
        per_probe = ways["LayerwiseTrace"]["gradients_at_num_probes"]["10"] / 10
        yield _at_most(f"{name}: gradients per probe of LayerwiseTrace(10)", 2.4, per_probe)


_EXACT_AT_MOST = {"mlp": 4.0, "cnn": 12.0, "resnet18": 10.0, "resnet18-as-built": 10.0}


def _is_full_scale(name: str) -> bool:
    return name.startswith("resnet18")


def _at_most(mark: str, limit: float, measured: float | None) -> dict[str, Any]:
    return {
        "mark": mark,
        "limit": limit,
        "measured": measured,
        "met": measured is not None and measured <= limit,
    }


def _at_least(mark: str, limit: float, measured: float) -> dict[str, Any]:
    return {"mark": mark, "limit": limit, "measured": measured, "met": measured >= limit}


def _less_work(
    name: str, limit: float, way: str, ours: float, work: Mapping[str, float]
) -> dict[str, Any]:
    ratios = {peer: value / ours for peer, value in work.items()}
    best = next(iter(ratios))
    mark = f"{name}: times less work to 1 % by {way} than by {best}, the best of the others"
    return {**_at_least(mark, limit, ratios[best]), "ratios": ratios}


# --- the whole run ----------------------------------------------------------------------------------------------------


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(
    names: Sequence[str] = (),
    *,
    repeats: int | None = None,
    command: str = "",
    tiny: bool = False,
    say: Say = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """The report so far, again after every problem, as it goes into the JSON file."""
    check_names(names)
    if repeats is not None and repeats < 1:
        raise ValueError(f"repeats is {repeats}: pass one round or more, or leave it out")
    report: dict[str, Any] = {
        **provenance(command),
        "device": "cpu",
        "threads": 1,
        "versions": peers.installed(),
    }
    report |= {
        "unit": "CPU seconds of one gradient over the batch",
        "tiny": tiny,
        "problems": {},
        "marks": [],
    }
    with _one_thread():
        for name in names or SETTINGS:
            start = time.time()
            found = measure(
                name, lambda line, name=name: say(f"{name}: {line}"), repeats=repeats, tiny=tiny
            )  # type: ignore[misc]
            report["problems"][name] = {**found, "wall_seconds": time.time() - start}
            report["marks"] = marks(report["problems"])
            yield report
