# SPDX-License-Identifier: GPL-3.0-or-later
"""The sub-panel Export with its buttons: maps for other programs, a .glb, the asset browser."""

# ruff: noqa: F722, F821

from pathlib import Path

import bpy
from bpy.props import BoolProperty, EnumProperty, PointerProperty, StringProperty

from . import bake_uvs, export, generate, session, variants
from .drawing import Sidebar, beside
from .operators import failed

_PROBLEMS = (export.ExportProblem, bake_uvs.BakeProblem, *generate.PROBLEMS)


class PATINA_PG_export(bpy.types.PropertyGroup):
    folder: StringProperty(
        name="Folder",
        description="Where the files go; empty: a folder export beside the variant's maps",
        subtype="DIR_PATH",
    )
    template: EnumProperty(
        name="For",
        description="How the files are named and packed",
        items=(
            ("SEPARATE", "Separate Maps", "base_color, metallic, roughness, normal"),
            ("GLTF", "glTF", "baseColor, occlusionRoughnessMetallic in one, normal"),
            ("UNREAL", "Unreal", "T_NAME_BC, T_NAME_ORM in one, T_NAME_N with DirectX normals"),
            ("UNITY", "Unity", "AlbedoTransparency, MetallicSmoothness in one, Normal"),
        ),
    )
    normals: EnumProperty(
        name="Normals",
        description="Which way the green channel of the normal map points",
        items=(
            ("AUTO", "As Usual There", "DirectX for Unreal, OpenGL for all others"),
            ("OPENGL", "OpenGL", "Green points up: Blender, glTF, Unity"),
            ("DIRECTX", "DirectX", "Green points down: Unreal"),
        ),
    )
    file_format: EnumProperty(
        name="Format",
        description="Kind of the files",
        items=(
            ("PNG8", "PNG, 8 bit", "What every program reads"),
            ("PNG16", "PNG, 16 bit", "Finer steps for smooth normals and roughness"),
            ("OPEN_EXR", "OpenEXR", "Floating point; colors are linear"),
        ),
    )
    overwrite: BoolProperty(name="Overwrite", description="Replace files that exist already")


class _OfTheVariant:
    @classmethod
    def poll(cls, context):
        if variants.current(context.object) is None:
            cls.poll_message_set("No variant is on this object. Generate or choose one first")
            return False
        return True


class PATINA_OT_export_maps(_OfTheVariant, bpy.types.Operator):
    """Write the maps of the shown variant for another program"""

    bl_idname = "patina.export_maps"
    bl_label = "Export Maps"

    def execute(self, context):
        how, obj = context.scene.patina_export, context.object
        variant = variants.current(obj)
        directx = how.normals == "DIRECTX" or (how.normals == "AUTO" and export.TEMPLATES[how.template].directx)
        try:
            folder = _folder(how, variant)
            paths = export.write(
                folder,
                bpy.path.clean_name(obj.name),
                export.maps_of(variant.run, variants.folder_of(variant)),
                how.template,
                directx,
                16 if how.file_format == "PNG16" else 8,
                how.file_format,
                how.overwrite,
            )
        except _PROBLEMS as error:
            return failed(self, session.current(), error)
        self.report({"INFO"}, f"{len(paths)} files in {folder}")
        return {"FINISHED"}


class PATINA_OT_export_glb(_OfTheVariant, bpy.types.Operator):
    """Write the object with the shown material as one .glb file"""

    bl_idname = "patina.export_glb"
    bl_label = "Export GLB"

    def execute(self, context):
        how, obj = context.scene.patina_export, context.object
        try:
            path = _folder(how, variants.current(obj)) / f"{bpy.path.clean_name(obj.name)}.glb"
            export.write_glb(obj, path, how.overwrite)
        except _PROBLEMS as error:
            return failed(self, session.current(), error)
        self.report({"INFO"}, str(path))
        return {"FINISHED"}


class PATINA_OT_mark_asset(_OfTheVariant, bpy.types.Operator):
    """Put the shown material into the asset browser, with its picture"""

    bl_idname = "patina.mark_asset"
    bl_label = "Mark as Asset"
    bl_options = {"UNDO"}

    def execute(self, context):
        variant = variants.current(context.object)
        picture = variants.folder_of(variant) / variants.PICTURE
        export.mark_as_asset(variants.shown_material(context.object), variant.prompt, picture)
        return {"FINISHED"}


class PATINA_OT_bake_to_uvs(_OfTheVariant, bpy.types.Operator):
    """Put the maps of the shown variant into this UV layer, as a variant of its own; no UV layer changes"""

    bl_idname = "patina.bake_to_uvs"
    bl_label = "Bake to Existing UVs"
    bl_options = {"UNDO"}
    layer: StringProperty(options={"SKIP_SAVE", "HIDDEN"})

    @classmethod
    def poll(cls, context):
        if not super().poll(context):
            return False
        if not bake_uvs.layers(context.object, variants.current(context.object)):
            cls.poll_message_set("This object has no other UV layer")
            return False
        return True

    def execute(self, context):
        obj, running = context.object, session.current()
        variant = variants.current(obj)
        try:
            if variant.run in running.busy_runs():
                raise bake_uvs.BakeProblem("This variant is being made. Wait for it or cancel it.")
            told = bake_uvs.bake(context, obj, variant, self.layer or bake_uvs.layers(obj, variant)[0])
        except _PROBLEMS as error:
            return failed(self, running, error)
        if told:
            self.report({"WARNING"}, told)
        running.look_around()
        return {"FINISHED"}


class PATINA_PT_export(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_export"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Export"
    bl_options = {"DEFAULT_CLOSED"}
    bl_order = 4

    @classmethod
    def poll(cls, context):
        return variants.current(context.object) is not None

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        how = context.scene.patina_export
        column = layout.column()
        for name in ("template", "normals", "file_format", "folder", "overwrite"):
            column.prop(how, name)
        column = layout.column(align=True)
        column.operator("patina.export_maps", icon="EXPORT")
        buttons = beside(column, context, "Export GLB", "Mark as Asset")
        buttons.operator("patina.export_glb", icon="FILE_3D")
        buttons.operator("patina.mark_asset", icon="ASSET_MANAGER")
        _draw_layers(layout, context.object)


def _draw_layers(layout, obj) -> None:
    """Other UV layers that the maps could be put into."""
    others = bake_uvs.layers(obj, variants.current(obj))[:4]
    if others:
        column = layout.column(align=True)
        column.label(text="Bake to Existing UVs")
        for layer in others:
            column.operator("patina.bake_to_uvs", text=layer, translate=False, icon="UV").layer = layer


def _folder(how: PATINA_PG_export, variant) -> Path:
    """Raises ExportProblem."""
    if not how.folder:
        return variants.folder_of(variant) / "export"
    if how.folder.startswith("//") and not bpy.data.filepath:
        raise export.ExportProblem("The folder is relative to the .blend, which is not saved yet.")
    return Path(bpy.path.abspath(how.folder))


_CLASSES = (
    PATINA_PG_export,
    PATINA_OT_export_maps,
    PATINA_OT_export_glb,
    PATINA_OT_mark_asset,
    PATINA_OT_bake_to_uvs,
    PATINA_PT_export,
)


def register() -> None:
    for cls in _CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Scene.patina_export = PointerProperty(type=PATINA_PG_export)


def unregister() -> None:
    del bpy.types.Scene.patina_export
    for cls in reversed(_CLASSES):
        bpy.utils.unregister_class(cls)
