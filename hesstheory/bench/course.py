"""Gradients per probe, work to 1 % in every layer, and memory: ours and the peers alike.

Times are CPU seconds on one thread, in units of one gradient timed beside them. A way is timed at
two numbers of probes, which gives what is paid once and what every probe costs.
K_l = σ_l²/(0.01 tr H_ll)² probes take the standard error of layer l to 1 %. σ_l² is the variance of
one probe, which is measured. Peak memory is that of a fresh process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from hesstheory.bench import cost, processes
from hesstheory.bench.cost import ERROR, Clock, Cost, CostByBlock, Say, Spread
from hesstheory.bench.dense import measure_dense
from hesstheory.bench.marks import Record, marks
from hesstheory.bench.problems import SETTINGS, Setting, check_names
from hesstheory.bench.processes import TRAINING_STEP, peaks
from hesstheory.bench.spread import measure_spreads, reference_traces
from hesstheory.bench.ways import WAYS, Way
from hesstheory.conformance.subjects import peers
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import wall_timed
from hesstheory.run.provenance import provenance
from hesstheory.run.streams import stream

_DRAWS_IN_SMALL = 10  # probes behind a variance of a tiny problem, which tests the machinery
_MAPPED_FROM = "65536"  # bytes: glibc gives freed blocks of that size back at once, so peaks add up


# --- one problem ----------------------------------------------------------------------------------


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
    """Runs every way once; a library that cannot do the problem is listed with what it says.

    Parameters
    ----------
    problem
        What they run on.
    ways
        Ways by name.
    absent
        Receives the ways of others that fail, and why. One of ours that fails raises.
    say
        Is told which way runs.

    Returns
    -------
    dict
        The ways that ran.
    """
    one_block = cost.only(problem, next(iter(problem.partition.blocks)))
    kept = {}
    for name, way in ways.items():
        say(f"first call of {name}")
        try:
            way.call(one_block if way.apart else problem, 1, stream(0))
            kept[name] = way
        except Exception as error:
            if way.kind != "peer":
                raise
            reason = str(error).partition("\n")[0]
            absent[name] = f"failed: {type(error).__name__}: {reason}"
    return kept


def measure(name: str, say: Say, *, repeats: int | None = None, tiny: bool = False) -> Record:
    """Everything about one problem, and the rows of its panel of the figure.

    Parameters
    ----------
    name
        One of `SETTINGS`.
    say
        Is told what is measured.
    repeats
        Rounds of timings; by default what the problem needs.
    tiny
        Whether the problem is the small one, for tests.
    """
    setting = SETTINGS[name]
    repeats = repeats or setting.repeats
    if name == "dense":
        return measure_dense(repeats, tiny, say)
    problem = setting.build(tiny, True)
    ways, absent = available(setting)
    ways = warmed(problem, ways, absent, say)
    clock = cost.clock_of(problem)
    found = _costs(clock, problem, setting, ways, repeats, say)
    traces, traces_found = reference_traces(setting, problem)
    draws = min(setting.draws, _DRAWS_IN_SMALL) if tiny else setting.draws
    spreads = measure_spreads(setting, problem, ways, traces, draws, say)
    say("peak memory of each")
    memory = _memory(name, ways, tiny)
    about = setting.about + ", in small" * tiny
    entries, rows = _entries(about, ways, found, spreads, memory)
    return {
        **_described(about, problem),
        "untrained_loss": _loss(setting.build(tiny, False)),
        "gradient_seconds": statistics.median(clock.units),
        "training_step_bytes": memory[TRAINING_STEP],
        "traces": traces.to_dict(),
        "traces_found_by": traces_found,
        "repeats": repeats,
        "ways": entries,
        "absent": absent,
        "frontier": rows,
    }


def _described(about: str, problem: Problem) -> Record:
    """What a problem is."""
    return {
        "about": about,
        "num_params": problem.num_params,
        "num_samples": problem.num_samples,
        "num_blocks": len(problem.partition.blocks),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "loss": _loss(problem),
    }


def _memory(name: str, ways: Iterable[str], tiny: bool) -> dict[str, int | None]:
    """Peaks in a process that gives every large block back at once; None where it was killed."""
    wanted = [TRAINING_STEP, *ways]
    environment = {"MALLOC_MMAP_THRESHOLD_": _MAPPED_FROM}
    try:
        return processes.in_a_process(peaks, name, wanted, tiny, **environment)
    except MemoryError:
        return dict.fromkeys(wanted)


def _loss(problem: Problem) -> float:
    """The loss of the first batch, of which every problem has one."""
    return float(problem.loss(problem.batches[0]).detach())


# --- one way --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """What a way costs, and what the report says of that."""

    cost: Cost | CostByBlock
    shown: Record


def _costs(
    clock: Clock,
    problem: Problem,
    setting: Setting,
    ways: Mapping[str, Way],
    repeats: int,
    say: Say,
) -> dict[str, _Measured]:
    """What every way costs, in the order of the ways."""

    def call(key: str) -> Callable[[int], object]:
        return lambda k: ways[key].call(problem, k, stream(0, key))

    calls = {key: call(key) for key, way in ways.items() if not way.apart}
    costs = cost.cost_in_rounds(clock, calls, setting.counts, repeats, say)
    found = {}
    for key, way in ways.items():
        if way.apart:
            say(f"cost of {key}, block by block")
            # One round where a block takes seconds; the interpolation errs by more.
            rounds = 1 if setting.stride > 1 else repeats
            by_block = cost.cost_by_block(clock, problem, way, setting, rounds)
            found[key] = _measured_apart(setting, by_block, rounds)
        else:
            found[key] = _measured_together(setting.counts, costs[key], way.is_exact)
    return found


def _measured_together(
    counts: tuple[int, int], gradients: tuple[float, float], is_exact: bool
) -> _Measured:
    """From costs at two numbers of probes, which an exact way does not look at."""
    if is_exact:
        whole = Cost(statistics.mean(gradients), 0.0)
        return _Measured(whole, {**vars(whole)})
    line = Cost.from_two(counts, gradients)
    at = {str(k): value for k, value in zip(counts, gradients, strict=True)}
    return _Measured(line, {**vars(line), "gradients_at_num_probes": at})


def _measured_apart(setting: Setting, found: CostByBlock, rounds: int) -> _Measured:
    """From the costs of every block."""
    counts = " and ".join(map(str, setting.block_counts))
    note = f"each block alone at {counts} probes, rounds: {rounds}"
    if setting.stride > 1:
        note += f"; one block in {setting.stride} of {len(found.once)}, the others interpolated"
    shown: Record = {
        "once": float(found.once.sum()),
        "per_probe": float(found.per_probe.sum()),
        "once_by_block": found.once.to_dict(),
        "per_probe_by_block": found.per_probe.to_dict(),
        "timed": note,
    }
    return _Measured(found, shown)


def _entries(
    about: str,
    ways: Mapping[str, Way],
    found: Mapping[str, _Measured],
    spreads: Mapping[str, Spread],
    memory: Mapping[str, int | None],
) -> tuple[dict[str, Record], list[Record]]:
    """What the report says of every way, and the points of the figure."""
    entries: dict[str, Record] = {}
    rows: list[Record] = []
    step = memory[TRAINING_STEP]
    for key, way in ways.items():
        errors, points = _errors(way, found[key].cost, spreads.get(key))
        peak = memory[key]
        entries[key] = {
            "kind": way.kind,
            **found[key].shown,
            **errors,
            "peak_bytes": peak,
            "peak_in_training_steps": peak / step if peak is not None and step else None,
        }
        kind = "exact" if way.is_exact else "total" if way.total else way.kind
        rows += [{"problem": about, "way": key, "kind": kind, **point} for point in points]
    return entries, rows


def _errors(
    way: Way, paid: Cost | CostByBlock, spread: Spread | None
) -> tuple[Record, list[Record]]:
    """Work to 1 % and where the errors behind it come from, and the points of the figure.

    An exact way, which has no spread, costs what it costs.
    """
    if spread is None:
        once = float(paid.once) if isinstance(paid, Cost) else float(paid.once.sum())
        shown: Record = {"work_to_1_percent": once, "judged_on": "every layer"}
        return shown, [{"work": once, "error": None}]
    work = partial(cost.work_to, cost=paid, spread=spread, group=way.group)
    shown = {
        "work_to_1_percent": work(ERROR),
        "judged_on": "the total trace alone" if way.total else "every layer",
        "worst_relative_spread_of_one_probe": spread.worst,
        "relative_spread_of_one_probe": spread.relative.to_dict(),
        "spread_found_by": spread.found,
    }
    return shown, [*cost.frontier(work, spread.worst / way.group**0.5)]


# --- the whole run --------------------------------------------------------------------------------


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch; the setting is given back."""
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
) -> Iterator[Record]:
    """The report so far, again after every problem, as it goes into the JSON file.

    Parameters
    ----------
    names
        Problems of `SETTINGS`; all by default.
    repeats
        Rounds of timings; by default what each problem needs.
    command
        The command line, for the record.
    tiny
        Whether problems are small, for tests.
    say
        Is told what is measured.

    Raises
    ------
    ValueError
        A name is none of the problems, or `repeats` is less than one.
    """
    check_names(names)
    if repeats is not None and repeats < 1:
        raise ValueError(f"repeats is {repeats}: pass one round or more, or leave it out")
    report: Record = {
        **provenance(command),
        "device": "cpu",
        "threads": 1,
        "versions": peers.installed(),
        "unit": "CPU seconds of one gradient over the batch",
        "tiny": tiny,
        "problems": {},
        "marks": [],
    }
    with _one_thread():
        for name in names or SETTINGS:
            work = partial(measure, name, partial(_say_of, say, name), repeats=repeats, tiny=tiny)
            seconds, found = wall_timed(work)
            report["problems"][name] = {**found, "wall_seconds": seconds}
            report["marks"] = marks(report["problems"])
            yield report


def _say_of(say: Say, name: str, line: str) -> None:
    """A line about a problem."""
    say(f"{name}: {line}")
