# SPDX-License-Identifier: GPL-3.0-or-later
"""Cycles' side of `evaluate parity`: meshes, lights, materials and the pictures Cycles makes of them, as files.

    python tests/blender/parity_renders.py OUT [--table full|small|test|fingerprint] [--size 64] [--samples 512]
                                               [--minutes 60]
    blender -b --factory-startup --python tests/blender/parity_renders.py -- OUT --table fingerprint

Writes one EXR a picture and facts.json, which says all that the comparison (backend/evaluate/parity.py) has to know.
Pictures that are there already are kept, so that a broken-off run goes on where it was; --minutes breaks it off.
Knows bpy and numpy; no torch, no backend.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from addon import mesh_io, protocol  # noqa: E402
from tests.blender import parity_objects  # noqa: E402

BASE = (0.8, 0.35, 0.2)
PAIRS = [(m, r) for m in (0.0, 0.5, 1.0) for r in (0.15, 0.5, 0.9)]
SMALL_PAIRS = [(0.0, 0.5), (1.0, 0.15), (1.0, 0.9)]
SUN_SAMPLES = 256
SMOOTH_WORLD_SAMPLES = 2  # times the samples: they need no rays towards the light
STUDIO = ("city", "studio", "sunset")  # panoramas that come with Blender


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("parity_renders.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", choices=("full", "small", "test", "fingerprint"), default="full")
    parser.add_argument("--size", type=int, default=64, help="pixels across under worlds; twice that under suns")
    parser.add_argument(
        "--samples", type=int, default=512,
        help=f"a pixel under panoramas; under smooth worlds times {SMOOTH_WORLD_SAMPLES}, under suns {SUN_SAMPLES}",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no picture after that long")
    options = parser.parse_args(arguments)
    if options.samples < 1 or options.samples & (options.samples - 1):
        # Cycles' sequence is even only when it is used whole: 320 samples were four times as noisy as 768.
        parser.error("--samples must be a power of two.")
    options.out.mkdir(parents=True, exist_ok=True)
    scene = oracle_scene()
    lights = make_lights(options.out, options.table)
    shapes = {"fingerprint": ("sphere",), "test": ("textured", "hard")}.get(options.table, parity_objects.SHAPES)
    objects = {name: parity_objects.make(name, options.out) for name in shapes}
    facts = {
        "blender": bpy.app.version_string,
        "camera": add_camera(scene),
        "lights": lights,
        "meshes": {name: f"{name}.npz" for name in objects},
        "renders": sorted(table(options.table, objects, lights, options), key=comes_late),
    }
    for name, obj in objects.items():
        save_mesh(obj, options.out / f"{name}.npz")
    protocol.write_beside(options.out / "facts.json", json.dumps(facts, indent=1).encode())
    end = time.monotonic() + 60 * options.minutes
    for number, job in enumerate(facts["renders"]):
        file = options.out / job["file"]
        if not file.exists():
            if time.monotonic() > end:
                print(f"The time is up: {number} of {len(facts['renders'])} pictures are there.", flush=True)
                return
            set_up(scene, objects, lights, job, options.out)
            render(scene, file, job)
        print(f"{number + 1}/{len(facts['renders'])} {job['file']}", flush=True)


def table(kind: str, objects: dict, lights: dict, options: argparse.Namespace):
    """The renders of a table: dicts of file, mesh, light, occluded, samples, size and material."""

    def job(mesh: str, light: str, material: dict, occluded: bool = False) -> dict:
        plain = isinstance(material["metallic"], float)
        ending = f"m{material['metallic']}-r{material['roughness']}" if plain else "textures"
        # Suns leave no noise but that of edges, which more pixels make rarer.
        many, size = SUN_SAMPLES, 2 * options.size
        if "world" in lights[light]:
            many, size = options.samples * (SMOOTH_WORLD_SAMPLES if smooth(lights[light]) else 1), options.size
        # With all that a person may change, so that no other run's picture is taken for it.
        file = f"{mesh}-{light}{'-occluded' if occluded else ''}-{ending}-{size}px-{many}.exr"
        return {
            "file": file, "mesh": mesh, "light": light, "occluded": occluded, "samples": many, "size": size,
            "material": material,
        }  # fmt: skip

    textures = {name: f"{name}.png" for name in ("base_color", "metallic", "roughness", "normal")}
    if kind == "test":
        lacquer = {"base_color": BASE, "metallic": 0.5, "roughness": 0.5}
        for light in ("sun", "second_order", "hdr_hard"):
            yield job("textured", light, textures)
            yield job("hard", light, lacquer)
        yield job("hard", "sun", lacquer, occluded=True)
        return
    pairs = PAIRS if kind != "small" else SMALL_PAIRS
    flat = [name for name in objects if name != "textured"]
    for light in lights:
        for mesh in lights[light].get("meshes", objects):
            for metallic, roughness in pairs:
                material = {"base_color": BASE, "metallic": metallic, "roughness": roughness}
                if mesh == "textured":  # the nine pairs under a normal map
                    material |= {"base_color": "base_color.png", "normal": "normal.png"}
                yield job(mesh, light, material)
    if kind == "fingerprint":
        return
    for light in lights:  # end to end
        yield job("textured", light, textures)
    for mesh in flat:
        if mesh == "sphere":
            continue
        for light in ("sun", "second_order"):
            for metallic, roughness in pairs:
                material = {"base_color": BASE, "metallic": metallic, "roughness": roughness}
                yield job(mesh, light, material, occluded=True)


def comes_late(job: dict) -> bool:
    """Most telling pictures first, so that a run that is broken off has some of every kind."""
    material = job["material"]
    return isinstance(material["metallic"], float) and (material["metallic"], material["roughness"]) not in SMALL_PAIRS


# --- lights ---------------------------------------------------------------------------------------


def make_lights(folder: Path, kind: str) -> dict:
    """Name -> {"suns": [{"direction", "irradiance"}], "world": panorama file or polynomial}."""
    rng = np.random.default_rng(5)
    sun = {"direction": towards(70, 40), "irradiance": [3.0, 2.7, 2.4]}
    low = {"direction": towards(-40, 12), "irradiance": [0.6, 0.9, 1.4]}
    lights = {
        "sun": {"suns": [sun]},
        "white": {"world": {"constant": [1.0] * 3, "linear": np.zeros((3, 3)).tolist(),
                            "quadratic": np.zeros((3, 3, 3)).tolist()}},
        "second_order": {"world": second_order(rng)},
    }  # fmt: skip
    if kind == "fingerprint":
        return {"mixed": {"suns": [sun], "world": lights["second_order"]["world"]}}
    # One at a time: Cycles picks one lamp a sample, so that two would leave noise.
    lights = {"low_sun": {"suns": [low]}} | lights
    for name, hard in (("hdr_soft", 0.0), ("hdr_hard", 60.0)):
        write_exr(folder / f"{name}.exr", panorama(hard))
        lights[name] = {"world": f"{name}.exr"} | ({} if hard else {"meshes": ["sphere"]})
    if kind == "full":
        for name in STUDIO:
            source = Path(bpy.utils.system_resource("DATAFILES")) / "studiolights" / "world" / f"{name}.exr"
            lights[f"hdr_{name}"] = {"world": str(source)} | ({} if name == "city" else {"meshes": ["sphere"]})
    return lights


def smooth(light: dict) -> bool:
    """Is its world a polynomial, without anything bright and small?"""
    return isinstance(light.get("world"), dict)


def towards(azimuth_deg: float, elevation_deg: float) -> list[float]:
    """Patina's angles (backend/cameras.py) to a unit vector."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    return [math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)]


def second_order(rng: np.random.Generator) -> dict:
    """A polynomial of second order, nowhere negative: lobes c ((1 + k d.w) / 2)^2."""
    constant, linear, quadratic = np.zeros(3), np.zeros((3, 3)), np.zeros((3, 3, 3))
    for _ in range(4):
        kd = unit(rng.normal(size=3)) * rng.uniform(0.5, 1.0)
        tint = rng.uniform(0.2, 1.0, 3) * rng.uniform(0.3, 3.0)
        constant += tint / 4
        linear += np.einsum("i,c->ic", kd, tint) / 2
        quadratic += np.einsum("i,j,c->ijc", kd, kd, tint) / 4
    return {"constant": constant.tolist(), "linear": linear.tolist(), "quadratic": quadratic.tolist()}


def directions(height: int) -> np.ndarray:
    """(height, 2 height, 3) of Blender's panoramas, row 0 at the top."""
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(2 * height) + 0.5) / 2 / height, indexing="ij")
    azimuth, polar = (0.5 - u) * 2 * np.pi, v * np.pi
    return np.stack((np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)), -1)


def panorama(hard: float) -> np.ndarray:
    """(256, 512, 3): sky, ground and three soft lamps; `hard` adds a small lamp that much brighter than the sky."""
    w = directions(256)
    rise = w[..., 2:]
    picture = 0.3 + np.where(rise > 0, [0.25, 0.35, 0.5], [0.12, 0.1, 0.08]) * np.abs(rise) ** 0.5
    lamps = ((40, 30, 4.0, 20), (-120, 50, 2.5, 40), (170, -5, 1.5, 12))
    for azimuth, elevation, strength, sharpness in lamps:
        cosine = w @ np.array(towards(azimuth, elevation))
        picture = picture + strength * np.exp(sharpness * (cosine - 1))[..., None] * [1.0, 0.9, 0.75]
    if hard:
        cosine = w @ np.array(towards(80, 35))
        picture = picture + hard * np.exp(300 * (cosine - 1))[..., None] * [1.0, 0.95, 0.9]
    return picture


def polynomial(world: dict, w: np.ndarray) -> np.ndarray:
    return (
        np.array(world["constant"])
        + w @ np.array(world["linear"])
        + np.einsum("...i,...j,ijc->...c", w, w, np.array(world["quadratic"]))
    )


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


# --- Blender --------------------------------------------------------------------------------------


def oracle_scene() -> bpy.types.Scene:
    """An empty scene in which Cycles takes no short cut."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    scene = bpy.context.scene
    scene.world = bpy.data.worlds.new("world")
    if bpy.app.version < (5, 0):
        scene.world.use_nodes = True
    scene.render.engine = "CYCLES"
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    settings = scene.render.image_settings
    settings.file_format, settings.color_depth, settings.color_mode = "OPEN_EXR", "32", "RGBA"
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.use_persistent_data = False
    cycles = scene.cycles
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.sample_clamp_indirect = cycles.sample_clamp_direct = 0
    cycles.light_sampling_threshold = cycles.blur_glossy = 0
    scene.world.cycles.sample_map_resolution = 512
    cycles.pixel_filter_type, cycles.max_bounces = "BOX", 0
    return scene


def add_camera(scene: bpy.types.Scene) -> dict:
    """Four radii away at azimuth 30, elevation 20."""
    half, position = 0.29, np.array(towards(30, 20)) * 4
    backward = unit(position)
    right = unit(np.cross([0, 0, 1], backward))
    rows = np.stack((right, np.cross(backward, right), backward))
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.lens, camera.data.sensor_width, camera.data.sensor_height = 50, 100 * half, 100 * half
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rows.T, position
    camera.matrix_world = _matrix(matrix)
    scene.collection.objects.link(camera)
    scene.camera = camera
    return {"position": position.tolist(), "rotation": rows.tolist(), "tan_half_fov": half}


def _matrix(values: np.ndarray):
    from mathutils import Matrix

    return Matrix(values.tolist())


def set_up(scene, objects: dict, lights: dict, job: dict, folder: Path) -> None:
    """Show one object with its material under one light."""
    for name, obj in objects.items():
        obj.hide_render = name != job["mesh"]
        obj.visible_diffuse = obj.visible_glossy = obj.visible_shadow = job["occluded"]
    set_material(objects[job["mesh"]], job["material"], folder)
    for obj in [o for o in bpy.data.objects if o.type == "LIGHT"]:
        bpy.data.objects.remove(obj)
    for sun in lights[job["light"]].get("suns", []):
        add_sun(scene, sun)
    world = lights[job["light"]].get("world")
    # A smooth world needs no rays towards its brightest parts: those that the surface chooses are the better ones.
    # Under a normal map Cycles' two ways differ by half a per cent at metals of roughness 0.9, so there it is both, as
    # everyone has it.
    alone = smooth(lights[job["light"]]) and "normal" not in job["material"]
    scene.world.cycles.sampling_method = "NONE" if alone else "MANUAL"
    if smooth(lights[job["light"]]):
        drawn = folder / f"{job['light']}.exr"
        if not drawn.exists():
            write_exr(drawn, polynomial(world, directions(128)))
        world = drawn.name
    set_world(scene, world and str(folder.absolute() / world))


def set_material(obj, wanted: dict, folder: Path) -> None:
    data = bpy.data.materials.get("tested") or bpy.data.materials.new("tested")
    if bpy.app.version < (5, 0):
        data.use_nodes = True
    tree = data.node_tree
    for node in [n for n in tree.nodes if n.type not in ("BSDF_PRINCIPLED", "OUTPUT_MATERIAL")]:
        tree.nodes.remove(node)
    principled = tree.nodes["Principled BSDF"]
    for name, socket in (("base_color", "Base Color"), ("metallic", "Metallic"), ("roughness", "Roughness")):
        if isinstance(wanted[name], str):
            tree.links.new(texture(tree, folder / wanted[name], name).outputs["Color"], principled.inputs[socket])
        else:
            value = wanted[name]
            principled.inputs[socket].default_value = (*value, 1.0) if name == "base_color" else value
    if "normal" in wanted:
        bump = tree.nodes.new("ShaderNodeNormalMap")
        tree.links.new(texture(tree, folder / wanted["normal"], "normal").outputs["Color"], bump.inputs["Color"])
        tree.links.new(bump.outputs["Normal"], principled.inputs["Normal"])
    obj.data.materials.clear()
    obj.data.materials.append(data)


def texture(tree, file: Path, name: str):
    image = bpy.data.images.load(str(file), check_existing=True)
    image.colorspace_settings.name = "sRGB" if name == "base_color" else "Non-Color"
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = image
    return node


def add_sun(scene, sun: dict) -> None:
    from mathutils import Vector

    lamp = bpy.data.lights.new("sun", "SUN")
    lamp.angle, lamp.energy = 0.0, max(sun["irradiance"])
    lamp.color = [c / lamp.energy for c in sun["irradiance"]]
    obj = bpy.data.objects.new("sun", lamp)
    obj.rotation_euler = Vector(sun["direction"]).to_track_quat("Z", "Y").to_euler()
    scene.collection.objects.link(obj)


def set_world(scene, file: str | None) -> None:
    """Light the scene by a panorama, or not at all."""
    tree = scene.world.node_tree
    for node in [n for n in tree.nodes if n.type == "TEX_ENVIRONMENT"]:
        tree.nodes.remove(node)
    background = tree.nodes["Background"]
    background.inputs["Strength"].default_value = 0.0 if file is None else 1.0
    if file is not None:
        node = tree.nodes.new("ShaderNodeTexEnvironment")
        node.image = bpy.data.images.load(file, check_existing=True)
        node.image.colorspace_settings.name = "Linear Rec.709"
        tree.links.new(node.outputs["Color"], background.inputs["Color"])


def new_image(name: str, values: np.ndarray):
    """A float image of (H, W, 3), row 0 at the top."""
    height, width = values.shape[:2]
    image = bpy.data.images.new(name, width, height, float_buffer=True)
    image.colorspace_settings.name = "Non-Color"
    pixels = np.concatenate((values[::-1], np.ones((height, width, 1))), axis=-1).astype(np.float32)
    image.pixels.foreach_set(pixels.ravel())
    return image


def write_exr(file: Path, values: np.ndarray) -> None:
    image = new_image(file.stem, values)
    image.file_format, image.filepath_raw = "OPEN_EXR", str(file)
    image.save()
    bpy.data.images.remove(image)


def render(scene, file: Path, job: dict) -> None:
    scene.cycles.samples = job["samples"]
    scene.render.resolution_x = scene.render.resolution_y = job["size"]
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        scene.render.filepath = str(Path(folder) / "picture.exr")
        bpy.ops.render.render(write_still=True)
        Path(scene.render.filepath).replace(file)


def save_mesh(obj, file: Path) -> None:
    """The object's mesh.npz, exactly as the add-on exports it."""
    with mesh_io.evaluated(bpy.context, obj) as shown:
        mesh_io.write(file, mesh_io.read(obj, shown, shown.uv_layers.active.name, None))


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:])
