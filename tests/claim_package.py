"""A small claim package of our own, and the claims, right and wrong, that tests of the registry are
made of."""

from __future__ import annotations

import textwrap

from hesstheory.claims.registry import claim
from hesstheory.evidence.checks import Check, Kind, Status, empirical, holds
from hesstheory.evidence.exact import exact

NAME = "arithmetic_claims"

ARITHMETIC = '''
    """Cheap claims, which wait as long as a file `hold ID` exists; every decision is logged."""

    import time
    from pathlib import Path

    import torch

    from hesstheory.claims import claim
    from hesstheory.evidence import Tail, exact, statistical

    HERE = Path(__file__).parent


    def two():
        return 2.0


    def three():
        """Is one too many."""
        return 3.0


    def log(id, subject):
        if subject is two:
            with open(HERE / "decided", "a") as out:
                out.write(id + "\\n")


    def equals_two(id):
        def decide(subject, context):
            log(id, subject)
            while (HERE / f"hold {id}").exists():
                time.sleep(0.01)
            yield exact("value", subject(), 2.0)
            yield exact("square", subject() ** 2, 4.0)

        return decide


    def draws_centre_on_two(id):
        def decide(subject, context):
            log(id, subject)

            def draw(n, generator):
                return subject() + torch.randn(n, generator=generator, dtype=torch.float64)

            generator = context.generator("z")
            yield statistical(
                "mean", draw, 2.0, margin=0.5, tail=Tail(1.0, 0.0),
                alpha=context.alpha, generator=generator,
            )

        return decide


    for id in ("A10", "A2.a", "A1", "A2", "A3"):
        claim(id, "Two is two.", reason="counting", subject=two, mutants=[three])(equals_two(id))
    for id in ("B2", "B1"):
        claim(
            id, "Draws centre on two.", reason="counting", subject=two, mutants=[three],
            statistical=1, profile="ci",
        )(draws_centre_on_two(id))
'''
SMOKE = ["A1", "A2", "A2.a", "A3", "A10"]
ALL = [*SMOKE, "B1", "B2"]


def install(folder):
    """Puts the package into a folder as an installer would: sources, and metadata with the entry
    point."""
    package = folder / NAME
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Cheap claims."""\n')
    (package / "arithmetic.py").write_text(textwrap.dedent(ARITHMETIC))
    metadata = folder / f"{NAME}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[hesstheory.claims]\narithmetic = {NAME}\n")
    return package


def decided(package):
    """Ids in the order in which their subjects were looked at."""
    return (package / "decided").read_text().split()


def two():
    return 2.0


def three():
    """Is one too many."""
    return 3.0


def twin():
    """Is right after all."""
    return 2.0


def twin_too():
    """Is right as well."""
    return 2.0


def broken():
    """Cannot be evaluated."""
    raise ZeroDivisionError("no value")


class Four:
    """Is two too many.

    Longer story.
    """

    def __call__(self):
        return 4.0


def power(base, exponent=1):
    """Is raised to a power."""
    return base**exponent


def value_is_two(subject, context):
    yield exact("value", subject(), 2.0)


def register(id="X1", decide=value_is_two, **changes):
    settings = {"subject": two, "mutants": [three], "reason": "counting"} | changes
    return claim(id, "Two is two.", **settings)(decide)


def failing(subject, context):
    yield exact("value", subject(), 3.0)


def conditional(subject, context):
    yield exact("value", subject(), 2.0)
    yield holds("small", subject() < 1, "2 is not").unless("n is large")
    yield holds("tiny", subject() < 0.5, "2 is not").unless("n is large")
    yield holds("normal", subject() < 0, "2 is not").unless("the draws are normal")


def refuted_and_limited(subject, context):
    yield from conditional(subject, context)
    yield holds("negative", subject() < 0, f"{subject():g} is not")


def only_limited(subject, context):
    yield holds("negative", subject() > 2, f"{subject():g} is not").unless("elsewhere")


def open_ended(subject, context):
    yield exact("value", subject(), 2.0)
    yield from (Check(name, Kind.EMPIRICAL, Status.INCONCLUSIVE) for name in ("tail", "mean"))


def limited_and_open(subject, context):
    yield from open_ended(subject, context)
    yield holds("small", subject() < 1, "2 is not").unless("n is large")


def breaking(subject, context):
    yield exact("value", subject(), 2.0)
    raise ValueError("out of range")


def breaks_on_mutants(subject, context):
    if subject is not two:
        raise ValueError("out of range")
    yield exact("value", subject(), 2.0)


def mixed(subject, context):
    yield empirical("study", "effect 1")
    yield exact("value", subject(), 2.0)
    yield holds("proof", subject() == 2, "", kind=Kind.SYMBOLIC)


def failing_twice(subject, context):
    yield empirical("trend", "effect 1", statement=False)
    yield exact("value", subject(), 3.0)


def limited_study(subject, context):
    yield exact("value", subject(), 2.0)
    yield empirical("trend", "effect 1", statement=False).unless("n is large")


def talkative(subject, context):
    yield empirical("study", "effect 1")
    yield exact("value", 2.0, 2.0)
    if subject is not two:
        yield exact("only of mutants", subject(), 2.0)
        yield Check("value", Kind.EXACT, Status.INCONCLUSIVE)
        yield Check("value", Kind.EXACT, Status.REPORTED)
        yield empirical("study", "effect 2", statement=False)
