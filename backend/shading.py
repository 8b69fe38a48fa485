# SPDX-License-Identifier: Apache-2.0
"""The metallic/roughness subset of Blender's Principled BSDF, as pure functions of points.

Source of the formulas: Cycles 4.5 (closure/bsdf_microfacet.h, svm/closure.h), collected in
renderer.md 4.1 and 5.1: GGX with height-correlated Smith, Schlick metal (F82 with white tint),
real dielectric Fresnel at IOR 1.5, multiscatter compensation, albedo-scaled diffuse. It knows
points, maps and lights; it knows no textures and no pictures. Everything is linear Rec.709.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .ggx_tables import F0_DIELECTRIC, IOR, GgxTables, dielectric_fresnel, lookup
from .lighting import Lights
from .rasterize import GBuffer

ROUGHNESS_MIN = 0.05  # below, a sun's highlight falls between pixels
FSS_DIELECTRIC = (IOR - 1) / (4.08567 + 1.00071 * IOR)  # cosine-averaged Fresnel, Cycles' fit


@dataclass(frozen=True)
class SurfaceMaps:
    """Material at N points: base_color (N, 3) linear, metallic (N,), roughness (N,), normal (N, 3)
    unit tangent-space (OpenGL +Y) or None for the smooth normal."""

    base_color: Tensor
    metallic: Tensor
    roughness: Tensor
    normal: Tensor | None = None


def shade(
    gbuffer: GBuffer, maps: SurfaceMaps, lights: Lights, tables: GgxTables, occlusion: Tensor | None = None
) -> Tensor:
    """Linear radiance (N, 3) towards the camera; `occlusion` (N,) in 0..1 scales the world's light."""
    normal = shading_normal(gbuffer, maps.normal)
    lobe = _lobe(gbuffer.to_camera, normal, maps, tables)
    world = _world(lobe, normal, gbuffer, maps, lights)
    if occlusion is not None:
        world = world * occlusion[:, None]
    return world + _suns(lobe, normal, gbuffer, maps, lights)


def shading_normal(gbuffer: GBuffer, tangent_normal: Tensor | None) -> Tensor:
    """World normal (N, 3): nx T + ny sign (N x T) + nz N with T and N interpolated and not normalised."""
    if tangent_normal is None:
        return torch.nn.functional.normalize(gbuffer.normal, dim=1)
    tangent, sign = gbuffer.tangent[:, :3], gbuffer.tangent[:, 3:]
    bitangent = sign * torch.linalg.cross(gbuffer.normal, tangent)
    return torch.nn.functional.normalize(
        tangent_normal[:, :1] * tangent + tangent_normal[:, 1:2] * bitangent + tangent_normal[:, 2:] * gbuffer.normal,
        dim=1,
    )


@dataclass(frozen=True)
class _Lobe:
    """What both light types share at N points."""

    cos_view: Tensor  # (N,) N.V
    moments: Tensor  # (N, 18)
    multiscatter_metal: Tensor  # (N, 3) 1 + Fms (1 - E) / E
    multiscatter_dielectric: Tensor  # (N,)
    diffuse_weight: Tensor  # (N,)
    roughness: Tensor  # (N,)


def _lobe(to_camera: Tensor, normal: Tensor, maps: SurfaceMaps, tables: GgxTables) -> _Lobe:
    cos_view = (normal * to_camera).sum(1).clamp(min=1e-3)
    roughness = maps.roughness.clamp(ROUGHNESS_MIN, 1.0)
    moments, average = lookup(tables, roughness, cos_view)
    albedo = moments[:, 0].clamp(min=1e-3)
    missing = (1 - albedo) / albedo

    def fms(fss: Tensor | float, mean: Tensor) -> Tensor:
        return fss * mean / (1 - fss * (1 - mean))

    reflectance = maps.base_color.clamp(max=1.0)
    fss_metal = reflectance + (1 - reflectance) / 21
    metal = 1 + fms(fss_metal, average[:, None]) * missing[:, None]
    dielectric = 1 + fms(FSS_DIELECTRIC, average) * missing
    # Albedo of the coating over the diffuse base: ms (F0 E + (1 - F0) E_s).
    coating = dielectric * (F0_DIELECTRIC * moments[:, 0] + (1 - F0_DIELECTRIC) * moments[:, 12])
    return _Lobe(cos_view, moments, metal, dielectric, (1 - maps.metallic) * (1 - coating), roughness)


def _world(lobe: _Lobe, normal: Tensor, gbuffer: GBuffer, maps: SurfaceMaps, lights: Lights) -> Tensor:
    view = gbuffer.view
    constant, linear, quadratic = lights.constant[view], lights.linear[view], lights.quadratic[view]
    tangent = torch.nn.functional.normalize(gbuffer.to_camera - lobe.cos_view[:, None] * normal, dim=1)
    bitangent = torch.linalg.cross(normal, tangent)
    nb = torch.einsum("ni,nic->nc", normal, linear)
    tb = torch.einsum("ni,nic->nc", tangent, linear)
    c_n = torch.einsum("nijc,nj->nic", quadratic, normal)
    c_t = torch.einsum("nijc,nj->nic", quadratic, tangent)
    c_b = torch.einsum("nijc,nj->nic", quadratic, bitangent)
    nn = torch.einsum("ni,nic->nc", normal, c_n)
    nt = torch.einsum("ni,nic->nc", normal, c_t)
    tt = torch.einsum("ni,nic->nc", tangent, c_t)
    bb = torch.einsum("ni,nic->nc", bitangent, c_b)

    def integral(weight: int) -> Tensor:
        q = lobe.moments[:, 6 * weight : 6 * weight + 6].unsqueeze(-1)
        return (
            q[:, 0] * constant
            + q[:, 1] * nb
            + q[:, 2] * tb
            + q[:, 3] * nn
            + q[:, 4] * tt
            + (q[:, 0] - q[:, 3] - q[:, 4]) * bb
            + 2 * q[:, 5] * nt
        )

    plain, schlick, real = integral(0), integral(1), integral(2)
    color = maps.base_color.clamp(max=1.0)
    metal = (color * (plain - schlick) + schlick) * lobe.multiscatter_metal
    dielectric = (F0_DIELECTRIC * (plain - real) + real) * lobe.multiscatter_dielectric[:, None]
    metallic = maps.metallic[:, None]
    trace = torch.einsum("niic->nc", quadratic)
    irradiance_over_pi = constant + 2 / 3 * nb + trace / 4 + nn / 4
    diffuse = maps.base_color * lobe.diffuse_weight[:, None] * irradiance_over_pi
    return metallic * metal + (1 - metallic) * dielectric + diffuse


def _suns(lobe: _Lobe, normal: Tensor, gbuffer: GBuffer, maps: SurfaceMaps, lights: Lights) -> Tensor:
    alpha = lobe.roughness**2
    metallic = maps.metallic[:, None]
    color = maps.base_color.clamp(max=1.0)
    total = torch.zeros_like(gbuffer.position)
    for sun in range(lights.sun_direction.shape[1]):
        irradiance = lights.sun_irradiance[gbuffer.view, sun]
        towards = lights.sun_direction[gbuffer.view, sun]
        cos_light = (normal * towards).sum(1)
        # Light from behind the flat triangle never arrives.
        lit = (cos_light > 0) & ((gbuffer.geometric_normal * towards).sum(1) > 0)
        cos_light = cos_light.clamp(min=1e-4)
        half = torch.nn.functional.normalize(gbuffer.to_camera + towards, dim=1)
        n_h = (normal * half).sum(1).clamp(0, 1)
        v_h = (gbuffer.to_camera * half).sum(1).clamp(1e-4, 1)
        specular = _ggx(n_h, alpha) * _smith(lobe.cos_view, cos_light, alpha) / (4 * lobe.cos_view)
        schlick = (1 - v_h) ** 5
        metal = (color + (1 - color) * schlick[:, None]) * lobe.multiscatter_metal
        dielectric = (dielectric_fresnel(v_h) * lobe.multiscatter_dielectric)[:, None]
        reflected = (metallic * metal + (1 - metallic) * dielectric) * specular[:, None]
        diffuse = maps.base_color * (lobe.diffuse_weight * cos_light / torch.pi)[:, None]
        total = total + torch.where(lit[:, None], (reflected + diffuse) * irradiance, 0.0)
    return total


def _ggx(n_h: Tensor, alpha: Tensor) -> Tensor:
    cos2 = n_h**2
    return alpha**2 / (torch.pi * ((1 - cos2) + alpha**2 * cos2) ** 2)


def _smith(cos_view: Tensor, cos_light: Tensor, alpha: Tensor) -> Tensor:
    def lam(cosine: Tensor) -> Tensor:
        return 0.5 * (torch.sqrt(1 + alpha**2 * (1 / cosine**2 - 1)) - 1)

    return 1 / (1 + lam(cos_view) + lam(cos_light))


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Display-encode; the result is clipped to 0..1 (Blender's Standard view transform)."""
    linear = linear.clamp(0.0, 1.0)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Decode 0..1 display values."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
