# SPDX-License-Identifier: Apache-2.0
"""Panoramas as lights: a second-order part, a few suns, and the rest blurred once per lobe width.

A panorama is an equirectangular picture in Blender's mapping, linear Rec.709. What is much brighter than the rest
becomes suns, a lamp several of them side by side, each as wide as its piece. What is left is split into its
second-order part, which shading integrates exactly, and a residual whose convolutions with lobes of growing width are
kept as small pictures and looked up along the lobe's mean direction. Knows pictures of light; knows no surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .lighting import Lights, Residuals, uniform

HEIGHT = 128  # rows of the blurred pictures
SOURCE_HEIGHT = 256  # rows of what is blurred: exact up to degree 127
DEGREES = 128
LOBE_ROUGHNESS = (0.08, 0.13, 0.2, 0.3, 0.42, 0.58, 0.78, 1.0)
BRIGHT_SHARE = 0.012  # of the sphere: where lamps are looked for
SUNS_AT_MOST = 24
FAINT_SUN = 0.002  # of the panorama's whole light; fainter ones stay in the picture
UNRESOLVED_RAD = 0.006  # a sun whose light is spread no wider than this needs no splitting


class PanoramaError(ValueError):
    """The picture cannot serve as an environment; a sentence for a person."""


@dataclass(frozen=True)
class Environment:
    """constant (3,), linear (3, 3), quadratic (3, 3, 3) and S suns as in `Lights`; blurred (L + 1, HEIGHT, 2 HEIGHT,
    3) the residual under lobes of LOBE_ROUGHNESS, then under a cosine; spread (L,) sqrt(1 - mean cosine) of them."""

    constant: Tensor
    linear: Tensor
    quadratic: Tensor
    sun_direction: Tensor
    sun_irradiance: Tensor
    sun_spread: Tensor
    blurred: Tensor
    spread: Tensor


def from_panorama(picture: np.ndarray) -> Environment:
    """Split a panorama (H, 2 H, 3) into suns, second-order part and blurred residual.

    Lossy compression leaves values a little below zero, which count as none. Raises PanoramaError.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.shape[1] != 2 * picture.shape[0] or len(picture) < 16:
        raise PanoramaError(f"An environment is twice as wide as high, in colour; this one is {picture.shape}.")
    if not np.isfinite(picture).all():
        raise PanoramaError("The environment holds values that are infinite or not numbers.")
    picture, suns = _take_suns(_resized(np.maximum(picture.astype(np.float64), 0), 2 * SOURCE_HEIGHT))
    picture = _resized(picture, SOURCE_HEIGHT)
    w = directions(SOURCE_HEIGHT)
    weight = _ring_weights(SOURCE_HEIGHT)[:, None].repeat(2 * SOURCE_HEIGHT, 1) / (2 * SOURCE_HEIGHT)
    x, y, z = w[..., 0], w[..., 1], w[..., 2]
    basis = np.stack((np.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - z * z, y * y - z * z), -1).reshape(-1, 9)
    scaled = basis * weight.reshape(-1, 1)
    fit = np.linalg.solve(scaled.T @ basis, scaled.T @ picture.reshape(-1, 3))
    quadratic = np.zeros((3, 3, 3))
    for row, (i, j) in zip(fit[4:7], ((0, 1), (1, 2), (0, 2)), strict=True):
        quadratic[i, j] = quadratic[j, i] = row / 2
    quadratic[0, 0], quadratic[1, 1], quadratic[2, 2] = fit[7], fit[8], -fit[7] - fit[8]
    kernels, spread = _kernels()
    blurred = _convolve(picture - (basis @ fit).reshape(picture.shape), kernels)
    return Environment(
        *(torch.from_numpy(np.ascontiguousarray(a)).float() for a in (
            fit[0], fit[1:4], quadratic, *suns, blurred, spread
        ))
    )  # fmt: skip


def lights(environments: list[Environment], which: Tensor, generator: torch.Generator | None = None) -> Lights:
    """Lights of B pictures, the i-th by environments[which[i]]; a generator turns them about all three axes and
    varies their exposure (a factor of exp(0.25 normal))."""
    count = len(which)
    turn, gain = torch.eye(3).repeat(count, 1, 1), torch.ones(count)
    if generator is not None:
        turn, triangular = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))
        # Even over all rotations only with these signs; without them light came from one side.
        turn = turn * torch.sign(torch.diagonal(triangular, dim1=1, dim2=2))[:, None]
        turn = turn * torch.sign(torch.linalg.det(turn))[:, None, None]
        gain = torch.exp(0.25 * torch.randn(count, generator=generator))

    def stack(name: str) -> Tensor:
        parts = [getattr(e, name) for e in environments]
        if name.startswith("sun"):  # as many as the environment that has most; those added shine with nothing
            most = max(len(part) for part in parts)
            parts = [torch.cat((part, part.new_zeros(most - len(part), *part.shape[1:]))) for part in parts]
        return torch.stack(parts)[which]

    blurred = torch.cat([e.blurred for e in environments])
    ringed = torch.cat((blurred[:, :, -1:], blurred, blurred[:, :, :1]), dim=2).permute(3, 0, 1, 2).contiguous()
    residuals = Residuals(ringed, torch.tensor(LOBE_ROUGHNESS), environments[0].spread, which, turn, gain)
    made = Lights(
        stack("constant") * gain[:, None],
        torch.einsum("bij,bjc->bic", turn, stack("linear")) * gain[:, None, None],
        torch.einsum("bij,bkl,bjlc->bikc", turn, turn, stack("quadratic")) * gain[:, None, None, None],
        torch.einsum("bij,bsj->bsi", turn, stack("sun_direction")),
        stack("sun_irradiance") * gain[:, None, None],
        residuals,
        stack("sun_spread"),
    )
    return made if count else uniform(0)


def directions(height: int) -> np.ndarray:
    """Unit vectors (height, 2 height, 3) of the texel centres, row 0 at the top, as Blender maps panoramas."""
    polar = (np.arange(height)[:, None] + 0.5) / height * np.pi
    azimuth = (0.5 - (np.arange(2 * height)[None] + 0.5) / (2 * height)) * 2 * np.pi
    flat = np.sin(polar)
    return np.stack((flat * np.cos(azimuth), flat * np.sin(azimuth), np.cos(polar) + 0 * azimuth), -1)


# --- splitting ------------------------------------------------------------------------------------


def _take_suns(picture: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The picture without its lamps, and those as suns: direction (S, 3), irradiance (S, 3), spread (S,)."""
    height = len(picture)
    w = directions(height).reshape(-1, 3)
    solid = np.sin((np.arange(height) + 0.5) / height * np.pi).repeat(2 * height) * (np.pi / height) ** 2
    flat = picture.reshape(-1, 3)
    brightness = flat.mean(-1)
    order = np.argsort(-brightness)
    bright = order[: np.searchsorted(solid[order].cumsum(), BRIGHT_SHARE * 4 * np.pi)]
    cap = brightness[bright[-1]]
    excess = flat[bright] * (1 - cap / np.maximum(brightness[bright], 1e-12))[:, None]
    power = excess * solid[bright, None]
    piece = _pieces(w[bright], power.mean(-1), FAINT_SUN * (brightness * solid).sum())
    suns, flat = [], flat.copy()
    for k in range(piece.max() + 1):
        mine = piece == k
        if power[mine].mean(-1).sum() > FAINT_SUN * (brightness * solid).sum():
            flat[bright[mine]] -= excess[mine]
            suns.append((*_middle(w[bright[mine]], power[mine].mean(-1)), power[mine].sum(0)))
    found = (np.array([sun[i] for sun in suns]).reshape(-1, *shape) for i, shape in ((0, (3,)), (2, (3,)), (1, ())))
    return flat.reshape(picture.shape), tuple(found)


def _middle(w: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, float]:
    """The middle (3,) of directions (N, 3) by their power (N,), and how far they lie from it (root mean square)."""
    mean = (power[:, None] * w).sum(0) / power.sum()
    length = np.linalg.norm(mean)
    return mean / length, float(np.sqrt(max(0.0, 2 - 2 * length)))


def _pieces(w: np.ndarray, power: np.ndarray, faint: float) -> np.ndarray:
    """(N,) which of at most SUNS_AT_MOST compact pieces each of the directions (N, 3) belongs to: the piece with most
    power spread widest is cut across its longer axis until none is worth it, then each goes to the nearest."""
    piece = np.zeros(len(w), int)
    for count in range(1, SUNS_AT_MOST):
        worth = np.zeros(count)
        for k in range(count):
            own = power[piece == k]
            if own.sum() > faint and len(own) > 1:
                worth[k] = own.sum() * max(0.0, _middle(w[piece == k], own)[1] ** 2 - UNRESOLVED_RAD**2)
        if not worth.any():
            break
        mine = np.flatnonzero(piece == worth.argmax())
        off = w[mine] - _middle(w[mine], power[mine])[0]
        axis = np.linalg.eigh((off * power[mine, None]).T @ off)[1][:, -1]
        piece[mine[off @ axis > 0]] = count
        for _ in range(3):
            middles = np.stack([_middle(w[piece == k], power[piece == k] + 1e-12)[0] for k in np.unique(piece)])
            piece = (w @ middles.T).argmax(1)
    return piece


def _resized(picture: np.ndarray, height: int) -> np.ndarray:
    """Box means down, or bilinear, to (height, 2 height, 3)."""
    nchw = torch.from_numpy(picture).permute(2, 0, 1)[None]
    mode = "area" if len(picture) >= height else "bilinear"
    return torch.nn.functional.interpolate(nchw, (height, 2 * height), mode=mode)[0].permute(1, 2, 0).numpy()


# --- convolution on the sphere --------------------------------------------------------------------


def _ring_weights(count: int) -> np.ndarray:
    """Fejer's weights of `count` equal rings: exact integrals over the cosine for polynomials below that degree."""
    theta = (np.arange(count) + 0.5) / count * np.pi
    k = np.arange(1, count // 2 + 1)
    return 2 / count * (1 - 2 * (np.cos(2 * np.outer(theta, k)) / (4 * k**2 - 1)).sum(1))


def _legendre(cosine: np.ndarray, order: int) -> np.ndarray:
    """(DEGREES - order, N) associated Legendre functions, orthonormal over the cosine, from degree `order` up."""
    flat = np.sqrt(np.clip(1 - cosine**2, 0, None))
    first = np.full_like(cosine, 0.5**0.5)
    for m in range(1, order + 1):
        first = -first * flat * np.sqrt((2 * m + 1) / (2 * m))
    rows = [first]
    if order + 1 < DEGREES:
        rows.append(np.sqrt(2 * order + 3) * cosine * first)
    for n in range(order + 2, DEGREES):
        a = np.sqrt((4 * n * n - 1) / (n * n - order * order))
        b = np.sqrt(((n - 1) ** 2 - order * order) / (4 * (n - 1) ** 2 - 1))
        rows.append(a * (cosine * rows[-1] - b * rows[-2]))
    return np.stack(rows[: DEGREES - order])


def _convolve(picture: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Convolve (SOURCE_HEIGHT, 2 SOURCE_HEIGHT, 3) with K zonal kernels (K, DEGREES) -> (K, HEIGHT, 2 HEIGHT, 3)."""
    cos_in = np.cos((np.arange(SOURCE_HEIGHT) + 0.5) / SOURCE_HEIGHT * np.pi)
    cos_out = np.cos((np.arange(HEIGHT) + 0.5) / HEIGHT * np.pi)
    weights = _ring_weights(SOURCE_HEIGHT)
    waves = np.fft.rfft(picture, axis=1) / (2 * SOURCE_HEIGHT)
    result = np.zeros((len(kernels), HEIGHT, HEIGHT + 1, 3), complex)
    for order in range(min(DEGREES, HEIGHT)):
        # A wave's phase counts from texel centres, which move when the rows get shorter.
        shift = np.exp(1j * order * np.pi * (0.5 / HEIGHT - 0.5 / SOURCE_HEIGHT))
        known = (_legendre(cos_in, order) * weights) @ waves[:, order] * shift
        spread = kernels[:, order:, None] * known
        result[:, :, order] = np.einsum("lh,klc->khc", _legendre(cos_out, order), spread)
    return np.fft.irfft(result, n=2 * HEIGHT, axis=2) * (2 * HEIGHT)


def _kernels() -> tuple[np.ndarray, np.ndarray]:
    """Zonal factors (L + 1, DEGREES) of the GGX lobes seen face on and of the cosine, and the lobes' spread (L,)."""
    angle = np.concatenate((np.linspace(0, 0.3, 20001)[:-1], np.linspace(0.3, np.pi, 20001)))
    middle, width = (angle[1:] + angle[:-1]) / 2, np.diff(angle)
    cosine = np.cos(middle)
    values = []
    for roughness in LOBE_ROUGHNESS:
        alpha = roughness**2
        cos_half2 = np.cos(middle / 2) ** 2
        lobe = alpha**2 / (1 - cos_half2 + alpha**2 * cos_half2) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            smith = (np.sqrt(1 + alpha**2 * (1 / cosine**2 - 1)) - 1) / 2
        values.append(np.where(cosine > 1e-6, lobe / (1 + smith), 0))
    values.append(np.maximum(cosine, 0))
    kernels, spread = np.zeros((len(values), DEGREES)), []
    before, now = np.ones_like(cosine), cosine
    polynomials = [before, now]
    for n in range(1, DEGREES - 1):
        polynomials.append(((2 * n + 1) * cosine * polynomials[-1] - n * polynomials[-2]) / (n + 1))
    polynomials = np.stack(polynomials)
    for i, value in enumerate(values):
        measure = value * np.sin(middle) * width
        kernels[i] = polynomials @ (measure / measure.sum())
        spread.append(np.sqrt(1 - kernels[i, 1]))
    return kernels, np.array(spread[:-1])
