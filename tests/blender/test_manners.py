# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever button is pressed: mesh, UV layers, other materials, objects, scene and view stay as they are."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402


def test_every_operation_leaves_alone_what_it_does_not_speak_of(tmp_path):
    run_scenario(
        tmp_path,
        """
        import untouched
        from addon import variants
        bpy.ops.mesh.primitive_uv_sphere_add(segments=12, ring_count=8)
        other = bpy.context.object
        other.data.materials.append(bpy.data.materials.new("Theirs"))
        cube.select_set(True)
        other.select_set(False)
        bpy.context.view_layer.objects.active = cube
        first = untouched.fingerprint()
        old = cube.material_slots[0].material
        def stays(call, may=()):
            before = untouched.fingerprint()
            assert call() == {"FINISHED"}
            changed = [name for name in untouched.difference(before, untouched.fingerprint()) if name not in may]
            assert changed == [], changed
        cube.patina.prompt = "red"
        stays(bpy.ops.patina.generate)
        one = variants.current(cube).run
        stays(lambda: bpy.ops.patina.more_seeds(count=2))
        stays(lambda: bpy.ops.patina.variant_show(run=one))
        stays(lambda: bpy.ops.patina.variant_pin(run=one))
        stays(lambda: bpy.ops.patina.variant_use_settings(run=one))
        cube.patina.limits.region = "SLOT"
        stays(bpy.ops.patina.refine)
        stays(bpy.ops.patina.variant_clean)
        assert one in [v.run for v in cube.patina.variants], "it is pinned"
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 3)
        run = running.job.place.run
        stays(bpy.ops.patina.pause)
        tick_until(lambda: not running.busy)
        stays(lambda: bpy.ops.patina.resume(run=run))
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 3)
        stays(bpy.ops.patina.cancel)
        tick_until(lambda: not running.busy)
        stays(bpy.ops.patina.revert)
        assert cube.material_slots[0].material is old
        assert untouched.difference(first, untouched.fingerprint()) == [], "and together"
        # with no usable UVs a layer of Patina's own is the one thing that is added
        bpy.context.view_layer.objects.active = other
        other.data.uv_layers.remove(other.data.uv_layers[0])
        before = untouched.fingerprint()
        other.patina.prompt = "blue"
        bpy.context.view_layer.objects.active = other
        other.select_set(True); cube.select_set(False)
        before = untouched.fingerprint(("Patina",))
        assert bpy.ops.patina.generate() == {"FINISHED"}
        assert untouched.difference(before, untouched.fingerprint(("Patina",))) == []
        assert [layer.name for layer in other.data.uv_layers] == ["Patina"], list(other.data.uv_layers)
        other.location.x += 1
        bpy.context.view_layer.update()
        assert untouched.difference(before, untouched.fingerprint(("Patina",))) == ["object Sphere"], "it can see"
        """,
        limit=150,
    )
