# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sets: on the object what it shall be made of, on the scene how; and the request made of both.

Also declares what the panel shows of a run (`window_manager.patina`); `status` writes it. Knows no job.
"""

# ruff: noqa: F722, F821  (the annotations of property groups are values, not types)

import dataclasses
import os
import random
from pathlib import Path

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import limits, protocol, reference, variants, world_light

NO_GUIDANCE = "none"
_DEFAULTS = dataclasses.asdict(protocol.TextureRequest(prompt="-"))
_QUALITY_ITEMS = (
    ("draft", "Draft", "A first look, in about a minute"),
    ("standard", "Standard", "More views and steps; some minutes"),
    ("high", "High", "As good as the model can do; takes long"),
)
_GUIDANCE_ITEMS = (
    ("clamped", "Clamped", "Pull towards what the model sees, kept within the colours of a picture"),
    ("sds", "Plain SDS", "Score distillation as published; needs a high guidance scale"),
    ("csd", "CSD", "Classifier score distillation: only the difference that the words make"),
    ("nfsd", "NFSD", "Noise-free score distillation: without what the model thinks of the noise"),
    ("hifa", "HiFA", "Score distillation with noise that falls during the run, as in HiFA"),
    ("ism", "ISM", "Interval score matching: along a path of inversion, for sharper detail"),
    ("sdi", "SDI", "Score distillation via inversion: noise that fits the picture"),
    ("k_step", "K-Step", "Towards a picture that the model denoises in several steps"),
    ("vsd", "VSD", "Variational score distillation: against a copy of the model that learns this run's pictures"),
    (NO_GUIDANCE, "None", "Only what Start makes; the fast way, with Four Views"),
)


def _known_models(_self, _context, text: str) -> list[str]:
    """Ids to choose from; what is typed beside them counts as well."""
    from . import session  # it knows this file

    known = [protocol.BUILT_IN_MODEL, *(model["id"] for model in session.current().models if model["here"])]
    return [name for name in dict.fromkeys(known) if text.lower() in name.lower()]


# In 4.2 a search function, even of a class that was unregistered, ends Blender with a crash.
_SUGGESTED = {"search": _known_models, "search_options": {"SUGGESTION"}} if bpy.app.version >= (4, 3) else {}


class PATINA_PG_kept_slot(bpy.types.PropertyGroup):
    """One material slot as it was before Patina, so that it can be restored."""

    slot: IntProperty()
    link: StringProperty()
    material: PointerProperty(type=bpy.types.Material)
    added: BoolProperty()


class PATINA_PG_object(bpy.types.PropertyGroup):
    prompt: StringProperty(
        name="Prompt",
        description="What the surface is made of, for example: rusty iron",
        maxlen=2000,
        options={"TEXTEDIT_UPDATE"},
    )
    negative_prompt: StringProperty(name="Negative Prompt", description="What it shall not look like", maxlen=2000)
    seed: IntProperty(
        name="Seed",
        description="The same seed and settings give the same material",
        default=_DEFAULTS["seed"],
        min=0,
        max=2**31 - 1,
    )
    rolled_seed: IntProperty(default=-1, options={"HIDDEN"})  # so that a typed seed is told from a rolled one
    seed_locked: BoolProperty(
        name="Lock Seed", description="Keep this seed; unlocked, every run takes a new one", default=False
    )
    cover: EnumProperty(
        name="Cover",
        description="Which faces get the new material",
        items=(
            ("OBJECT", "Whole Object", "All faces, whatever their material slot"),
            ("SLOT", "Active Slot", "Only the faces of the active material slot"),
            ("EACH", "Each Slot", "One set of maps for each material slot that has faces, one after the other"),
        ),
    )
    kept_slots: CollectionProperty(type=PATINA_PG_kept_slot)
    variants: CollectionProperty(type=variants.PATINA_PG_variant)
    limits: PointerProperty(type=limits.PATINA_PG_limits)
    reference: PointerProperty(type=reference.PATINA_PG_reference)


class PATINA_PG_scene(bpy.types.PropertyGroup):
    quality: EnumProperty(
        name="Quality",
        description="Resolution, views and steps follow from it",
        items=_QUALITY_ITEMS,
        translation_context="Patina",
        default=_DEFAULTS["quality"],
    )
    texture_size: EnumProperty(
        name="Texture Size",
        description="Width and height of the four maps in pixels",
        items=[(str(size), str(size), "") for size in protocol.TEXTURE_SIZES],
        default=str(_DEFAULTS["texture_size"]),
        translation_context="Patina",
    )
    model: StringProperty(
        name="Model",
        description="The diffusion model that judges the pictures: built-in, an id like owner/name, or a folder",
        default=_DEFAULTS["model"],
        **_SUGGESTED,
    )
    second_stage: StringProperty(
        name="Second Stage",
        description="A model that goes on with larger pictures, for detail: built-in, an id, a folder; empty: none",
        default=_DEFAULTS["second_stage"],
        **_SUGGESTED,
    )
    control: StringProperty(
        name="Control",
        description="A depth or normal ControlNet for the model: an id like owner/name, or a folder; empty: none",
        default=_DEFAULTS["control"],
    )
    control_kind: EnumProperty(
        name="Control Kind",
        description="What the control is shown of the mesh",
        items=(
            ("auto", "As Named", "What the control is called says it"),
            ("depth", "Depth", "How far away each point is"),
            ("normal", "Normals", "Which way the surface faces"),
        ),
    )
    control_strength: FloatProperty(
        name="Control Strength",
        description="How strictly the model follows the control",
        default=_DEFAULTS["control_strength"],
        min=0.0,
        max=2.0,
    )
    start: EnumProperty(
        name="Start",
        description="What a run begins with",
        items=(
            ("uniform", "One Material", "The one material that fits the prompt best"),
            ("four_views", "Four Views", "A base color from four pictures that the model paints at once"),
            ("latent_paint", "Latent-Paint", "A base color painted in the model's latents; for latent models"),
        ),
    )
    pattern_scale: FloatProperty(
        name="Pattern Scale",
        description="Size of bricks, planks, stripes: 2 makes them twice as large",
        default=_DEFAULTS["pattern_scale"],
        min=0.05,
        max=20.0,
        soft_min=0.25,
        soft_max=4.0,
    )
    guidance: EnumProperty(
        name="Guidance",
        description="How the model's opinion becomes a change of the maps",
        items=_GUIDANCE_ITEMS,
        default=_DEFAULTS["guidance"],
    )
    guidance_scale: FloatProperty(
        name="Guidance Scale",
        description="How strictly the prompt is followed; 0: what the model was made for",
        default=0.0,
        min=0.0,
        max=200.0,
    )
    steps: IntProperty(
        name="Steps", description="Optimisation steps; 0: as Quality says", default=0, min=0, max=100_000
    )
    views: IntProperty(
        name="Views", description="Pictures rendered in each step; 0: as Quality says", default=0, min=0, max=64
    )
    render_size: IntProperty(
        name="Render Size",
        description="Pixels of each picture; 0: what the model was made for",
        default=0,
        min=0,
        max=2048,
        translation_context="Patina",
    )
    light: PointerProperty(type=world_light.PATINA_PG_light)
    extra_ambient_occlusion: BoolProperty(
        name="Ambient Occlusion",
        description="Also write how much of the sky each point sees: a map for other programs, not for the material",
    )
    extra_height: BoolProperty(
        name="Height",
        description="Also write the relief that the normal map means: a map for other programs, not for the material",
    )


class PATINA_PG_run(bpy.types.PropertyGroup):
    """What the panel shows; written by `status` only."""

    busy: BoolProperty()
    can_cancel: BoolProperty()
    can_pause: BoolProperty()
    queued: IntProperty(description="How many runs wait for this one")
    run: StringProperty(description="The run under way, or the last one")
    object_name: StringProperty()
    stage: StringProperty()
    step: IntProperty()
    total_steps: IntProperty()
    fraction: FloatProperty(min=0.0, max=1.0)
    seconds_left: FloatProperty(default=-1.0)
    note: StringProperty(description="What a person should know about the run under way")
    level: StringProperty(default="INFO")
    message: StringProperty(description="What came of the last run")
    hint: StringProperty(description="What to do about it")
    log: StringProperty(description="Where the log of a failed run is")
    fix: StringProperty(description="The button that helps")
    warnings: StringProperty(description="One warning a line")
    waiting_result: StringProperty(description="The object that has a result which is not applied")


class SettingsProblem(ValueError):
    """The settings make no request; the text is a sentence for a person."""


def request_for(
    obj: bpy.types.Object, scene: bpy.types.Scene, device: str, refine: bool = False
) -> protocol.TextureRequest:
    """The request of the object's and the scene's settings, of its limits too if `refine`. Raises SettingsProblem."""
    how, what = scene.patina, obj.patina
    render_size = how.render_size
    if refine and how.guidance == NO_GUIDANCE:
        raise SettingsProblem("Without guidance there is nothing that refines. Choose one under Advanced.")
    if how.guidance == NO_GUIDANCE and how.second_stage:
        raise SettingsProblem(
            "Without guidance there is nothing that Stage 2 goes on by. Choose one under Advanced, or empty Stage 2."
        )
    if how.guidance == NO_GUIDANCE and what.reference.image is not None:
        raise SettingsProblem(
            "Without guidance nothing follows the reference picture. Choose one under Advanced, or remove the picture."
        )
    if 0 < render_size < 16:
        raise SettingsProblem("Render Size must be 0 (as Quality says) or at least 16 pixels.")
    try:
        return protocol.TextureRequest(
            prompt=what.prompt,
            negative_prompt=what.negative_prompt,
            object_name=obj.name,
            seed=what.seed,
            quality=how.quality,
            texture_size=int(how.texture_size),
            model=_without_slashes(how.model),
            second_stage=_without_slashes(how.second_stage),
            control=_without_slashes(how.control),
            control_kind=how.control_kind if how.control and how.control_kind != "auto" else "",
            control_strength=how.control_strength,
            start=how.start if not refine else "uniform",
            pattern_scale=how.pattern_scale,
            guidance=how.guidance,
            guidance_scale=how.guidance_scale or None,
            steps=how.steps or None,
            views=how.views or None,
            render_size=render_size or None,
            device=device,
            start_maps=refine,
            strength=what.limits.strength if refine else 1.0,
            locked_maps=limits.locked_maps(what.limits) if refine else [],
            mask_border=what.limits.border if refine else 0.0,
            extra_maps=[name for name in protocol.EXTRA_MAPS if getattr(how, f"extra_{name}")],
        )
    except protocol.ProtocolError as error:
        sentence = str(error)
        raise SettingsProblem(f"The {sentence.replace('_', ' ')}") from error


def whole_path(place: str, folder: Path) -> str:
    """`place` from the root if it is found in `folder` or begins with //; else as it is: it may be a model's id."""
    return os.path.abspath(folder / place) if place and (folder / place).exists() else _without_slashes(place)


def _without_slashes(place: str) -> str:
    """Blender's // is the folder of the open file, which the backend does not know."""
    return bpy.path.abspath(place) if place.startswith("//") else place


def with_whole_paths(request: protocol.TextureRequest, folder: Path) -> protocol.TextureRequest:
    """The request for a process that runs elsewhere."""
    places = ("model", "second_stage", "control", "panoramas")
    return dataclasses.replace(request, **{name: whole_path(getattr(request, name), folder) for name in places})


def take_over(request: protocol.TextureRequest, obj: bpy.types.Object, scene: bpy.types.Scene) -> None:
    """Put the settings of a request where a person set them."""
    what, how = obj.patina, scene.patina
    what.prompt, what.negative_prompt, what.seed = request.prompt, request.negative_prompt, request.seed
    what.rolled_seed = -1  # as if typed: the next run keeps it
    how.texture_size, how.quality, how.model = str(request.texture_size), request.quality, request.model
    how.second_stage, how.start = request.second_stage, request.start
    how.control, how.control_strength = request.control, request.control_strength
    how.control_kind = request.control_kind or "auto"
    how.pattern_scale, how.guidance = request.pattern_scale, request.guidance
    how.guidance_scale = request.guidance_scale or 0.0
    for name in ("steps", "views", "render_size"):
        setattr(how, name, getattr(request, name) or 0)
    for name in protocol.EXTRA_MAPS:
        setattr(how, f"extra_{name}", name in request.extra_maps)
    world_light.take_over(request, scene)


def roll_seed(obj: bpy.types.Object) -> None:
    """Give the object a new seed unless its seed is locked or was typed in since the last run."""
    what = obj.patina
    typed = what.is_property_set("seed") and what.seed != what.rolled_seed
    if not what.seed_locked and not typed:
        what.seed = random.SystemRandom().randrange(2**31)
    what.rolled_seed = what.seed


_CLASSES = (PATINA_PG_kept_slot, PATINA_PG_object, PATINA_PG_scene, PATINA_PG_run)


def register() -> None:
    for cls in _CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Object.patina = PointerProperty(type=PATINA_PG_object)
    bpy.types.Scene.patina = PointerProperty(type=PATINA_PG_scene)
    bpy.types.WindowManager.patina = PointerProperty(type=PATINA_PG_run, options={"SKIP_SAVE"})


def unregister() -> None:
    del bpy.types.WindowManager.patina, bpy.types.Scene.patina, bpy.types.Object.patina
    for cls in reversed(_CLASSES):
        bpy.utils.unregister_class(cls)
