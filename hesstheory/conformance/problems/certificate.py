"""The certified values, computed by two routes.

`python -m hesstheory.conformance.problems.certificate` writes `certified.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, hessian

from hesstheory.conformance.problems.reference import CERTIFIED
from hesstheory.conformance.problems.registry import references
from hesstheory.conformance.problems.springs import Springs, spring_hessian
from hesstheory.curvature.matrix import hessian as curvature
from hesstheory.problem.risk import Problem
from hesstheory.run.files import write_atomically


def second_route(problem: Problem) -> Tensor:
    """The dense Hessian without `hesstheory.curvature`.

    Entry by entry for springs, by `torch.func` for networks.
    """
    if isinstance(problem.model, Springs):
        return spring_hessian(problem)
    spans = {name: slice(*span) for name, span in problem.offsets.items()}

    def risk(theta: Tensor) -> Tensor:
        params = {name: theta[spans[name]].reshape(p.shape) for name, p in problem.params.items()}
        losses = (
            weight * problem.loss_fn(functional_call(problem.model, params, (batch[0],)), batch[1])
            for weight, batch in zip(problem.weights, problem.batches, strict=True)
        )
        return torch.stack(list(losses)).sum()

    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    dense: Tensor = hessian(risk)(theta)
    return dense


def certify(H: Tensor, problem: Problem) -> dict[str, dict[str, float]]:
    """What `certified.json` holds of one problem, from its dense Hessian."""
    return {block: dict(_of_block(H, index)) for block, index in problem.index.items()}


def _of_block(H: Tensor, index: Tensor) -> Iterator[tuple[str, float]]:
    """The trace and the squared norms of one block."""
    H_ll = H[index][:, index]
    yield "trace", float(H_ll.diagonal().sum())
    yield "own", float(H_ll.square().sum())
    yield "diagonal", float(H_ll.diagonal().square().sum())
    yield "cross", float(H[index].square().sum() - H_ll.square().sum())


def certificate() -> dict[str, dict[str, dict[str, float]]]:
    """All certified values by the library's own route; tests compare them with the second one."""
    return {
        name: certify(curvature(reference.problem.double()).to_dense(), reference.problem)
        for name, reference in references().items()
    }


def main() -> None:
    """Writes `certified.json`."""
    path = Path(__file__).parents[1] / CERTIFIED
    write_atomically(path, json.dumps(certificate(), indent=1) + "\n")


if __name__ == "__main__":
    main()
