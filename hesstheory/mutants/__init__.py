"""Would we notice? Wrong probes, estimators and formulas, each named by its sin.

A mutant stands in for the subject of a claim and must change the outcome of one of its checks. The first line of a
docstring is the sin as the report prints it.
"""

from hesstheory.mutants.designs import *
from hesstheory.mutants.estimation import *
from hesstheory.mutants.gauss_newton import *
from hesstheory.mutants.signs import *
from hesstheory.mutants.testing import *
from hesstheory.mutants.tied import *
from hesstheory.mutants.tradeoff import *
from hesstheory.mutants.train_mode import *
from hesstheory.mutants.variance import *
