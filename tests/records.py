"""Records of a made-up run of claims, with every table that a figure shows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Row = dict[str, object]
Record = dict[str, object]

NETWORKS = {
    "mlp relu 8-6-3": ("fc1", "fc2", "head"),
    "mlp tanh 8-6-6-3": ("fc1", "fc2", "fc3", "head"),
    "small convolution, batch norm": ("conv1", "norm1", "conv2", "norm2", "head"),
    "tied autoencoder": ("up+down", "bias"),
    "attention, 2 heads": ("query", "key", "value", "output", "mlp", "head"),
    "recurrent": ("input", "recurrent", "head"),
}
STAGES = ("untrained", "trained")
BLOCKS = [
    {"network": network, "stage": stage, "block": block}
    for network, blocks in NETWORKS.items()
    for stage in STAGES
    for block in blocks
]


# --- rows of the tables ---------------------------------------------------------------------------


def estimate_rows(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for place in BLOCKS:
        exact = float(rng.choice([1, 1, 1, -1]) * 10 ** rng.uniform(-3, 2))
        for probe in ("Rademacher", "Gaussian"):
            half = abs(exact) * 10 ** rng.uniform(-1.5, -0.3)
            estimate = exact + half * float(rng.normal()) / 1.96
            rows.append(
                {
                    **place,
                    "exact": exact,
                    "estimate": estimate,
                    "low": estimate - half,
                    "high": estimate + half,
                    "num_probes": 64,
                    "probe": probe,
                }
            )
    return rows


def variance_rows(rng: np.random.Generator) -> list[Row]:
    return [
        {**place, "probe": probe, "predicted": predicted, "measured": measured}
        for place in BLOCKS
        for probe in ("Rademacher", "Gaussian", "Sphere")
        for predicted in [float(10 ** rng.uniform(-5, 3))]
        for measured in [predicted * float(1 + 0.03 * rng.normal())]
    ]


def gain_rows(rng: np.random.Generator) -> list[Row]:
    return [
        row | {"probe": ("logit", "residual")[n % 2]} for n, row in enumerate(variance_rows(rng))
    ]


def tied_rows(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for example, instances, bias in (
        ("shared encoder and decoder", 2, -0.71),
        ("opposed copies", 2, 0.85),
        ("orthogonal copies", 3, 0.0),
        ("recurrent matrix, 4 steps", 4, -1.9),
    ):
        separate = float(10 ** rng.uniform(-1, 2))
        rows.append(
            {
                "example": example,
                "tensor": "weight",
                "stage": "untrained",
                "instances": instances,
                "exact_trace": separate * (1 - bias),
                "separate_trace": separate,
                "bias": separate * bias,
                "bound_low": -(instances - 1) * separate,
                "bound_high": separate,
            }
        )
    return rows


def total_variance_rows(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for network in list(NETWORKS)[:3]:
        for block in NETWORKS[network]:
            k_star = float(10 ** rng.uniform(-0.5, 2.2))
            floor = float(10 ** rng.uniform(-4, 1))
            for batch_size in (8, 32):
                place = {"network": network, "block": block, "batch_size": batch_size}
                rows += total_variance_curve(place, k_star * batch_size / 8, floor, rng)
    return rows


def total_variance_curve(
    place: Row, k_star: float, floor: float, rng: np.random.Generator
) -> list[Row]:
    rows: list[Row] = []
    for num_probes in (1, 2, 4, 8, 16, 32, 64, 128):
        predicted = floor * (1 + k_star / num_probes)
        measured = predicted * float(1 + 0.05 * rng.normal())
        totals = {"predicted": predicted, "measured": measured}
        rows.append({**place, "num_probes": num_probes, **totals, "k_star": k_star, "floor": floor})
    return rows


def budget_rows(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for network in list(NETWORKS)[:2]:
        for ratio in (0.5, 4.0):
            for block in NETWORKS[network]:
                k_star = float(10 ** rng.uniform(-1, 2))
                floor = float(10 ** rng.uniform(-3, 0))
                place = {"network": network, "block": block}
                costs = {"k_opt": math.sqrt(ratio * k_star), "overhead_ratio": ratio}
                for num_probes in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64):
                    variance = floor * (1 + k_star / num_probes) * (ratio + num_probes) / 1000
                    rows.append({**place, "num_probes": num_probes, "variance": variance, **costs})
    return rows


def critical_rows(rng: np.random.Generator) -> list[Row]:
    return [
        {"network": network, "block": block, "step": step, "batch_size": size, "k_star": k_star}
        for network in list(NETWORKS)[:4]
        for block in NETWORKS[network]
        for base in [float(10 ** rng.uniform(-1, 2))]
        for step in (0, 50, 400)
        for size in (4, 16, 64, 256)
        for k_star in [
            math.inf if size == 256 and block == "fc1" else base * size**0.7 / 8 * (1 + step / 100)
        ]
    ]


def power_rows(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for draws, scale in (("normal", 0.16), ("lognormal", 0.22), ("Rademacher form", 0.18)):
        for effect in np.linspace(0, 2, 11):
            rate = float(0.5 * (1 + math.erf((effect - 1) / scale / math.sqrt(2))))
            rows.append(
                {
                    "draws": draws,
                    "effect": float(effect),
                    "rejection_rate": rate,
                    "low": max(0.0, rate - 0.03),
                    "high": min(1.0, rate + 0.03),
                    "theory": rate if draws == "normal" else None,
                }
            )
    return rows


def crossover_rows(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for place in BLOCKS:
        separated = float(10 ** rng.uniform(-5, 2))
        ratio = float(10 ** rng.normal(0.1, 0.5))
        rows.append(
            {
                **place,
                "separated_variance": separated,
                "full_variance": separated * ratio,
                "ratio": ratio,
                "full_vector_wins": ratio < 1,
            }
        )
    return rows


ROWS: dict[str, Callable[[np.random.Generator], list[Row]]] = {
    "estimates": estimate_rows,
    "variance": variance_rows,
    "tied_bias": tied_rows,
    "total_variance": total_variance_rows,
    "budget": budget_rows,
    "critical_probes": critical_rows,
    "power": power_rows,
    "crossover": crossover_rows,
    "gain": gain_rows,
}


# --- claims and runs ------------------------------------------------------------------------------

RUN = "20261121T120000-ab12"
FORMULA = (
    r"\operatorname{Var} q_l = 2\|H_{ll}\|_F^2 + (\kappa-3)\sum_{i\in l} H_{ii}^2"
    r" + \sum_{m\neq l}\|H_{lm}\|_F^2"
)
CLAIM_OF = {
    "estimates": "T1",
    "variance": "T2",
    "tied_bias": "T7",
    "total_variance": "T10",
    "budget": "T13",
    "critical_probes": "T12",
    "power": "suite.power",
    "crossover": "T6",
    "gain": "G8",
}
SUBJECTS = {
    "T1": (
        "One product serves every layer",
        "HOLDS",
        r"\mathbb{E}\, z_l^\top (Hz)_l = \operatorname{tr} H_{ll}",
    ),
    "T2": ("Variance of the layer-wise trace", "HOLDS", FORMULA),
    "T6": (
        "Full-vector against separated probes",
        "CONDITIONAL",
        r"\sum_{m\ne l} \|H_{lm}\|^2 < 2(L-1)(\ldots)",
    ),
    "T7": ("Separate probes for tied weights are biased", "HOLDS", r"H_w = \sum_{r,s} U_{rs}"),
    "T10": (
        "Total variance on one mini-batch",
        "HOLDS",
        r"\frac{S_t^2}{b}\left(1-\frac{b}{n}\right)",
    ),
    "T12": ("Five to ten probes are right everywhere", "REFUTED", ""),
    "T13": ("Best number of probes at a fixed budget", "HOLDS", r"\sqrt{\frac{c_0}{c_1} K^*}"),
    "G8": (
        "Probes on the residual alone",
        "HOLDS",
        r"\operatorname{tr} H_{ll} = \operatorname{tr} G_{ll} + R_{ll}",
    ),
    "suite.power": ("The statistical checks have the power that they state", "HOLDS", ""),
}
EXACT_CHECK: Record = {
    "name": "all sign vectors",
    "kind": "exact",
    "status": "passed",
    "detail": "",
    "discrepancy": 3.1e-16,
    "bound": 4.4e-14,
    "alpha": None,
    "power": None,
    "detectable": None,
    "num_draws": None,
    "table": None,
    "rows": [],
}


def synthetic_rows(table: str, rng: np.random.Generator) -> list[Row]:
    return ROWS[table](rng)


def synthetic_check(table: str, rows: list[Row], **changes: object) -> Record:
    check = {
        "name": f"{table} agree",
        "kind": "statistical",
        "status": "passed",
        "detail": f"{len(rows)} comparisons.",
        "discrepancy": 0.0123,
        "bound": 0.05,
        "alpha": 2e-8,
        "power": 0.9993,
        "detectable": 0.061,
        "num_draws": 65536,
        "table": table,
        "rows": rows,
    }
    return {**check, **changes}


def synthetic_claims(*tables: str) -> list[Record]:
    """Claims with nothing but the tables, all of them by default."""
    rng = np.random.default_rng(7)
    return [
        {
            "record": "claim",
            "id": CLAIM_OF[table],
            "checks": [synthetic_check(table, synthetic_rows(table, rng))],
        }
        for table in tables or ROWS
    ]


def synthetic_claim(identity: str, table: str, rng: np.random.Generator) -> Record:
    subject, verdict, formula = SUBJECTS[identity]
    dropped = {
        "name": "DroppedCrossBlocks",
        "sin": "omits Σ‖H_lm‖²",
        "rejected": True,
        "by": "all sign vectors",
        "detail": "",
    }
    reused = {
        "name": "ReusedProbe",
        "sin": "re-seeds the probe in each layer",
        "rejected": True,
        "by": f"{table} agree",
    }
    return {
        "record": "claim",
        "run": RUN,
        "id": identity,
        "subject": subject,
        "formula": formula,
        "source": "[LHT]",
        "statement": f"{subject}: for every layer and any probe with E zzᵀ = I.",
        "expected": verdict,
        "reason": "Proved on paper.",
        "verdict": verdict,
        "kind": "exact",
        "detail": "Both routes agree.",
        "seconds": 1.2,
        "condition": "the coupling is below the crossover" if verdict == "CONDITIONAL" else "",
        "counterexample": "layer head, batch 256: K* = 99.2" if verdict == "REFUTED" else "",
        "reproduce": f"hesstheory validate {identity} --profile ci --seed 0",
        "mutants": [dropped, reused],
        "checks": [dict(EXACT_CHECK), synthetic_check(table, synthetic_rows(table, rng))],
        "time": "2026-11-21T12:00:04Z",
    }


def synthetic_run() -> list[Record]:
    """A header, a claim for each table, and an end: all as expected."""
    rng = np.random.default_rng(11)
    claims = [synthetic_claim(identity, table, rng) for table, identity in CLAIM_OF.items()]
    header: Record = {
        "record": "run",
        "run": RUN,
        "profile": "ci",
        "seed": "20261121",
        "suite_alpha": 1e-6,
        "alpha_per_check": 3.2e-8,
        "num_statistical": 31,
        "fingerprint": "9f2c",
        "time": "2026-11-21T12:00:00Z",
        "provenance": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "command": "hesstheory validate --profile ci",
        },
        "claims": [claim["id"] for claim in claims],
    }
    verdicts = [claim["verdict"] for claim in claims]
    end: Record = {
        "record": "end",
        "run": RUN,
        "seconds": 61.5,
        "passed": True,
        "time": "2026-11-21T12:01:01Z",
        "counts": {name: verdicts.count(name) for name in ("HOLDS", "CONDITIONAL", "REFUTED")},
        "records_run": counted_checks(claims),
    }
    return [header, *claims, end]


def counted_checks(records: list[Record]) -> int:
    return sum(len(record.get("checks", ())) for record in records)
