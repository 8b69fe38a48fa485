# SPDX-License-Identifier: GPL-3.0-or-later
"""The sub-panel Reference with its buttons: a picture from a file, the clipboard or the last render, and its view."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bpy
from bpy.app.translations import pgettext_iface as _

from . import generate, reference, session
from .drawing import Sidebar, beside, draw_text
from .operators import failed

_PROBLEMS = generate.PROBLEMS
_XCLIP_S = 3.0
_NOTHING_THERE = "There is no picture on the clipboard. Copy one, or open it from a file."
_NO_XCLIP = "Under X11 Blender cannot read pictures from the clipboard. Install xclip, or open it from a file."


class _OfAMesh:
    @classmethod
    def poll(cls, context):
        if context.object is None or context.object.type != "MESH":
            cls.poll_message_set("Select a mesh object")
            return False
        return True


class PATINA_OT_reference_paste(_OfAMesh, bpy.types.Operator):
    """Take the picture on the clipboard as the reference"""

    bl_idname = "patina.reference_paste"
    bl_label = "Paste"
    bl_options = {"UNDO"}

    def execute(self, context):
        try:
            return self._take(context, _by_blender(context), _NOTHING_THERE)
        except reference.ReferenceProblem as error:
            return failed(self, session.current(), error)

    def invoke(self, context, _event):
        made = _by_blender(context)
        if made is not None or not _under_x11():
            return self._take(context, made, _NOTHING_THERE)
        # It is not waited for in here: when the clipboard is Blender's own, it is Blender that has to answer.
        try:
            self._reader, self._end = _Xclip(), time.monotonic() + _XCLIP_S
        except OSError:
            return self._take(context, None, _NO_XCLIP)
        self._timer = context.window_manager.event_timer_add(0.05, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context, event):
        if event.type != "TIMER" or (self._reader.is_reading() and time.monotonic() < self._end):
            return {"PASS_THROUGH"}
        made = self._reader.picture() if self.poll(context) else None
        self.cancel(context)
        return self._take(context, made, _NOTHING_THERE)

    def cancel(self, context):
        context.window_manager.event_timer_remove(self._timer)
        self._reader.end()

    def _take(self, context, made, sentence) -> set[str]:
        if made is None:
            return failed(self, session.current(), sentence)
        context.object.patina.reference.image = made
        return {"FINISHED"}


class PATINA_OT_reference_render(_OfAMesh, bpy.types.Operator):
    """Take the last render, as the view transform shows it, as the reference, and the scene's camera as its view"""

    bl_idname = "patina.reference_render"
    bl_label = "From Render"
    bl_options = {"UNDO"}

    def execute(self, context):
        kept = context.object.patina.reference
        try:
            kept.image = _image_of_render(context.scene)
            if context.scene.camera is not None:
                reference.keep_view(context.object, *reference.camera_matrices(context, context.scene.camera))
        except _PROBLEMS as error:
            return failed(self, session.current(), error)
        return {"FINISHED"}


class PATINA_OT_reference_view(_OfAMesh, bpy.types.Operator):
    """Say that the picture was taken as this 3D view, or the camera it looks through, sees the object now"""

    bl_idname = "patina.reference_view"
    bl_label = "Use Viewport Camera"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context):
        if context.region_data is None or context.space_data is None or context.space_data.type != "VIEW_3D":
            cls.poll_message_set("Use it in a 3D view")
            return False
        return super().poll(context)

    def execute(self, context):
        seen, space = context.region_data, context.space_data
        camera = space.camera if space.use_local_camera else context.scene.camera
        try:
            if seen.view_perspective == "CAMERA" and camera is not None:
                view = reference.camera_matrices(context, camera)
            else:
                region = next(region for region in context.area.regions if region.type == "WINDOW")
                view = seen.window_matrix, seen.view_matrix, region.width / max(region.height, 1)
            reference.keep_view(context.object, *view)
        except _PROBLEMS as error:
            return failed(self, session.current(), error)
        return {"FINISHED"}


class PATINA_OT_reference_front(_OfAMesh, bpy.types.Operator):
    """Say that the picture shows the object from the front, filling the picture"""

    bl_idname = "patina.reference_front"
    bl_label = "Front View"
    bl_options = {"UNDO"}

    def execute(self, context):
        reference.forget_view(context.object)
        return {"FINISHED"}


class PATINA_PT_reference(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_reference"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Reference"
    bl_options = {"DEFAULT_CLOSED"}
    bl_order = 6

    @classmethod
    def poll(cls, context):
        return context.object is not None and context.object.type == "MESH"

    def draw(self, context):
        layout, kept = self.layout, context.object.patina.reference
        layout.template_ID(kept, "image", open="image.open")
        buttons = beside(layout, context, "Paste", "From Render")
        buttons.operator("patina.reference_paste", icon="PASTEDOWN")
        buttons.operator("patina.reference_render", icon="RENDER_RESULT")
        if kept.image is None:
            return
        column = layout.column(align=True)
        angles = reference.angles(kept)
        if angles is None:
            draw_text(column, context, "Seen from the front")
        else:
            around, above = (round(angle) for angle in angles)
            text = _("Seen from {around}°, {above}° above").format(around=around, above=above)
            draw_text(column, context, text)
        row = column.row(align=True)
        row.operator("patina.reference_view", icon="VIEW_CAMERA")
        if angles is not None:
            row.operator("patina.reference_front", text="", icon="X")
        draw_text(layout, context, _("Base Color follows it where it shows the object, as if lit evenly."))


def _by_blender(context: bpy.types.Context) -> bpy.types.Image | None:
    """The clipboard's picture, packed; None if there is none, or Blender cannot read it. Raises ReferenceProblem."""
    before = set(bpy.data.images)
    try:
        with _image_editor(context):
            bpy.ops.image.clipboard_paste()
    except RuntimeError:  # its poll
        return None
    made = next((image for image in bpy.data.images if image not in before), None)
    if made is not None:
        made.pack()
    return made


def _under_x11() -> bool:
    """Whether this is where Blender reads no pictures from the clipboard."""
    return sys.platform.startswith("linux") and "DISPLAY" in os.environ and "WAYLAND_DISPLAY" not in os.environ


class _Xclip:
    """Reads the clipboard's picture into a file, beside Blender, until `end`. Raises OSError where xclip is missing."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "pasted.png"
        command = ["xclip", "-selection", "clipboard", "-target", "image/png", "-out"]
        with open(self._path, "wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL, start_new_session=True
            )

    def is_reading(self) -> bool:
        return self._process.poll() is None

    def picture(self) -> bpy.types.Image | None:
        """What was read, packed; None if it is no picture."""
        if self._process.poll() != 0:
            return None
        made = bpy.data.images.load(str(self._path))
        if not made.size[0]:
            bpy.data.images.remove(made)
            return None
        made.pack()
        made.filepath, made.name = "", "Pasted"
        return made

    def end(self) -> None:
        self._process.kill()
        self._process.wait(5)
        self._folder.cleanup()


def _image_of_render(scene: bpy.types.Scene) -> bpy.types.Image:
    """The last render of the scene as a packed image. Raises ReferenceProblem; the scene's settings stay."""
    result = bpy.data.images.get("Render Result")
    files = scene.render.image_settings
    names = ("media_type", "file_format", "color_mode", "color_depth", "compression", "color_management")
    before = {name: getattr(files, name) for name in names if hasattr(files, name)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "render.png"
        try:
            if result is None:
                raise RuntimeError
            if "media_type" in before:
                files.media_type = "IMAGE"
            files.file_format, files.color_management = "PNG", "FOLLOW_SCENE"
            files.color_mode, files.color_depth = "RGBA", "8"
            result.save_render(str(path), scene=scene)
            image = bpy.data.images.load(str(path))
        except RuntimeError as error:
            sentence = "There is no render yet. Render the scene (F12), then try again."
            raise reference.ReferenceProblem(sentence) from error
        finally:
            for name, value in before.items():
                with contextlib.suppress(TypeError):  # a depth that belongs to another format
                    setattr(files, name, value)
        image.pack()
        image.filepath, image.name = "", f"{scene.name} render"
    return image


@contextlib.contextmanager
def _image_editor(context: bpy.types.Context):
    """Run what is inside as if in an image editor: one that is open, or any area that becomes one for the moment.

    Raises ReferenceProblem where Blender has no window.
    """
    windows = context.window_manager.windows
    if bpy.app.background or not windows:
        raise reference.ReferenceProblem("Pictures are pasted in Blender's window only.")
    areas = [(window, area) for window in windows for area in window.screen.areas]
    found = next(((w, a) for w, a in areas if a.type == "IMAGE_EDITOR"), None)
    # The area whose button is being pressed is the last to be changed.
    window, area = found or next((pair for pair in areas if pair[1] != context.area), areas[0])
    kind = area.ui_type
    try:
        if found is None:
            area.ui_type = "IMAGE_EDITOR"
        space = area.spaces.active
        shown = space.image
        region = next(region for region in area.regions if region.type == "WINDOW")
        with context.temp_override(window=window, area=area, region=region):
            yield
        space.image = shown
    finally:
        if found is None:
            area.ui_type = kind


register, unregister = bpy.utils.register_classes_factory(
    (
        PATINA_OT_reference_paste,
        PATINA_OT_reference_render,
        PATINA_OT_reference_view,
        PATINA_OT_reference_front,
        PATINA_PT_reference,
    )
)
