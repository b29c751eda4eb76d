"""Full scale: the checks that are exact on small networks, on ResNet-18, ResNet-34 and VGG-11."""

from __future__ import annotations

from hesstheory.harness import show
from hesstheory.harness.course import run
from hesstheory.harness.stages.registry import STAGES
from hesstheory.harness.subject import Settings

__all__ = ["STAGES", "Settings", "run", "show"]
