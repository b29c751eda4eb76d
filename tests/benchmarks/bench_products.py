"""What a product costs: ratios of times within one run, alternating, one thread, medians.

`python tests/benchmarks/bench_products.py [--json FILE]` prints

- the cost per probe, in units of one gradient, of `LayerwiseTrace`, of a bare loop of `torch.autograd.grad` on a kept
  graph (mark: ours within 1.15 times of it), and of curvlinops;
- the time of a dense Hessian at about 10,000 parameters in float64 beside `torch.func.hessian` and curvlinops applied
  to the identity (mark: ours 4 times faster than both), and the peak memory of each in units of the matrix itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
import warnings

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hesstheory import LayerwiseTrace, Problem, Rademacher, hessian, zoo

# --- problems ---------------------------------------------------------------------------------------------------------


def mlp(width: int = 256) -> nn.Module:
    return nn.Sequential(nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def cnn(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2 * width * 49, 10),
    )  # fmt: skip


def classification(model: nn.Module, batch_size: int) -> Problem:
    """One batch of random images and labels, float32 as in practice."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 784, generator=generator)
    labels = torch.randint(10, (batch_size,), generator=generator)
    return Problem(model, F.cross_entropy, [(images, labels)])


# --- one product, three ways ------------------------------------------------------------------------------------------


def gradient(problem: Problem) -> None:
    (batch,) = problem.batches
    torch.autograd.grad(problem.loss_fn(problem.model(batch[0]), batch[1]), list(problem.params.values()))


def ours(problem: Problem, num_probes: int) -> None:
    LayerwiseTrace(num_probes)(problem, torch.Generator().manual_seed(0))


def bare_loop(problem: Problem, num_probes: int) -> None:
    """The shortest correct code: signs per tensor, one product per probe on a kept graph, one number per tensor."""
    generator = torch.Generator().manual_seed(0)
    params, (batch,) = list(problem.params.values()), problem.batches
    gradients = torch.autograd.grad(problem.loss_fn(problem.model(batch[0]), batch[1]), params, create_graph=True)
    for _ in range(num_probes):
        z = [torch.randint(2, p.shape, generator=generator).to(p.dtype).mul_(2).sub_(1) for p in params]
        products = torch.autograd.grad(gradients, params, z, retain_graph=True)
        torch.stack([(a * b).sum() for a, b in zip(z, products, strict=True)])


def peer(problem: Problem, num_probes: int) -> None:
    """All probes in one product of curvlinops."""
    Z = Rademacher().sample(problem.num_params, num_probes, torch.Generator().manual_seed(0)).to(problem.dtype)
    products = _operator(problem) @ Z
    [(Z[index] * products[index]).sum(0) for index in problem.index.values()]


def _operator(problem: Problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator
    params, data = list(problem.params.values()), list(problem.batches)
    return HessianLinearOperator(problem.model, nn.CrossEntropyLoss(), params, data, check_deterministic=False)


def cost_per_probe(problem: Problem, num_probes: int, repeats: int) -> dict[str, float]:
    """Medians of time / (num_probes × gradient), each round timing every way once."""
    ways = {"ours": ours, "bare loop": bare_loop, "curvlinops": peer}
    seconds: dict[str, list[float]] = {"gradient": [], **{name: [] for name in ways}}
    for round in range(repeats + 1):
        timed = {"gradient": _time(gradient, problem)}
        timed |= {name: _time(way, problem, num_probes) for name, way in ways.items()}
        if round:  # the first one warms up
            for name, value in timed.items():
                seconds[name].append(value)
    unit = statistics.median(seconds["gradient"])
    costs = {name: statistics.median(seconds[name]) / (num_probes * unit) for name in ways}
    pairs = zip(seconds["ours"], seconds["bare loop"], strict=True)
    return {"gradient_ms": 1000 * unit, **costs, "ours / bare loop": statistics.median(a / b for a, b in pairs)}


def _time(function, *arguments) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


# --- the dense Hessian ------------------------------------------------------------------------------------------------


def dense_ours(problem: Problem) -> torch.Tensor:
    return hessian(problem).to_dense()


def dense_torch_func(problem: Problem) -> torch.Tensor:
    """torch.func.hessian as it comes: P copies of all activations at once."""
    risk, theta = _flat_risk(problem)
    return torch.func.hessian(risk)(theta)


def dense_torch_func_in_chunks(problem: Problem) -> torch.Tensor:
    """The same forward over reverse, in chunks of columns: a user who tunes it by hand."""
    risk, theta = _flat_risk(problem)
    gradient = torch.func.grad(risk)
    column = torch.func.vmap(lambda v: torch.func.jvp(gradient, (theta,), (v,))[1], chunk_size=256)
    return column(torch.eye(len(theta), dtype=theta.dtype))


def _flat_risk(problem: Problem):
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    sizes = [p.numel() for p in problem.params.values()]

    def risk(theta: torch.Tensor) -> torch.Tensor:
        pieces = zip(problem.params.items(), theta.split(sizes), strict=True)
        named = {name: piece.view_as(p) for (name, p), piece in pieces}
        return problem.loss_fn(functional_call(problem.model, named, (inputs,)), targets)

    return risk, torch.cat([p.detach().flatten() for p in problem.params.values()])


def dense_peer(problem: Problem) -> torch.Tensor:
    return _operator(problem) @ torch.eye(problem.num_params, dtype=problem.dtype)


DENSE = {
    "ours": dense_ours,
    "torch.func.hessian": dense_torch_func,
    "torch.func in chunks": dense_torch_func_in_chunks,
    "curvlinops": dense_peer,
}


def dense_in_a_process(name: str, network: str, num_samples: int, queue) -> None:
    """Time and peak memory above what was there before, of one way in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    problem = zoo.problem(network, torch.Generator().manual_seed(0), num_samples=num_samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    H = DENSE[name](problem)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((seconds, 1024 * peak / (8 * problem.num_params**2), float(H.norm()), problem.num_params))


def dense_cost(network: str, num_samples: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians over the repeats; the norms of all the matrices must agree."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in DENSE}
    for _ in range(repeats):
        for name in DENSE:
            queue = context.Queue()
            process = context.Process(target=dense_in_a_process, args=(name, network, num_samples, queue))
            process.start()
            found[name].append(queue.get())
            process.join()
    norms = [norm for results in found.values() for _, _, norm, _ in results]
    if max(norms) - min(norms) > 1e-10 * max(norms):
        raise AssertionError(f"the dense Hessians differ: their norms are {norms}")
    unit = statistics.median(result[0] for result in found["ours"])
    return {
        name: {
            "seconds": statistics.median(result[0] for result in results),
            "times ours": statistics.median(result[0] for result in results) / unit,
            "peak / matrix": statistics.median(result[1] for result in results),
            "num_params": results[0][3],
        }
        for name, results in found.items()
    }


# --- the door ---------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of the cost per probe")
    parser.add_argument("--num-probes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=256, help="of the MLP; the CNN has a sixteenth of it")
    parser.add_argument("--network", default="wide_mlp", help="of the zoo, for the dense Hessian")
    parser.add_argument("--num-samples", type=int, default=128, help="for the dense Hessian")
    parser.add_argument("--dense-repeats", type=int, default=1, help="0 leaves the dense Hessian out")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict = {"num_probes": chosen.num_probes, "batch_size": chosen.batch_size, "per_probe": {}, "dense": {}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {"MLP": mlp(chosen.width).float(), "CNN": cnn(max(chosen.width // 16, 1)).float()}
    print(f"Cost per probe in units of one gradient, K = {chosen.num_probes}, batch {chosen.batch_size}, 1 thread")
    for name, model in models.items():
        problem = classification(model, chosen.batch_size)
        found["per_probe"][name] = costs = cost_per_probe(problem, chosen.num_probes, chosen.repeats)
        print(f"  {name}, {problem.num_params:,} parameters: " + ", ".join(f"{k} {v:.3g}" for k, v in costs.items()))
    if chosen.dense_repeats:
        found["dense"] = dense_cost(chosen.network, chosen.num_samples, chosen.dense_repeats)
        print(f"Dense Hessian of {chosen.network} in float64, {chosen.num_samples} samples, 1 thread")
        for name, costs in found["dense"].items():
            print(f"  {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in costs.items()))
    if chosen.json:
        with open(chosen.json, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=2)
    return found


if __name__ == "__main__":
    main()
    sys.exit()
