# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way with the real backend: a run, a refined face, a pause in it; outside not one texel changes."""

import pytest

pytest.importorskip("bpy")
pytest.importorskip("torch")

from . import harness  # noqa: E402
from .harness import run_scenario  # noqa: E402

pytestmark = pytest.mark.slow


def test_refining_one_face_changes_its_texels_and_no_other(tmp_path):
    run_scenario(
        tmp_path,
        f"""
        from addon import variants
        running.package_root = Path({str(harness.REPO)!r})
        bpy.context.scene.patina.steps = 24
        bpy.context.scene.patina.views = 2
        cube.patina.prompt = "polished gold"
        assert bpy.ops.patina.generate() == {{"FINISHED"}}, running.status
        first = variants.current(cube)
        first_run = first.run
        def texels(run):
            return {{name: np.rint(images.texels(image) * 255).astype(int) for name, image in images.find(run).items()}}
        before = texels(first_run)
        picture = bpy.data.images.load(str(variants.folder_of(first) / "picture.png"))
        seen = np.array(picture.pixels).reshape(-1, 4)
        body = seen[seen[:, 3] > 0.9]
        assert 0.1 < len(body) / len(seen) < 0.9 and body[:, 0].mean() > 1.3 * body[:, 2].mean(), "gold on a cube"

        for face in cube.data.polygons: face.select = face.index == 3
        within = cube.patina.limits
        within.region, within.strength, within.lock_roughness = "FACES", 1.0, True
        cube.patina.prompt = "blue plastic"
        generate.begin(bpy.context, cube, running, start=first_run)
        run = running.job.place.run
        tick_until(lambda: running.status.can_pause and running.status.step >= 4, 200)
        running.pause()
        tick_until(lambda: not running.busy, 60)
        assert "Paused" in running.status.message, running.status
        assert bpy.ops.patina.resume(run=run) == {{"FINISHED"}}, running.status
        after = texels(run)
        assert (after["roughness"] == before["roughness"]).all()

        layer = cube.data.uv_layers[0].uv
        corners = np.array([layer[c].vector for c in cube.data.polygons[3].loop_indices])
        low, high = corners.min(0) * 512, corners.max(0) * 512
        rows, columns = np.mgrid[0:512, 0:512]
        height = 511 - rows
        near = (columns >= low[0] - 6) & (columns < high[0] + 6) & (height >= low[1] - 6) & (height < high[1] + 6)
        for name in ("base_color", "metallic", "normal"):
            changed = (after[name] != before[name]).any(-1)
            assert not changed[~near].any(), (name, changed[~near].sum())
        inside = (columns > low[0] + 8) & (columns < high[0] - 8) & (height > low[1] + 8) & (height < high[1] - 8)
        assert (after["base_color"] != before["base_color"]).any(-1)[inside].mean() > 0.9
        assert after["base_color"][inside][:, 2].mean() > before["base_color"][inside][:, 2].mean() + 20, "bluer"
        """,
        limit=540,
    )
