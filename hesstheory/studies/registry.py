"""All studies, by name. One is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from hesstheory.run.names import no_such
from hesstheory.studies.study import Study

NAMES = (
    "conformance_error_rates",
    "conformance_suspects",
    "engine",
    "full_scale_records",
    "full_vector_probes",
    "harness_false_alarms",
    "processes",
)


def study(name: str) -> Study:
    """The study of that name.

    Raises
    ------
    KeyError
        If there is none; the message names all.

    Examples
    --------
    >>> study("engine").question
    'What do torch.compile and channels-last memory bring?'
    """
    if name not in NAMES:
        raise KeyError(no_such("study", name, NAMES))
    found: Study = import_module(f"hesstheory.studies.{name}").STUDY
    return found
