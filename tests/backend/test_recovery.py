# SPDX-License-Identifier: GPL-3.0-or-later
"""Known maps come back: a small corner of `evaluate recovery`, and that its judge sees what is wrong."""

import json
import math
from dataclasses import replace

import pytest
import torch

from backend import ggx_tables, material
from backend import seams as seams_of
from backend.evaluate import _known as known
from backend.evaluate import recovery, seams
from backend.evaluate._shapes import SHAPES

TABLES = ggx_tables.load()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two shapes x two materials at 96 x 96, in few steps; the whole evaluation has 256 x 256 and more steps."""
    folder = tmp_path_factory.mktemp("recovery")
    options = "--shapes mirrored,box --materials plastic,rusty --size 96 --steps 150".split()
    assert recovery.main(["--json", str(folder / "r.json"), "--picture", str(folder), *options]) == 0
    written = json.loads((folder / "r.json").read_text())
    assert written["summary"]["runs"] == 4 and len(list(folder.glob("*.png"))) == 4
    return {(row["shape"], row["material"]): row for row in written["rows"]}


@pytest.mark.parametrize("shape", ["mirrored", "box"])
def test_plastic_comes_back_without_the_light_it_was_seen_in(rows, shape):
    row = rows[shape, "plastic"]
    assert row["relit_db"] > 42 and row["ciede2000"] < 1.5 and row["metallic_error"] < 0.08
    assert row["baked_light"] < 0.06


@pytest.mark.parametrize("shape", ["mirrored", "box"])
def test_metal_and_rust_come_back_with_their_relief(rows, shape):
    row = rows[shape, "rusty"]
    assert row["relit_db"] > 30 and row["ciede2000"] < 3.5 and row["metallic_error"] < 0.15
    assert row["roughness_error"] < 0.1 and row["normal_deg"] < 6


def spoilt(change):
    """What would be judged if the known maps of a sphere came back changed."""
    mesh, stored = SHAPES["sphere"](24, 12), known.image(known.plastic, 32)
    plan = recovery.plan_for(32, 32, steps=0)
    result = recovery.recover(mesh, stored, plan, TABLES)
    result = replace(result, found=change(stored.clone()))
    return recovery.judge(result, mesh, 32, TABLES, uniform=True)


def test_the_judge_sees_nothing_wrong_with_the_truth():
    row = spoilt(lambda stored: stored)
    assert row["relit_db"] > 100 and row["ciede2000"] < 1e-3 and row["baked_light"] < 1e-4
    assert row["metallic_error"] == row["roughness_error"] == 0 and row["normal_deg"] < 0.1


def test_the_judge_sees_light_in_the_colour_a_wrong_metal_and_a_bent_normal():
    def lit(stored):
        bright = 1 + 0.1 * torch.sin(math.pi * (torch.arange(32) + 0.5) / 32)  # the middle of the sphere's height
        stored[:3] *= bright[:, None]
        return stored

    assert 0.01 < spoilt(lit)["baked_light"] < 0.1

    def metal(stored):
        stored[3] += 0.2
        return stored

    assert abs(spoilt(metal)["metallic_error"] - 0.2) < 1e-3

    def bent(stored):
        stored[5] += 0.5 * math.sin(math.radians(10))
        return stored

    assert abs(spoilt(bent)["normal_deg"] - 10) < 0.1


def test_seams_are_measured_as_they_are_written(tmp_path):
    path = tmp_path / "seams.json"
    assert seams.main(["--json", str(path), "--shapes", "box", "--steps", "6"]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["points"] > 100
    across, without = row["across_seams"]["base_color"]["mean"], row["without_the_stitch"]["base_color"]["mean"]
    assert across < 0.01 and across < without
    assert 0 <= row["curl_share"] < 0.1 and row["curl_share_as_painted"] <= 1


def gather_uv(stored, uv):
    """(L, 7) values of (7, S, S), row 0 at v = 0, between texels."""
    found = torch.nn.functional.grid_sample(stored[None], (uv * 2 - 1).view(1, 1, -1, 2), align_corners=False)
    return found[0, :, 0].T


def test_what_is_known_goes_on_across_cuts_and_is_what_the_stitch_leaves_alone():
    mesh = SHAPES["box"]()
    where = material.texels(mesh, 64)
    stored = recovery.authored(known.hammered, "box", mesh, 64)
    covered = material.coverage(where).flip(0)
    plain = known.image(known.hammered, 64)  # the pattern by the UV map, which jumps where that is cut
    flat = where.cuts.smooth
    jumps = [
        (gather_uv(image, where.cuts.uv_a) - gather_uv(image, where.cuts.uv_b))[flat, :5].abs().mean()
        for image in (stored, plain)
    ]
    assert jumps[0] < 0.1 * jumps[1], jumps
    values = stored.flip(1).flatten(1).T[where.index]
    again = seams_of.stitch(where.cuts, where.index, values, where.border, 64)
    assert (again - values).abs().mean() < 1 / 255
    assert (stored[:5, ~covered] > 0.05).any(0).all(), "the gutters are filled"
