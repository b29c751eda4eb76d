"""Wrong Hessians and estimators of networks in train mode."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor, nn

from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.mutants import WrongTrace
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate


def batch_norm_in_eval_mode(problem: Problem, batch: Batch) -> Tensor:
    """Switches batch norm to its running statistics before it looks."""
    model = copy.deepcopy(problem.model).eval()
    return hessian(Problem(model, problem.loss_fn, [batch])).to_dense()


def statistics_of_all_samples(problem: Problem, batch: Batch) -> Tensor:
    """Normalises every mini-batch with the statistics of the whole data set, held fixed."""
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    model(torch.cat([inputs for inputs, _ in problem.batches]))
    return hessian(Problem(model.eval(), problem.loss_fn, [batch])).to_dense()


def average_of_pairs(problem: Problem, batch: Batch) -> Tensor:
    """Cuts the mini-batch into all its pairs and averages their Hessians."""
    inputs, targets = batch
    rows = [list(pair) for pair in combinations(range(len(inputs)), 2)]
    return torch.stack(
        [hessian(problem.with_batches([(inputs[r], targets[r])])).to_dense() for r in rows]
    ).mean(0)


def first_half_of_the_batch(problem: Problem, batch: Batch) -> Tensor:
    """Differentiates only the first half of the mini-batch, two samples at least."""
    half = max(len(batch[0]) // 2, 2)
    return hessian(problem.with_batches([(batch[0][:half], batch[1][:half])])).to_dense()


class DropoutSwitchedOff(WrongTrace):
    """Measures the network without dropout."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        model = copy.deepcopy(problem.model).eval()
        return Problem(model, problem.loss_fn, problem.batches, problem.partition)


class FreshMaskPerProbe(WrongTrace):
    """Draws another dropout mask for every probe."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        if probes is None:
            return right
        samples = right.samples.copy()
        with torch.random.fork_rng():
            for k in range(probes.shape[1]):
                torch.rand(1)
                samples.iloc[k] = LayerwiseTrace()(
                    problem, probes=probes[:, k : k + 1]
                ).samples.iloc[0]
        return replace(right, samples=samples)


class UnscaledMask(WrongTrace):
    """Zeroes units without dividing the others by the probability of staying."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        model = copy.deepcopy(problem.model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(lambda module, _, output: (1 - module.p) * output)
        return Problem(
            model, problem.loss_fn, problem.batches, problem.partition, allow_train_mode=True
        )


class UpdatesRunningStatistics(WrongTrace):
    """Runs the model's own forward pass, which moves the running statistics of batch norm."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        with torch.random.fork_rng():
            problem.model(problem.batches[0][0])
        return problem


class LeavesEvalMode(WrongTrace):
    """Switches the model to eval mode and forgets to switch it back."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        problem.model.eval()
        return problem


class MovesGlobalStream(WrongTrace):
    """Draws from the global random stream."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        torch.rand(1)
        return problem


class LeavesGradients(WrongTrace):
    """Leaves gradients behind in the parameters."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        problem.loss(problem.batches[0]).backward()  # type: ignore[no-untyped-call]
        return problem
