# SPDX-License-Identifier: Apache-2.0
"""Tables of the GGX lobe over roughness and view cosine, integrated by us.

For f(L) = D G2 / (4 N.V) (cosine of L included) in the frame N, T = normalize(V - (N.V) N), the
moments  int f g {1, n, t, nn, tt, nt} dL  with n = N.L, t = T.L, for three Fresnel weights
g = 1, (1 - V.H)^5, and s = (F(V.H) - F0) / (1 - F0) of the real dielectric at IOR 1.5. They make
second-order environments exact (notes: renderer.md 5.1). `python -m backend.ggx_tables` writes
the file the package ships; at run time it is only read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import bump
from .lookup import read_table

RESOLUTION = 32
IOR = 1.5
F0_DIELECTRIC = ((IOR - 1) / (IOR + 1)) ** 2
TABLE_FILE = Path(__file__).with_name("ggx_tables.safetensors")


@dataclass(frozen=True)
class GgxTables:
    """moments (18, R, R): [weight * 6 + moment, roughness, view cosine], both axes linear over
    0..1; albedo_average (R,) over roughness: 2 int E mu dmu; bump_diffuse and bump_lost: see bump.py."""

    moments: Tensor
    albedo_average: Tensor
    bump_diffuse: Tensor
    bump_lost: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> GgxTables:
        return GgxTables(*(getattr(self, f.name).to(device, dtype) for f in fields(self)))


def load() -> GgxTables:
    return GgxTables(**load_file(TABLE_FILE))


def dielectric_fresnel(cosine: Tensor) -> Tensor:
    """Unpolarised Fresnel reflectance at IOR 1.5 for cosines (...) in 0..1."""
    g = torch.sqrt(IOR**2 - 1 + cosine**2)
    a = (g - cosine) / (g + cosine)
    b = (cosine * (g + cosine) - 1) / (cosine * (g - cosine) + 1)
    return 0.5 * a**2 * (1 + b**2)


def integrate(resolution: int = RESOLUTION, samples: int = 256) -> GgxTables:
    """Stratified quadrature with visible-normal sampling (Heitz 2018), in float64."""
    axis = torch.linspace(0, 1, resolution, dtype=torch.float64)
    cell = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    u1, u2 = (a.reshape(-1) for a in torch.meshgrid(cell, cell, indexing="ij"))
    moments = torch.zeros(18, resolution, resolution, dtype=torch.float64)
    for i, roughness in enumerate(axis):
        for j, mu in enumerate(axis):
            light, weights = _lobe(max(float(roughness), 1e-2), max(float(mu), 1e-3), u1, u2)
            t, n = light[:, 0], light[:, 2]
            shapes = torch.stack((torch.ones_like(n), n, t, n * n, t * t, n * t))
            moments[:, i, j] = (weights @ shapes.T).flatten() / len(n)
    # Trapezoid over mu of 2 E mu.
    integrand = 2 * moments[0] * axis
    average = torch.trapezoid(integrand, axis, dim=1)
    lost = bump.integrate_lost(lambda roughness, mu: _lobe(roughness, mu, u1, u2))
    return GgxTables(moments.float(), average.float(), bump.integrate_diffuse(), lost)


def _lobe(roughness: float, mu: float, u1: Tensor, u2: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (M, 3) along T, across and N that sample the lobe, and weights (3, M): their mean is an integral."""
    alpha = roughness**2
    view = torch.tensor([(1 - mu**2) ** 0.5, 0.0, mu], dtype=torch.float64)
    stretched = torch.stack((alpha * view[0], view[1], view[2]))
    stretched = stretched / stretched.norm()
    t1 = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    t2 = torch.linalg.cross(stretched, t1)
    radius, phi = torch.sqrt(u1), 2 * torch.pi * u2
    p1, p2 = radius * torch.cos(phi), radius * torch.sin(phi)
    s = 0.5 * (1 + stretched[2])
    p2 = (1 - s) * torch.sqrt((1 - p1**2).clamp(min=0)) + s * p2
    p3 = torch.sqrt((1 - p1**2 - p2**2).clamp(min=0))
    half = p1[:, None] * t1 + p2[:, None] * t2 + p3[:, None] * stretched
    half = torch.stack((alpha * half[:, 0], alpha * half[:, 1], half[:, 2].clamp(min=1e-9)), dim=1)
    half = half / half.norm(dim=1, keepdim=True)
    v_h = (half @ view).clamp(0, 1)
    light = 2 * v_h[:, None] * half - view
    n = light[:, 2]
    lambda_v = 0.5 * ((1 + alpha**2 * (1 / mu**2 - 1)) ** 0.5 - 1)
    lambda_l = 0.5 * (torch.sqrt(1 + alpha**2 * (1 / n.clamp(min=1e-6) ** 2 - 1)) - 1)
    # Sampling visible normals leaves the weight G2 / G1(V).
    weight = torch.where(n > 0, (1 + lambda_v) / (1 + lambda_v + lambda_l), 0.0)
    fresnel = (torch.ones_like(v_h), (1 - v_h) ** 5, (dielectric_fresnel(v_h) - F0_DIELECTRIC) / (1 - F0_DIELECTRIC))
    return light, weight * torch.stack(fresnel)


def lookup(tables: GgxTables, roughness: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Moments (N, 18) and average albedo (N,), bilinear; differentiable in both arguments."""
    side = tables.moments.shape[1]
    average = tables.albedo_average.view(1, side, 1).expand(1, side, side)
    grid = torch.stack((mu, roughness), dim=1).view(1, -1, 1, 2)
    found = read_table(torch.cat((tables.moments, average)), grid)
    return found[:, :-1], found[:, -1]


if __name__ == "__main__":
    made = integrate()
    save_file({name: table.contiguous() for name, table in asdict(made).items()}, TABLE_FILE)
