"""What does it cost? Ours and other libraries on the same problems."""

from hesstheory.bench.course import available, marks, measure, peers_work, run, warmed
from hesstheory.bench.problems import SETTINGS, Setting, Way

__all__ = [
    "SETTINGS",
    "Setting",
    "Way",
    "available",
    "marks",
    "measure",
    "peers_work",
    "run",
    "warmed",
]
