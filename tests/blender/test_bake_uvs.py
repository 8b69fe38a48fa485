# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps put into another UV layer: at every surface point they show what they showed; no layer changes, undo returns."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_TORUS = """
import untouched
from addon import bake_uvs, rebake, variants
bpy.ops.mesh.primitive_torus_add(major_segments=24, minor_segments=12)
torus = bpy.context.object
for face in torus.data.polygons: face.use_smooth = True
torus.scale = (1, 1.5, 0.7)
own = np.empty(len(torus.data.loops) * 2, np.float32)
torus.data.uv_layers[0].uv.foreach_get("vector", own)
torus.data.uv_layers.remove(torus.data.uv_layers[0])
torus.patina.prompt = "red"
assert bpy.ops.patina.generate() == {"FINISHED"}
first = variants.current(torus).run
assert [layer.name for layer in torus.data.uv_layers] == ["Patina"]
def add(name, uvs):
    layer = torus.data.uv_layers.new(name=name, do_init=False)
    layer.uv.foreach_set("vector", np.float32(uvs).ravel())
    torus.data.update()
own = own.reshape(-1, 2)
def fails(sentence, **how):
    before = untouched.fingerprint()
    try:
        bpy.ops.patina.bake_to_uvs(**how); raise AssertionError("not refused: " + sentence)
    except RuntimeError as error:
        assert sentence in str(error), error
    assert untouched.difference(before, untouched.fingerprint()) == []
    assert len(torus.patina.variants) == 1 and material.is_on(torus, first)
"""


def test_every_point_of_the_surface_shows_what_it_showed(tmp_path):
    run_scenario(
        tmp_path,
        _TORUS
        + """
assert not bpy.ops.patina.bake_to_uvs.poll()
turn = np.radians(20)
matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
add("Mine", ((own - 0.5) * 0.7) @ matrix.T + 0.5)
with mesh_io.evaluated(bpy.context, torus) as shown:
    old, new = (mesh_io.read(torus, shown, name, None) for name in ("Patina", "Mine"))

def colour(p): return 0.5 + 0.4 * np.sin(p * 2.0 + [0.0, 1.0, 2.0])
def bumpy(p, n):
    lean = n + 0.4 * np.cos(p * 2.5 + [0.0, 2.0, 4.0])
    return lean / np.linalg.norm(lean, axis=1, keepdims=True)
def at(arrays, triangle, weights):
    p = np.einsum("nk,nkc->nc", weights, arrays["positions"][triangle])
    return p, rebake._frame(arrays, triangle, weights)
maps = {name: np.full((512, 512, 1 if name in ("metallic", "roughness") else 3), 0.5) for name in protocol.MAP_NAMES}
for texel, triangle, weights in rebake._samples(old["uvs"].astype(float), 512):
    p, (t, b, n) = at(old, triangle, weights)
    maps["base_color"].reshape(-1, 3)[texel] = colour(p)
    maps["roughness"].reshape(-1, 1)[texel] = colour(p)[:, :1]
    v = bumpy(p, n)
    v = np.linalg.solve(np.stack((t, b, n), axis=2), v[..., None])[..., 0]
    maps["normal"].reshape(-1, 3)[texel] = v * 0.5 + 0.5
touched = np.zeros(512 * 512, bool); touched[texel] = True
for name, image in images.find(first).items():
    values = rebake._filled(maps[name], touched.reshape(512, 512).copy())
    pixels = np.ones((512, 512, 4), np.float32); pixels[..., :3] = values
    image.pixels.foreach_set(np.ascontiguousarray(pixels[::-1]).ravel()); image.update()

before = untouched.fingerprint()
uvs_before = {layer.name: [tuple(c.vector) for c in layer.uv] for layer in torus.data.uv_layers}
bpy.ops.ed.undo_push(message="before")
assert bpy.ops.patina.bake_to_uvs(layer="Mine") == {"FINISHED"}, running.status
bpy.ops.ed.undo_push(message="after")
assert [n for n in untouched.difference(before, untouched.fingerprint())] == []
assert uvs_before == {layer.name: [tuple(c.vector) for c in layer.uv] for layer in torus.data.uv_layers}
made = variants.current(torus)
assert made.run != first and made.uv_layer == "Mine" and made.parent == first and made.name == "red, Mine"
assert (variants.folder_of(made) / "picture.png").is_file()
nodes = made.material.node_tree.nodes
assert all(node.uv_map == "Mine" for node in nodes if node.type in ("UVMAP", "NORMAL_MAP"))
shown = {name: images.texels(image) for name, image in images.find(made.run).items()}
random = np.random.default_rng(0)
triangle = random.integers(0, len(new["uvs"]), 20000)
weights = random.dirichlet((1, 1, 1), 20000)
p, (t, b, n) = at(new, triangle, weights)
uv = np.einsum("nk,nkc->nc", weights, new["uvs"][triangle])
place = uv[:, 0] * 512 - 0.5, (1 - uv[:, 1]) * 512 - 0.5
found = {name: images.bilinear(values, *place) for name, values in shown.items()}
off = np.abs(found["base_color"] - colour(p)).max(1)
print("colour off", off.mean(), np.quantile(off, 0.99), off.max())
assert off.mean() < 0.006 and np.quantile(off, 0.99) < 0.03 and off.max() < 0.15
assert np.abs(found["roughness"] - colour(p)[:, :1]).mean() < 0.006 and np.abs(found["metallic"] - 0.5).max() < 0.01
v = found["normal"] * 2 - 1
v = v[:, :1] * t + v[:, 1:2] * b + v[:, 2:] * n
v /= np.linalg.norm(v, axis=1, keepdims=True)
degrees = np.degrees(np.arccos(np.clip((v * bumpy(p, n)).sum(1), -1, 1)))
print("normal off", degrees.mean(), np.quantile(degrees, 0.99))
assert degrees.mean() < 1.0 and np.quantile(degrees, 0.99) < 4

bpy.ops.ed.undo()
torus = bpy.data.objects["Torus"]
assert len(torus.patina.variants) == 1 and material.is_on(torus, first)
assert [layer.name for layer in torus.data.uv_layers] == ["Patina", "Mine"]
""",
        limit=250,
    )


def test_layers_that_cannot_take_the_maps_are_refused_and_overlap_is_told(tmp_path):
    run_scenario(
        tmp_path,
        _TORUS
        + """
fails("no other UV layer", layer="Patina") if bpy.ops.patina.bake_to_uvs.poll() else None
add("Flat", own * 0); add("NaN", own * np.nan); add("Tiled", own * 9)
fails("no room", layer="Flat")
fails("no numbers", layer="NaN")
fails("repeats the texture", layer="Tiled")
fails("no other UV layer Nowhere", layer="Nowhere")
half = own.copy(); half[:, 0] = half[:, 0] * 2 + 0.3  # the torus goes round twice, across the border of the square
add("Twice", half)
before = untouched.fingerprint()
assert bpy.ops.patina.bake_to_uvs(layer="Twice") == {"FINISHED"}
assert untouched.difference(before, untouched.fingerprint()) == []
with mesh_io.evaluated(bpy.context, torus) as shown:
    old, new = (mesh_io.read(torus, shown, name, None) for name in ("Patina", "Twice"))
flat = {"base_color": np.ones((64, 64, 3)), "normal": np.ones((64, 64, 3)) * [0.5, 0.5, 1.0]}
made, shared = rebake.rebaked(flat, old, new, 64)
assert abs(shared - 0.5) < 0.03, shared
assert (made["base_color"] == 1).all() and np.allclose(made["normal"], [0.5, 0.5, 1.0], atol=1e-6)
""",
        limit=250,
    )
