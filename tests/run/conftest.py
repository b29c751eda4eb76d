"""The pretended CUDA device."""

from pretend_cuda import device, faulty

__all__ = ["device", "faulty"]
