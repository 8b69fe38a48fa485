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

from . import bump
from .ggx_tables import F0_DIELECTRIC, IOR, GgxTables, dielectric_fresnel, lookup
from .lighting import Lights
from .occlusion import Openness, diffuse_share, glossy_share
from .rasterize import GBuffer

ROUGHNESS_MIN = 0.05  # below, a sun's highlight falls between pixels
FSS_DIELECTRIC = (IOR - 1) / (4.08567 + 1.00071 * IOR)  # cosine-averaged Fresnel, Cycles' fit
MANY_PICTURES = 32  # from which on a product with the matrices of all costs more than one a point


@dataclass(frozen=True)
class SurfaceMaps:
    """Material at N points: base_color (N, 3) linear, metallic (N,), roughness (N,), normal (N, 3)
    unit tangent-space (OpenGL +Y) or None for the smooth normal."""

    base_color: Tensor
    metallic: Tensor
    roughness: Tensor
    normal: Tensor | None = None


def shade(
    gbuffer: GBuffer,
    maps: SurfaceMaps,
    lights: Lights,
    tables: GgxTables,
    occlusion: Tensor | None = None,
    openness: Openness | None = None,
) -> Tensor:
    """Linear radiance (N, 3) towards the camera. `occlusion` (N,) in 0..1 scales the world's light;
    `openness` says which directions and suns the mesh hides from each point."""
    lobe = _lobe(gbuffer, maps, tables)
    world = _world(lobe, gbuffer, maps, lights, openness)
    if occlusion is not None:
        world = world * occlusion[:, None]
    return world + _suns(lobe, gbuffer, maps, lights, openness)


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

    smooth: Tensor  # (N, 3) without the normal map
    normal: Tensor  # (N, 3) with it
    specular_normal: Tensor  # (N, 3) bent where its mirror direction is below the surface
    cos_view: Tensor  # (N,) of the specular normal
    moments: Tensor  # (N, 18)
    kept: Tensor | None  # (N, 3) share of the lobe above the surface by Fresnel weight; None where all is
    diffuse_moments: Tensor | None  # (N, 6) of a mapped Lambert surface; None without a map
    multiscatter_metal: Tensor  # (N, 3) 1 + Fms (1 - E) / E
    multiscatter_dielectric: Tensor  # (N,)
    diffuse_weight: Tensor  # (N,)
    roughness: Tensor  # (N,)


def _lobe(gbuffer: GBuffer, maps: SurfaceMaps, tables: GgxTables) -> _Lobe:
    smooth = shading_normal(gbuffer, None)
    normal = specular = smooth
    kept = diffuse_moments = None
    # The gradient passes the floor: a map that fell below it must be able to come back.
    roughness = maps.roughness + (maps.roughness.clamp(ROUGHNESS_MIN, 1.0) - maps.roughness).detach()
    if maps.normal is not None:
        normal = shading_normal(gbuffer, maps.normal)
        specular = bump.specular_normal(normal, gbuffer.geometric_normal, gbuffer.to_camera)
        diffuse_moments = bump.diffuse_moments(tables.bump_diffuse, (smooth * normal).sum(1))
    cos_view = (specular * gbuffer.to_camera).sum(1).clamp(min=1e-3)
    if maps.normal is not None:
        towards, across = _sideways(gbuffer.to_camera, specular, cos_view)
        surface = torch.stack([(gbuffer.geometric_normal * axis).sum(1) for axis in (towards, across, specular)], dim=1)
        kept = 1 - bump.lost_share(tables.bump_lost, roughness, cos_view, surface)
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
    return _Lobe(
        smooth, normal, specular, cos_view, moments, kept, diffuse_moments, metal, dielectric,
        (1 - maps.metallic) * (1 - coating), roughness,
    )  # fmt: skip


def _sideways(towards: Tensor, normal: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """`towards` without its part along `normal`, unit, and the direction across both, (N, 3) each.

    Where `towards` is the normal itself any direction will do, but one there must be.
    """
    part = towards - cosine[:, None] * normal
    length = part.norm(dim=1, keepdim=True)
    axis = torch.nn.functional.one_hot(normal.detach().abs().argmin(1), 3).to(normal)
    other = torch.nn.functional.normalize(torch.linalg.cross(normal, axis), dim=1)
    # Below a thousandth the direction is rounding, and its gradient would be huge.
    tangent = torch.where(length > 1e-3, part / length.clamp(min=1e-3), other)
    return tangent, torch.linalg.cross(normal, tangent)


def _world(lobe: _Lobe, gbuffer: GBuffer, maps: SurfaceMaps, lights: Lights, openness: Openness | None) -> Tensor:
    view, normal = gbuffer.view, lobe.specular_normal
    world = _coefficients(lights)
    tangent, _ = _sideways(gbuffer.to_camera, normal, lobe.cos_view)
    products, q = _products(normal, tangent), lobe.moments
    plain, schlick, real = (
        _by_picture(_turned(q[:, first : first + 6], normal, tangent, products), world, view) for first in (0, 6, 12)
    )
    if lights.residuals is not None:
        mean = (q[:, 1:2] * normal + q[:, 2:3] * tangent) / q[:, :1]
        rest = lights.residuals.glossy(view, mean, normal, gbuffer.to_camera, lobe.roughness)
        plain, schlick, real = (
            i + q[:, first : first + 1] * rest for i, first in ((plain, 0), (schlick, 6), (real, 12))
        )
    if lobe.kept is not None:
        plain, schlick, real = (i * lobe.kept[:, k : k + 1] for k, i in enumerate((plain, schlick, real)))
    color = maps.base_color.clamp(max=1.0)
    metal = (color * (plain - schlick) + schlick) * lobe.multiscatter_metal
    dielectric = (F0_DIELECTRIC * (plain - real) + real) * lobe.multiscatter_dielectric[:, None]
    metallic = maps.metallic[:, None]
    reflected = metallic * metal + (1 - metallic) * dielectric
    irradiance = _irradiance(lobe, view, world, lights)
    if openness is not None:
        reflected = reflected * glossy_share(openness, gbuffer, normal, lobe.roughness, lights)
        irradiance = irradiance * diffuse_share(openness, gbuffer, lobe.normal, lights)
    return reflected + maps.base_color * lobe.diffuse_weight[:, None] * irradiance


def _irradiance(lobe: _Lobe, view: Tensor, world: Tensor, lights: Lights) -> Tensor:
    """Of the world, by pi (N, 3), on the mapped normal, without what comes from below the surface."""
    normal, moments = lobe.normal, lobe.diffuse_moments
    if moments is None:
        # Of the cosine lobe by pi: 1, 2/3 n, and (1 + n n) / 4 of the squares.
        moments = normal.new_tensor([1.0, 2 / 3, 0.0, 0.5, 0.25, 0.0]).expand(len(normal), 6)
        share, tangent = 1.0, torch.zeros_like(normal)
    else:
        tangent, _ = _sideways(lobe.smooth, normal, (lobe.smooth * normal).sum(1))
        share = moments[:, :1]
    total = _by_picture(_turned(moments, normal, tangent, _products(normal, tangent)), world, view)
    if lights.residuals is not None:
        total = total + share * lights.residuals.diffuse(view, normal)
    return total


def _coefficients(lights: Lights) -> Tensor:
    """(B, 10, 3 rgb) of the worlds' 1, x, y, z, xx, yy, zz, xy, yz, zx."""
    squares, turned = lights.quadratic.diagonal(dim1=1, dim2=2).mT, lights.quadratic.transpose(1, 2)
    both = lights.quadratic + turned
    mixed = torch.stack((both[:, 0, 1], both[:, 1, 2], both[:, 2, 0]), dim=1)
    return torch.cat((lights.constant[:, None], lights.linear, squares, mixed), dim=1)


def _products(n: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nn, tt and nt + tn of (N, 3) directions: (N, 6) each, xx, yy, zz, xy, yz, zx."""
    n_next, t_next = torch.roll(n, -1, 1), torch.roll(t, -1, 1)
    return (
        torch.cat((n * n, n * n_next), dim=1),
        torch.cat((t * t, t * t_next), dim=1),
        torch.cat((2 * n * t, n * t_next + n_next * t), dim=1),
    )


def _turned(q: Tensor, n: Tensor, t: Tensor, products: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A lobe's integrals (N, 10) over 1, x, y, z, xx, yy, zz, xy, yz, zx, of those in its own frame n, t, b (N, 6):
    1, n, t, nn, tt, nt; bb is what is left of 1, and nb and tb are 0."""
    nn, tt, nt = products
    bb = q[:, :1] - q[:, 3:4] - q[:, 4:5]
    second = (q[:, 3:4] - bb) * nn + (q[:, 4:5] - bb) * tt + q[:, 5:6] * nt
    return torch.cat((q[:, :1], q[:, 1:2] * n + q[:, 2:3] * t, second[:, :3] + bb, second[:, 3:]), dim=1)


def _by_picture(rows: Tensor, matrices: Tensor, view: Tensor) -> Tensor:
    """(N, C): rows (N, K) times the matrix (B, K, C) of their picture `view` (N,)."""
    pictures, inner, outer = matrices.shape
    if pictures > MANY_PICTURES:
        return (rows.unsqueeze(-1) * matrices[view]).sum(1)
    # All matrices at once and then the right one: one product of whole matrices, none of small ones a point.
    every = rows @ matrices.transpose(0, 1).reshape(inner, pictures * outer)
    return every.view(len(rows), pictures, outer).gather(1, view.view(-1, 1, 1).expand(-1, 1, outer)).squeeze(1)


def _suns(lobe: _Lobe, gbuffer: GBuffer, maps: SurfaceMaps, lights: Lights, openness: Openness | None) -> Tensor:
    """All suns at once: of each only its cosines are needed, (N, S)."""
    view, to_camera = gbuffer.view, gbuffer.to_camera
    towards = lights.sun_direction.transpose(1, 2)
    # The smooth surface decides, not the flat triangle: what that one blocks is a shadow (occlusion.py).
    cos_smooth, cos_glossy, cos_diffuse, v_l = (
        _by_picture(direction, towards, view)
        for direction in (lobe.smooth, lobe.specular_normal, lobe.normal, to_camera)
    )
    # With the half vector h = (v + l) / |v + l|, where |v + l|^2 = 2 + 2 v.l
    length = torch.sqrt((2 + 2 * v_l).clamp(min=1e-8))
    n_v = (lobe.specular_normal * to_camera).sum(1, keepdim=True)
    n_h, v_h = ((n_v + cos_glossy) / length).clamp(0, 1), (length / 2).clamp(1e-4, 1)
    alpha = (lobe.roughness**2)[:, None]
    if lights.sun_spread is not None:
        alpha = _widened(alpha, n_h, lights.sun_spread[view])
    cos_view = lobe.cos_view[:, None]
    glossy = _ggx(n_h, alpha) * _smith(cos_view, cos_glossy.clamp(min=1e-4), alpha) / (4 * cos_view)
    shown = cos_smooth > 0
    glossy = torch.where(shown & (cos_glossy > 0), glossy, 0.0)
    diffuse = torch.where(shown, cos_diffuse.clamp(min=0), 0.0)
    if maps.normal is not None:
        diffuse = diffuse * bump.softened(cos_smooth, (lobe.smooth * lobe.normal).sum(1, keepdim=True))
    if openness is not None and openness.suns is not None:
        glossy, diffuse = glossy * openness.suns, diffuse * openness.suns
    plain, schlick, real, diffuse = (
        _by_picture(weight, lights.sun_irradiance, view)
        for weight in (glossy, glossy * (1 - v_h) ** 5, glossy * dielectric_fresnel(v_h), diffuse)
    )
    metallic, color = maps.metallic[:, None], maps.base_color.clamp(max=1.0)
    metal = (color * (plain - schlick) + schlick) * lobe.multiscatter_metal
    dielectric = real * lobe.multiscatter_dielectric[:, None]
    diffuse = maps.base_color * (lobe.diffuse_weight / torch.pi)[:, None] * diffuse
    return metallic * metal + (1 - metallic) * dielectric + diffuse


def _widened(alpha: Tensor, n_h: Tensor, spread: Tensor) -> Tensor:
    """The alpha whose GGX shows a sun of `spread` (N,) radians as a point's would look blurred by it, at n_h (N,).

    To first order in spread^2 where the highlight is brightest and far out on its flanks, which a blur leaves alone;
    within 3 % on average as long as the spread is below alpha (measured against discs).
    """
    alpha2, spread2 = alpha**2, spread**2
    tan2 = 1 / n_h.clamp(min=1e-3) ** 2 - 1
    return torch.sqrt(alpha2 + 0.5 * spread2 / (1 + tan2 / (2 * alpha2 + 0.5 * spread2)))


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
