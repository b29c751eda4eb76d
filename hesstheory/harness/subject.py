"""What is measured: a network on a batch of images, trained for some steps, and its part in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.curvature.matrix import Curvature
from hesstheory.estimators.probes import Rademacher
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.run.ranks import Ranks
from hesstheory.run.streams import stream
from hesstheory.zoo.data import Data

_T = TypeVar("_T")
Say = Callable[[str], None]

MODELS = ("resnet18", "resnet34", "vgg11")
DATA = {"digits": 10, "cifar10": 10, "cifar100": 100}
_IMAGES = {"digits": 1797, "cifar10": 50_000, "cifar100": 50_000}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
PARALLEL = ("data", "probes")

_MOST, _MOST_CLASSES = 1_000_000, 10_000
_TRAINED_ON = 4096  # images at most that training draws its batches from
_TRAINING_BATCH = 128
_CHECKPOINT_EVERY = 20  # steps


@dataclass(frozen=True)
class Settings:
    """What a run measures; two runs with the same settings give the same numbers."""

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
        for name, known in (
            ("model", MODELS), ("data", tuple(DATA)), ("dtype", tuple(DTYPES)), ("activation", tuple(ACTIVATIONS)),
            ("device", ("auto", "cpu", "cuda")), ("parallel", PARALLEL),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}: choose from {', '.join(known)}")
        for name, least in (("batch", 2), ("probes", 2), ("steps", 0), ("width", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
                raise ValueError(
                    f"{name} is {value!r}: pass a whole number from {least} to {_MOST:,}"
                )
        if self.batch > (images := _IMAGES[self.data]):
            raise ValueError(
                f"batch is {self.batch}: {self.data} has {images} images, pass that many or fewer"
            )
        if self.classes is not None and not DATA[self.data] <= self.classes <= _MOST_CLASSES:
            raise ValueError(
                f"classes is {self.classes}: {self.data} has {DATA[self.data]}, pass that many or more, "
                f"{_MOST_CLASSES:,} at most"
            )
        if not 0 <= self.label_noise <= 1:
            raise ValueError(
                f"label_noise is {self.label_noise}: pass the fraction of wrong labels, 0 to 1"
            )

    @property
    def num_classes(self) -> int:
        return self.classes or DATA[self.data]

    def differing(self, other: dict[str, Any]) -> list[str]:
        """Names of the settings in which another run differs; the device is free."""
        mine = asdict(self)
        return [
            name
            for name in mine
            if name not in ("device", "root") and mine[name] != other.get(name)
        ]


@dataclass
class Subject:
    """A problem and this process's part of it."""

    settings: Settings
    problem: Problem
    ranks: Ranks
    say: Say

    @property
    def device(self) -> torch.device:
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
                f"{self.ranks.count} processes for {self.problem.num_samples} samples: use at most one for each sample"
            )
        return self.ranks.share(self.problem.num_samples)

    def over_samples(
        self, work: Callable[[Problem], Float[Tensor, "*shape"]], problem: Problem | None = None
    ) -> Tensor:
        """A mean over samples that is linear in the risk, each process summing over its own; in float64.

        Where the device runs out of memory the batches are halved, as often as it takes.
        """
        problem = problem or self.problem
        share = len(self.own_samples) / problem.num_samples
        return self.ranks.total(share * self._of_own(work, problem))

    def each_sample(self, work: Callable[[Problem], Float[Tensor, "samples ..."]]) -> Tensor:
        """What is found for every sample alone, each process working on its own; in float64, on the CPU."""
        own, rows = self.own_samples, self._of_own(work, self.problem)
        everyone = rows.new_zeros(self.problem.num_samples, *rows.shape[1:])
        everyone[own.start : own.stop] = rows
        return self.ranks.total(everyone).cpu()

    def _of_own(self, work: Callable[[Problem], Tensor], problem: Problem) -> Tensor:
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
            torch.cuda.empty_cache()  # not before the error is gone, which holds what was there when it was raised
            self.say(
                f"the device is out of memory with batches of {size}: going on with {size // 2}"
            )
            problem = problem.rebatched(size // 2)

    def probes(
        self, numbers: Sequence[int], purpose: str = "probes"
    ) -> Float[Tensor, "params probes"]:
        """Sign probes as int8, each from a stream of its own: who computes with them does not matter."""
        seed, P = self.settings.seed, self.problem.num_params
        columns = [Rademacher().signs(P, 1, stream(seed, purpose, str(k)))[:, 0] for k in numbers]
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


# --- built and trained ------------------------------------------------------------------------------------------------


def built(
    settings: Settings, device: torch.device, ranks: Ranks, folder: Path, say: Say
) -> Subject:
    """Draws the network, trains it or goes on with its training, and copies the first process's to all."""
    dtype, seed = DTYPES[settings.dtype], settings.seed
    number = None if settings.steps else settings.batch
    data = zoo.images(
        settings.data, num_samples=number, label_noise=settings.label_noise, dtype=dtype, root=settings.root,
        generator=stream(seed, "labels"),
    )  # fmt: skip
    measured = Data(data.inputs[: settings.batch], data.targets[: settings.batch])
    problem = zoo.full_scale_problem(
        settings.model, measured, num_classes=settings.num_classes, batch_size=settings.batch, width=settings.width,
        activation=ACTIVATIONS[settings.activation], generator=stream(seed, "weights"),
    )  # fmt: skip
    model = problem.model.to(device)
    if settings.steps:
        _train(model, data, settings, folder, ranks, say)
    ranks.copy_from_first(iter([*model.parameters(), *model.buffers()]))
    batch: Batch = (measured.inputs.to(device), measured.targets.to(device))
    return Subject(settings, Problem(model.eval(), F.cross_entropy, [batch]), ranks, say)


def _train(
    model: nn.Module, data: Data, settings: Settings, folder: Path, ranks: Ranks, say: Say
) -> None:
    """SGD with momentum 0.9 and a falling step; every process does all steps, the first one keeps them on disk.

    Batch number t depends on the seed and t alone, so that a run that goes on is the run that was never stopped.
    """
    checkpoint = folder / "training.pt"
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    start = 0
    if checkpoint.exists():
        try:
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            start = int(state["step"])
            finite = all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
            if not (finite and 0 <= start <= settings.steps):
                raise ValueError("a number that is not finite, or a step that is not one of these")
        except Exception as error:  # whatever a damaged file makes of unpickling
            raise ValueError(
                f"{checkpoint} cannot be read ({type(error).__name__}): delete it, and --resume trains anew"
            ) from error
        say(f"training goes on at step {start} of {settings.steps}")
    size, available = min(_TRAINING_BATCH, len(data.targets)), min(_TRAINED_ON, len(data.targets))
    model.train()
    for step in range(start, settings.steps):
        rows = torch.randperm(available, generator=stream(settings.seed, "batch", str(step)))[:size]
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / settings.steps)) / 2
        loss = F.cross_entropy(model(data.inputs[rows].to(device)), data.targets[rows].to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise ValueError(
                f"training diverged at step {step + 1}: the loss is {value}; take fewer steps"
            )
        if (done := step + 1) % _CHECKPOINT_EVERY == 0 or done == settings.steps:
            if ranks.first:
                _save(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": done,
                    },
                )
            say(f"step {done} of {settings.steps}: loss {value:.4g}")
    model.zero_grad(set_to_none=True)
    model.eval()


def _save(path: Path, state: dict[str, Any]) -> None:
    """Under a temporary name first: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{torch.initial_seed() & 0xFFFF}")
    torch.save(state, temporary)
    temporary.replace(path)
