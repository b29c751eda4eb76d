"""What is measured: a network on a batch of images, and its part in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.curvature.matrix import Curvature
from hesstheory.estimators.probes import Rademacher
from hesstheory.harness.training import Training
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.run.ranks import Ranks
from hesstheory.run.streams import stream
from hesstheory.zoo.data import Data
from hesstheory.zoo.image_sets import IMAGE_SETS

_T = TypeVar("_T")
Say = Callable[[str], None]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
PARALLEL = ("data", "probes")

_LEAST = {"batch": 2, "probes": 2, "steps": 0, "width": 1}  # two: a spread needs two draws
_MOST = 1_000_000  # of any of these: more is a slip of the keyboard
_MOST_CLASSES = 10_000  # as many backward passes, and square matrices of that size


@dataclass(frozen=True)
class Settings:
    """What a run measures; two runs with the same settings give the same numbers.

    Parameters
    ----------
    model
        `"resnet18"`, `"resnet34"` or `"vgg11"`.
    data
        `"digits"`, `"cifar10"` or `"cifar100"`.
    device
        `"auto"`, `"cpu"` or `"cuda"`.
    batch
        Images that are measured, two or more.
    probes
        Probes K of the one-product estimate, two or more.
    dtype
        `"float32"` or `"float64"`.
    steps
        Training steps before the measurement.
    seed
        Of all random streams.
    width
        Channels of the first stage; 64 is the full network.
    classes
        Outputs of the network; as many as the data by default.
    activation
        `"relu"`, `"silu"` or `"gelu"`. Smooth ones are measured on the Gauss-Newton matrix.
    label_noise
        Fraction of wrong labels.
    parallel
        What several processes share: `"data"` or `"probes"`.
    root
        Folder of the CIFAR files.

    Raises
    ------
    ValueError
        A name that is not known, or a number that cannot be run.
    """

    model: str = "resnet18"
    data: str = "digits"
    device: str = "auto"
    batch: int = 16
    probes: int = 10
    dtype: str = "float32"
    steps: int = 0
    seed: int = 0
    width: int = 64
    classes: int | None = None
    activation: str = "relu"
    label_noise: float = 0.0
    parallel: str = "data"
    root: str | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()

    def _check_choices(self) -> None:
        """Names that are known."""
        choices: dict[str, Iterable[str]] = {
            "model": zoo.FULL_SCALE,
            "data": IMAGE_SETS,
            "dtype": DTYPES,
            "activation": ACTIVATIONS,
            "device": ("auto", "cpu", "cuda"),
            "parallel": PARALLEL,
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}: choose from {', '.join(known)}")

    def _check_numbers(self) -> None:
        """Sizes that can be run."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
                raise ValueError(
                    f"{name} is {value!r}: pass a whole number from {least} to {_MOST:,}"
                )
        known = IMAGE_SETS[self.data]
        if self.batch > known.num_images:
            raise ValueError(
                f"batch is {self.batch}: {self.data} has {known.num_images} images, pass that many "
                "or fewer"
            )
        least = known.num_classes
        if self.classes is not None and not least <= self.classes <= _MOST_CLASSES:
            raise ValueError(
                f"classes is {self.classes}: {self.data} has {least}, pass that many or more, "
                f"{_MOST_CLASSES:,} at most"
            )
        if not 0 <= self.label_noise <= 1:
            raise ValueError(
                f"label_noise is {self.label_noise}: pass the fraction of wrong labels, 0 to 1"
            )

    @property
    def num_classes(self) -> int:
        """Outputs of the network."""
        return self.classes or IMAGE_SETS[self.data].num_classes

    def differing(self, other: Mapping[str, object]) -> list[str]:
        """Names of the settings in which another run differs; device and folder are free."""
        mine = asdict(self)
        fixed = mine.keys() - {"device", "root"}
        return [name for name in mine if name in fixed and mine[name] != other.get(name)]


@dataclass
class Subject:
    """A problem and this process's part of it."""

    settings: Settings
    problem: Problem
    ranks: Ranks
    say: Say

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.problem.device

    @property
    def piecewise_linear(self) -> bool:
        """Whether H and G have the same diagonal blocks: what is estimated is H then, else G."""
        return self.settings.activation == "relu"

    @cached_property
    def own_samples(self) -> range:
        """This process's samples."""
        if self.ranks.count > self.problem.num_samples:
            raise ValueError(
                f"{self.ranks.count} processes for {self.problem.num_samples} samples: "
                "use at most one for each sample"
            )
        return self.ranks.share(self.problem.num_samples)

    def over_samples(
        self, work: Callable[[Problem], Float[Tensor, "*shape"]], problem: Problem | None = None
    ) -> Tensor:
        """A mean over samples that is linear in the risk, in float64.

        Each process sums over its own samples. Where the device runs out of memory the batches are
        halved, as often as it takes.
        """
        problem = problem or self.problem
        share = len(self.own_samples) / problem.num_samples
        return self.ranks.total(share * self._of_own(work, problem))

    def each_sample(self, work: Callable[[Problem], Float[Tensor, "samples ..."]]) -> Tensor:
        """What is found for every sample alone, in float64 on the CPU.

        Each process works on its own samples.
        """
        own = self.own_samples
        rows = self._of_own(work, self.problem)
        everyone = rows.new_zeros(self.problem.num_samples, *rows.shape[1:])
        everyone[own.start : own.stop] = rows
        return self.ranks.total(everyone).cpu()

    def _of_own(self, work: Callable[[Problem], Tensor], problem: Problem) -> Tensor:
        """`work` of this process's samples, in float64; an error of one process is one of all."""
        local = problem if self.ranks.count == 1 else _samples(problem, self.own_samples)
        return self.ranks.agreed(lambda: self.halving(work, local)).to(self.device).double()

    def some(self, samples: list[int]) -> Problem:
        """The same network on some samples."""
        return _samples(self.problem, samples)

    def halving(self, work: Callable[[Problem], _T], problem: Problem) -> _T:
        """`work` of a problem, in ever smaller batches where the device has no memory for it."""
        while True:
            try:
                return work(problem)
            except torch.OutOfMemoryError:
                size = max(problem.batch_sizes)
                if size == 1:
                    raise
            # Not before the error is gone, which holds what was there when it was raised.
            torch.cuda.empty_cache()
            half = size // 2
            self.say(f"the device is out of memory with batches of {size}: going on with {half}")
            problem = problem.rebatched(half)

    def probes(
        self, numbers: Sequence[int], purpose: str = "probes"
    ) -> Float[Tensor, "params probes"]:
        """Sign probes as int8, each from a stream of its own.

        It does not matter which process computes with them.
        """
        P = self.problem.num_params
        streams = [stream(self.settings.seed, purpose, str(k)) for k in numbers]
        columns = [Rademacher().signs(P, 1, own)[:, 0] for own in streams]
        return torch.stack(columns).mT.to(self.device)

    def product(
        self, matrix: Callable[[Problem], Curvature], v: Tensor, problem: Problem | None = None
    ) -> Tensor:
        """Matrix times vector, in float64."""
        return self.over_samples(lambda local: matrix(local) @ v, problem)


def _samples(problem: Problem, samples: range | list[int]) -> Problem:
    """Some samples of a problem of one batch."""
    ((inputs, targets),) = problem.batches
    rows = slice(samples.start, samples.stop) if isinstance(samples, range) else samples
    return problem.with_batches([(inputs[rows], targets[rows])])


# --- built and trained ----------------------------------------------------------------------------


def built(
    settings: Settings, device: torch.device, ranks: Ranks, folder: Path, say: Say
) -> Subject:
    """Draws the network, and trains it or goes on with its training.

    All processes get the parameters of the first.
    """
    seed = settings.seed
    # Training draws its batches from all images; else those that are measured are enough.
    number = None if settings.steps else settings.batch
    data = zoo.images(
        settings.data,
        num_samples=number,
        label_noise=settings.label_noise,
        dtype=DTYPES[settings.dtype],
        root=settings.root,
        generator=stream(seed, "labels"),
    )
    measured = Data(data.inputs[: settings.batch], data.targets[: settings.batch])
    problem = zoo.full_scale_problem(
        settings.model,
        measured,
        num_classes=settings.num_classes,
        batch_size=settings.batch,
        width=settings.width,
        activation=ACTIVATIONS[settings.activation],
        generator=stream(seed, "weights"),
    )
    model = problem.model.to(device)
    if settings.steps:
        checkpoint = folder / "training.pt"
        Training(settings.steps, seed, checkpoint, ranks.first, say).train(model, data)
    ranks.copy_from_first(iter([*model.parameters(), *model.buffers()]))
    batch: Batch = (measured.inputs.to(device), measured.targets.to(device))
    return Subject(settings, Problem(model.eval(), F.cross_entropy, [batch]), ranks, say)
