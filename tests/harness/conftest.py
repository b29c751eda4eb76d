"""The pretended CUDA device."""

from pretend_cuda import device

__all__ = ["device"]
