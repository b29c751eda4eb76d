"""Every operation that passes for piecewise linear has no second difference, and its like bends."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hesstheory.autograd.rules import obstacle

ROWS = torch.tensor([0, 2, 1])
PLACES = torch.tensor([[0, 1, 1, 4], [2, 2, 0, 3], [4, 1, 3, 3]])
MASK = torch.tensor([[True, False, True, True], [False, True, False, True], [True] * 4])
GRID = torch.tensor([[[[-0.5, 0.1], [0.3, -0.7]]]])
GRID_3D = torch.tensor([[[[[-0.5, 0.1, 0.2], [0.3, -0.7, 0.6]]]]])
SOME = torch.linspace(-1, 1, 12).reshape(3, 4)
FIRST_TWO = torch.tensor([[0, 1], [2, 0]])


def zeros(*shape, like):
    return torch.zeros(*shape, dtype=like.dtype)


def cube(x):
    """Two channels of a small volume."""
    return x.reshape(1, 1, 3, 2, 2)


def in_place_on_a_part(x):
    return F.threshold_(1.0 * x, 0.1, 0.0)


def scatter_reduced(how):
    return lambda x: zeros(5, 4, like=x).scatter_reduce(0, PLACES, x, how)


def index_reduced(how):
    return lambda x: zeros(5, 4, like=x).index_reduce(0, ROWS, x, how)


def resized(**options):
    return lambda x: F.interpolate(x[None, None], **options)


def resized_line(mode):
    return lambda x: F.interpolate(x[None], scale_factor=2, mode=mode)


def resized_cube(mode):
    return lambda x: F.interpolate(cube(x), scale_factor=2, mode=mode)


def unpooled(x):
    return F.max_unpool2d(*F.max_pool2d(x[None, None, :2], 2, return_indices=True), 2)


# Functions of a 3×4 matrix.
LINEAR = {
    "scatter_add": lambda x: zeros(5, 4, like=x).scatter_add(0, PLACES, x),
    "index_add": lambda x: zeros(5, 4, like=x).index_add(0, ROWS, x),
    "index_copy": lambda x: zeros(5, 4, like=x).index_copy(0, ROWS, x),
    "index_fill": lambda x: x.index_fill(0, ROWS[:1], 2.0),
    "index_put": lambda x: zeros(5, 4, like=x).index_put((ROWS,), x, accumulate=True),
    "scatter": lambda x: zeros(5, 4, like=x).scatter(0, PLACES[:1], x),
    "masked_scatter": lambda x: zeros(3, 4, like=x).masked_scatter(MASK, x),
    "masked_select": lambda x: x.masked_select(MASK),
    "masked_fill": lambda x: x.masked_fill(MASK, 1.0),
    "take": lambda x: x.take(ROWS),
    "take_along_dim": lambda x: x.take_along_dim(ROWS[:, None], 1),
    "put": lambda x: zeros(3, 4, like=x).put(ROWS[:2], x[0, :2]),
    "select_scatter": lambda x: zeros(3, 4, like=x).select_scatter(x[0], 0, 1),
    "slice_scatter": lambda x: zeros(5, 4, like=x).slice_scatter(x, 0, 1, 4),
    "diagonal_scatter": lambda x: zeros(4, 4, like=x).diagonal_scatter(x[0]),
    "sum": lambda x: x.sum(1),
    "nansum": lambda x: x.nansum(),
    "nanmean": lambda x: x.nanmean(),
    "trace": lambda x: x.trace(),
    "cumsum": lambda x: x.cumsum(0),
    "diff": lambda x: x.diff(),
    "diag": lambda x: x.diag(),
    "diag_embed": lambda x: x.diag_embed(),
    "block_diag": lambda x: torch.block_diag(x, x),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(),
    "rot90": lambda x: x.rot90(),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "tile": lambda x: x.tile(2, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "as_strided": lambda x: x.as_strided((2, 2), (1, 2)),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "fold": lambda x: F.fold(F.unfold(x[None, None], 2), (3, 4), 2),
    "real of fft": lambda x: torch.fft.fft(x).real,
    "imaginary of fft": lambda x: torch.fft.fft(x).imag,
    "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x)),
    "complex": lambda x: torch.complex(x, 2 * x).conj().imag,
    "view_as_complex": lambda x: torch.view_as_complex(x.reshape(3, 2, 2)).real,
    "reflect 1d": lambda x: F.pad(x[None], (1, 1), mode="reflect"),
    "reflect 2d": lambda x: F.pad(x[None, None], (1, 1, 1, 1), mode="reflect"),
    "reflect 3d": lambda x: F.pad(cube(x), (1,) * 6, mode="reflect"),
    "replicate 1d": lambda x: F.pad(x[None], (1, 1), mode="replicate"),
    "replicate 2d": lambda x: F.pad(x[None, None], (1, 1, 1, 1), mode="replicate"),
    "replicate 3d": lambda x: F.pad(cube(x), (1,) * 6, mode="replicate"),
    "constant": lambda x: F.pad(x, (1, 1)),
    "linear 1d": resized_line("linear"),
    "nearest 1d": resized_line("nearest"),
    "nearest-exact 1d": resized_line("nearest-exact"),
    "bilinear": resized(scale_factor=2, mode="bilinear"),
    "bicubic": resized(scale_factor=2, mode="bicubic"),
    "nearest-exact": resized(scale_factor=2, mode="nearest-exact"),
    "area": resized(scale_factor=0.5, mode="area"),
    "bilinear, antialias": resized(scale_factor=0.5, mode="bilinear", antialias=True),
    "bicubic, antialias": resized(scale_factor=0.5, mode="bicubic", antialias=True),
    "trilinear": resized_cube("trilinear"),
    "nearest 3d": resized_cube("nearest"),
    "nearest-exact 3d": resized_cube("nearest-exact"),
    "channel_shuffle": lambda x: F.channel_shuffle(x.reshape(1, 4, 3, 1), 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, 3, 1), 2),
    "grid_sample": lambda x: F.grid_sample(x[None, None], GRID.to(x), align_corners=False),
    "grid_sample 3d": lambda x: F.grid_sample(cube(x), GRID_3D.to(x), align_corners=False),
    "affine_grid": lambda x: F.affine_grid(x[None, :2, :3], [1, 1, 2, 2], align_corners=False),
    "embedding": lambda x: F.embedding(FIRST_TWO, x),
    "embedding_bag": lambda x: F.embedding_bag(FIRST_TWO, x, mode="mean"),
    "lerp": lambda x: torch.lerp(x, torch.ones_like(x), 0.3),
    "addcmul": lambda x: torch.addcmul(x, torch.ones_like(x), x.new_ones(3, 4)),
    "addcdiv": lambda x: torch.addcdiv(x, x.new_ones(3, 4), x.new_full((3, 4), 2.0)),
    "addr": lambda x: torch.addr(zeros(3, 4, like=x), x[:, 0], x.new_ones(4)),
    "baddbmm": lambda x: torch.baddbmm(zeros(1, 3, 3, like=x), x[None], x.new_ones(1, 4, 3)),
    "bilinear form": lambda x: F.bilinear(x, x.new_ones(3, 2), x.new_ones(5, 4, 2)),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x.new_ones(3, 3)),
    "sparse product": lambda x: torch.sparse.mm(torch.eye(3).to(x).to_sparse(), x),
    "mean of segments": lambda x: torch.segment_reduce(x, "mean", lengths=torch.tensor([1, 2])),
    "scatter_reduce mean": scatter_reduced("mean"),
    "index_reduce mean": index_reduced("mean"),
}
PIECEWISE = {
    "scatter_reduce amax": scatter_reduced("amax"),
    "index_reduce amin": index_reduced("amin"),
    "median": lambda x: x.median(),
    "median of rows": lambda x: x.median(1)[0],
    "nanmedian": lambda x: x.nanmedian(),
    "kthvalue": lambda x: x.kthvalue(2)[0],
    "mode": lambda x: x.mode()[0],
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(1)[0],
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(2)[0],
    "quantile": lambda x: x.quantile(0.3),
    "fmax": lambda x: torch.fmax(x, SOME.to(x)),
    "fmin": lambda x: torch.fmin(x, SOME.to(x)),
    "aminmax": lambda x: torch.aminmax(x)[0],
    "floor": lambda x: x.floor() + x,
    "ceil": lambda x: x.ceil() + x,
    "round": lambda x: x.round() + x,
    "trunc": lambda x: x.trunc() + x,
    "frac": lambda x: x.frac(),
    "sign": lambda x: x.sign() + x,
    "copysign": lambda x: torch.copysign(x, SOME.to(x)),
    "nan_to_num": lambda x: x.nan_to_num(),
    "fmod": lambda x: x.fmod(0.7),
    "remainder": lambda x: x.remainder(0.7),
    "rrelu": lambda x: F.rrelu(x),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "softshrink": F.softshrink,
    "in place on the whole": in_place_on_a_part,
    "max_pool 1d": lambda x: F.max_pool1d(x[None], 2),
    "max_pool 3d": lambda x: F.max_pool3d(x[:2].reshape(1, 1, 2, 2, 2), 2),
    "max_unpool": unpooled,
    "norm of order 1": lambda x: torch.linalg.vector_norm(x, 1),
    "largest norm": lambda x: torch.linalg.vector_norm(x, float("inf")),
    "distance of order 1": lambda x: torch.dist(x, SOME.to(x), 1),
    "distances of order 1": lambda x: torch.cdist(x, SOME.to(x), 1),
}
BENT = {
    "scatter_reduce prod": scatter_reduced("prod"),
    "index_reduce prod": index_reduced("prod"),
    "norm of order 2": lambda x: torch.linalg.vector_norm(x, 2),
    "distance of order 2": lambda x: torch.dist(x, SOME.to(x), 2),
    "distances of order 2": lambda x: torch.cdist(x, SOME.to(x), 2),
    "a grid of parameters": lambda x: F.grid_sample(
        SOME.to(x)[None, None], x[:2, :2].tanh()[None, None], align_corners=False
    ),
    "lerp by parameters": lambda x: torch.lerp(x, 2 * x, x),
    "addcdiv by parameters": lambda x: torch.addcdiv(x, x.new_ones(3, 4), 2 + x),
    "addcmul of parameters": lambda x: torch.addcmul(x, x, x),
    "cross of parameters": lambda x: torch.linalg.cross(x[:, :3], x[:, 1:]),
    "glu": F.glu,
    "hardswish": F.hardswish,
}


def matrix(generator):
    """Entries away from the kinks at multiples of 0.7, 0.5 and 1."""
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def second_differences(f, x, step=1e-6):
    """The largest of ∂²f/∂x_i², times step², over all entries by themselves."""
    largest = 0.0
    with torch.no_grad():
        for i in range(x.numel()):
            e = torch.zeros_like(x)
            e.view(-1)[i] = step
            largest = max(largest, float((f(x + e) - 2 * f(x) + f(x - e)).abs().max()))
    return largest


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("f", [*LINEAR.values(), *PIECEWISE.values()], ids=[*LINEAR, *PIECEWISE])
def test_an_operation_that_passes_has_no_second_difference(f, generator):
    x = matrix(generator)
    assert obstacle(f(x)) is None
    assert second_differences(f, x) <= 1e-14


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("f", BENT.values(), ids=BENT)
def test_an_operation_that_bends_is_named(f, generator):
    assert obstacle(f(matrix(generator))) is not None
