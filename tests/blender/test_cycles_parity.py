# SPDX-License-Identifier: GPL-3.0-or-later
"""What the optimiser's shading sees is what Cycles renders: a smooth sphere under suns and worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

bpy = pytest.importorskip("bpy")
from mathutils import Matrix, Vector  # noqa: E402

from backend import cameras, ggx_tables, lighting  # noqa: E402
from backend.rasterize import Triangles, gather, look  # noqa: E402
from backend.shading import SurfaceMaps, shade  # noqa: E402

SIZE = 64
BASE = (0.8, 0.35, 0.2)
CASES = [(m, r) for m in (0.0, 0.5, 1.0) for r in (0.15, 0.5, 0.9)]


@pytest.fixture()
def scene(tmp_path):
    """A smooth UV sphere of radius 1 in front of a camera at azimuth 30, elevation 20, set up as an oracle."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    scene = bpy.context.scene
    bpy.ops.mesh.primitive_uv_sphere_add(segments=128, ring_count=64, radius=1.0)
    sphere = bpy.context.object
    sphere.data.shade_smooth()
    material = bpy.data.materials.new("test")
    material.use_nodes = True
    sphere.data.materials.append(material)
    view = cameras.look_at(torch.tensor([30.0]), torch.tensor([20.0]), torch.tensor([4.0]), torch.tensor([0.3]))
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.sensor_width = camera.data.sensor_height = 2 * 0.3 * 50
    camera.data.lens = 50
    matrix = np.eye(4)
    matrix[:3, :3] = view.rotation[0].numpy().T
    matrix[:3, 3] = view.position[0].numpy()
    camera.matrix_world = Matrix(matrix.tolist())
    scene.collection.objects.link(camera)
    scene.camera = camera
    scene.world = bpy.data.worlds.new("world")
    scene.world.use_nodes = True
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = SIZE
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_depth = "32"
    scene.render.image_settings.color_mode = "RGBA"
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    cycles = scene.cycles
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.sample_clamp_indirect = cycles.sample_clamp_direct = 0
    cycles.light_sampling_threshold = cycles.blur_glossy = 0
    cycles.pixel_filter_type, cycles.max_bounces = "BOX", 0
    scene.render.filepath = str(tmp_path / "render.exr")
    return scene, sphere, view


def render(scene, samples: int) -> np.ndarray:
    """(SIZE, SIZE, 4) linear, row 0 at the top."""
    scene.cycles.samples = samples
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(scene.render.filepath, check_existing=False)
    pixels = np.array(image.pixels[:], dtype=np.float32).reshape(SIZE, SIZE, 4)[::-1]
    bpy.data.images.remove(image)
    return pixels


def set_world(scene, lights: lighting.Lights, tmp_path) -> None:
    """The lights' environment as an equirectangular image."""
    height, width = 128, 256
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    azimuth, polar = (0.5 - u) * 2 * np.pi, (1 - v) * np.pi
    direction = np.stack((np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)), -1)
    flat = torch.from_numpy(direction.reshape(-1, 3)).float()
    values = lighting.radiance(lights, torch.zeros(len(flat), dtype=torch.long), flat).numpy()
    pixels = np.concatenate((values, np.ones((len(values), 1))), axis=1).astype(np.float32)
    image = bpy.data.images.new("world", width, height, float_buffer=True)
    image.colorspace_settings.name = "Non-Color"
    image.pixels.foreach_set(pixels.ravel())
    tree = scene.world.node_tree
    node = tree.nodes.new("ShaderNodeTexEnvironment")
    node.image = image
    tree.links.new(node.outputs["Color"], tree.nodes["Background"].inputs["Color"])


def add_sun(scene, direction, irradiance) -> None:
    lamp = bpy.data.lights.new("sun", "SUN")
    lamp.energy, lamp.angle = 1.0, 0.0
    lamp.energy = max(irradiance)
    lamp.color = [c / max(irradiance) for c in irradiance]
    sun = bpy.data.objects.new("sun", lamp)
    sun.rotation_euler = Vector(direction).to_track_quat("Z", "Y").to_euler()
    scene.collection.objects.link(sun)


def ours(sphere, view, lights: lighting.Lights, metallic: float, roughness: float):
    mesh = sphere.data
    mesh.calc_loop_triangles()
    loops = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("loops", loops)
    vertices = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", vertices)
    positions = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", positions)
    normals = np.empty(len(mesh.loops) * 3, np.float32)
    mesh.corner_normals.foreach_get("vector", normals)
    corner = torch.from_numpy(positions.reshape(-1, 3)[vertices].reshape(-1, 3, 3))
    normal = torch.from_numpy(normals.reshape(-1, 3)[loops].reshape(-1, 3, 3))
    count = len(corner)
    triangles = Triangles(corner, normal, torch.zeros(count, 3, 4), torch.zeros(count, 3, 2))
    visible = look(triangles, view, 0, SIZE)
    points = gather(triangles, view, [visible])
    n = points.position.shape[0]
    maps = SurfaceMaps(torch.tensor(BASE).expand(n, 3), torch.full((n,), metallic), torch.full((n,), roughness))
    radiance = shade(points, maps, lights, ggx_tables.load())
    picture = points.picture(radiance, torch.zeros(1, SIZE, SIZE, 3))[0].numpy()
    # Interior: the whole neighbourhood is covered, and the rim's steep shading is left out.
    covered = visible.coverage.numpy() >= 1
    inside = covered.copy()
    for shift in (-2, -1, 1, 2):
        inside &= np.roll(covered, shift, 0) & np.roll(covered, shift, 1)
    return picture, inside


@pytest.mark.parametrize("kind", ["sun", "constant", "second order"])
def test_smooth_sphere_agrees_with_cycles(scene, kind, tmp_path):
    scene, sphere, view = scene
    generator = torch.Generator().manual_seed(3)
    dark = lighting.uniform(1, radiance=0.0)
    if kind == "sun":
        towards = cameras.direction(torch.tensor([70.0]), torch.tensor([40.0]))
        lights = lighting.Lights(
            dark.constant, dark.linear, dark.quadratic, towards[None], torch.tensor([[[3.0, 2.7, 2.4]]])
        )
        add_sun(scene, towards[0].tolist(), (3.0, 2.7, 2.4))
        scene.world.node_tree.nodes["Background"].inputs["Strength"].default_value = 0.0
        samples = 16
    elif kind == "constant":
        lights, samples = lighting.uniform(1), 96
        set_world(scene, lights, tmp_path)
    else:
        drawn = lighting.sample(1, generator)
        lights = lighting.Lights(
            drawn.constant, drawn.linear, drawn.quadratic, drawn.sun_direction, torch.zeros_like(drawn.sun_irradiance)
        )
        set_world(scene, lights, tmp_path)
        samples = 96
    principled = sphere.data.materials[0].node_tree.nodes["Principled BSDF"]
    principled.inputs["Base Color"].default_value = (*BASE, 1.0)
    errors = {}
    for metallic, roughness in CASES:
        principled.inputs["Metallic"].default_value = metallic
        principled.inputs["Roughness"].default_value = roughness
        reference = render(scene, samples)[..., :3]
        picture, inside = ours(sphere, view, lights, metallic, roughness)
        floor = 0.02 * reference[inside].mean()
        # Cycles' noise averages out over the picture: compare smoothed neighbourhoods.
        difference = np.abs(_smooth(picture) - _smooth(reference))[inside]
        errors[metallic, roughness] = float((difference / (_smooth(reference)[inside] + floor)).mean())
    assert max(errors.values()) < 0.01, {k: f"{100 * v:.2f} %" for k, v in errors.items()}
    assert math.isfinite(sum(errors.values()))


def _smooth(picture: np.ndarray) -> np.ndarray:
    """3x3 box mean."""
    return sum(np.roll(picture, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
