# SPDX-License-Identifier: Apache-2.0
"""The same pictures and gradients by Mitsuba 3 (LLVM), to time ours beside them; Patina itself never uses it.

Needs `pip install mitsuba` and libLLVM. Its principled BSDF is not Cycles', it traces the camera's rays anew (they
are jittered within the pixel) and casts shadows: equal pictures are not compared, equal tasks are.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .. import lighting
from ..cameras import Cameras
from ..lighting import Lights
from ..mesh import Mesh

ENVIRONMENT = (64, 128)  # pixels of the second-order world: smooth, so few are enough
WITHIN = 0.02  # mean relative difference to the reference that counts as converged
SAMPLES = (1, 4, 16, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 1024, 2048)
REFERENCE_SAMPLES, AT_ONCE = 4096, 64  # in parts: all at once would need gigabytes
REFERENCE_SIZE = 48  # pixels: noise by samples a pixel is the same in small, and the reference takes seconds
PLAIN = {"base_color": (0.5, 0.5, 0.5), "metallic": (0.5,), "roughness": (0.4,), "normal": (0.5, 0.5, 1.0)}


class Bench:
    """One mesh with four maps of `texture` texels under one light, seen by all `cameras` in `size` pixels."""

    def __init__(self, mesh: Mesh, cameras: Cameras, lights: Lights, size: int, texture: int) -> None:
        """Raises ImportError where Mitsuba or the LLVM library that it needs is missing."""
        import mitsuba

        if "llvm_ad_rgb" not in mitsuba.variants():
            raise ImportError("this Mitsuba has no variant llvm_ad_rgb")
        mitsuba.set_variant("llvm_ad_rgb")
        self.mitsuba = mitsuba

        def bitmap(name: str) -> dict:
            values = np.broadcast_to(np.float32(PLAIN[name]), (texture, texture, len(PLAIN[name])))
            picture = mitsuba.Bitmap(np.ascontiguousarray(values))
            return {"type": "bitmap", "bitmap": picture, "raw": True, "wrap_mode": "clamp"}

        material = {
            "type": "normalmap", "normalmap": bitmap("normal"),
            "bsdf": {"type": "principled", "base_color": bitmap("base_color"), "metallic": bitmap("metallic"),
                     "roughness": bitmap("roughness"), "specular": 0.5},
        }  # fmt: skip
        try:
            made = self._mesh(mesh, material)
        except RuntimeError as error:
            if "LLVM" in str(error):
                raise ImportError(f"Mitsuba finds no libLLVM: {error}") from error
            raise
        scene = {
            "type": "scene", "integrator": {"type": "direct", "hide_emitters": True}, "mesh": made,
            "world": {"type": "envmap", "bitmap": mitsuba.Bitmap(_panorama(lights)), "scale": 1.0},
        }  # fmt: skip
        for sun in range(lights.sun_direction.shape[1]):
            power = lights.sun_irradiance[0, sun].tolist()
            if max(power) > 0:
                scene[f"sun{sun}"] = {
                    "type": "directional", "direction": (-lights.sun_direction[0, sun]).tolist(),
                    "irradiance": {"type": "rgb", "value": power},
                }  # fmt: skip
        self.scene = mitsuba.load_dict(scene)
        self.sensors = [mitsuba.load_dict(self._sensor(cameras, view, size)) for view in range(len(cameras))]
        self.small = mitsuba.load_dict(self._sensor(cameras, 0, min(size, REFERENCE_SIZE)))

    def samples_needed(self) -> tuple[int, dict[int, float]]:
        """The least of SAMPLES at which the first picture is within WITHIN of its reference, and all differences."""
        reference = self._picture(REFERENCE_SAMPLES, seed=1000)
        covered = reference.sum(-1) > 1e-4
        floor = 0.02 * reference[covered].mean()
        differences = {}
        for samples in SAMPLES:
            off = np.abs(self._picture(samples, seed=1) - reference)[covered] / (reference[covered] + floor)
            differences[samples] = round(float(off.mean()), 4)
            if off.mean() <= WITHIN:
                break
        return samples, differences

    def pass_through(self, samples: int) -> None:
        """Forward and backward of all views with respect to all texels of the four maps."""
        import drjit

        parameters = self.mitsuba.traverse(self.scene)
        keys = [key for key in parameters.keys() if key.endswith(".data") and "mesh" in key]  # noqa: SIM118
        if len(keys) != len(PLAIN):
            raise RuntimeError(f"This Mitsuba names its maps otherwise: {keys}.")
        for key in keys:
            drjit.enable_grad(parameters[key])
        parameters.update()
        parts = max(1, samples // AT_ONCE)
        for view, sensor in enumerate(self.sensors):
            for part in range(parts):
                picture = self.mitsuba.render(
                    self.scene, parameters, sensor=sensor, spp=samples // parts, seed=view * parts + part
                )
                drjit.backward(drjit.mean(picture, axis=None) / parts)
        drjit.eval([drjit.grad(parameters[key]) for key in keys])
        drjit.sync_thread()

    def _picture(self, samples: int, seed: int) -> np.ndarray:
        """(H, W, 3) of the first camera, small."""
        import drjit

        parts = max(1, samples // AT_ONCE)
        total = 0.0
        for part in range(parts):
            made = self.mitsuba.render(self.scene, sensor=self.small, spp=samples // parts, seed=seed + part)
            total = total + np.array(made)[..., :3]
            drjit.flush_malloc_cache()
        return total / parts

    def _sensor(self, cameras: Cameras, view: int, size: int) -> dict:
        _, up, backward = cameras.rotation[view].tolist()
        origin = cameras.position[view].tolist()
        target = [o - b for o, b in zip(origin, backward, strict=True)]
        return {
            "type": "perspective", "fov": 2 * math.degrees(math.atan(float(cameras.tan_half_fov[view]))),
            "to_world": self.mitsuba.ScalarTransform4f().look_at(origin=origin, target=target, up=up),
            "film": {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb",
                     "rfilter": {"type": "box"}},
            "sampler": {"type": "independent"},
        }  # fmt: skip

    def _mesh(self, mesh: Mesh, material: dict) -> object:
        mitsuba = self.mitsuba
        properties = mitsuba.Properties()
        properties["bsdf"] = mitsuba.load_dict(material)
        count = 3 * mesh.triangles
        made = mitsuba.Mesh(
            "mesh", count, mesh.triangles, properties, has_vertex_normals=True, has_vertex_texcoords=True
        )
        parameters = mitsuba.traverse(made)
        uv = mesh.uvs.reshape(-1, 2)
        for name, values in (
            ("vertex_positions", mesh.positions), ("vertex_normals", mesh.normals),
            ("vertex_texcoords", np.stack((uv[:, 0], 1 - uv[:, 1]), axis=1)), ("faces", np.arange(count)),
        ):  # fmt: skip
            kind, plain = (mitsuba.UInt32, np.uint32) if name == "faces" else (mitsuba.Float, np.float32)
            parameters[name] = kind(np.ascontiguousarray(values).ravel().astype(plain))
        parameters.update()
        return made


def _panorama(lights: Lights) -> np.ndarray:
    """The second-order world of the first picture as Mitsuba's equirectangular image, in its axes (up is y): turned
    against the suns, which changes nothing about the work."""
    rows, columns = ENVIRONMENT
    polar = math.pi * (torch.arange(rows) + 0.5) / rows
    around = 2 * math.pi * (torch.arange(columns) + 0.5) / columns
    polar, around = torch.meshgrid(polar, around, indexing="ij")
    towards = torch.stack((polar.sin() * around.sin(), polar.cos(), -polar.sin() * around.cos()), dim=-1).view(-1, 3)
    radiance = lighting.radiance(lights, torch.zeros(len(towards), dtype=torch.long), towards)
    return radiance.clamp(min=0).view(rows, columns, 3).numpy().astype(np.float32)
