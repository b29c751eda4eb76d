"""What does it cost? Ours and other libraries on the same problems."""

from hesstheory.bench.course import available, measure, run, warmed
from hesstheory.bench.marks import marks, peers_work
from hesstheory.bench.problems import SETTINGS, Setting
from hesstheory.bench.ways import Way

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
