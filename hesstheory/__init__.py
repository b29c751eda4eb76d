"""Decides, with evidence, what is true about stochastic Hessian traces, and whose code is right.

The names in `__init__.pyi` are loaded on first use. `import hesstheory` then costs no more than the
import of torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
