# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons around the backend and the models: install, repair, remove, doctor, report, fetch. Thin."""

# ruff: noqa: F722, F821

import platform

import bpy
from bpy.props import StringProperty

from . import environment, jobs, preferences, session, tasks


def backend_home():
    return preferences.data_folder() / "backend-env"


def busy_reason() -> str:
    """Why no task can begin just now, or an empty string."""
    running = session.current()
    if running.busy:
        return "Wait for the end of the run"
    if running.task is not None and not running.task.finished:
        return f"Wait: {running.task.title}"
    return ""


class _Task:
    @classmethod
    def poll(cls, _context):
        reason = busy_reason() or cls.refusal()
        if reason:
            cls.poll_message_set(reason)
        return not reason

    @classmethod
    def refusal(cls) -> str:
        return ""

    def begin(self, make) -> set[str]:
        """`make()` gives the task. Headless, it is waited for."""
        running = session.current()
        try:
            running.task = make()
        except environment.EnvironmentFailed as failure:
            self.report({"ERROR"}, str(failure))
            return {"CANCELLED"}
        except OSError as error:
            self.report({"ERROR"}, f"{error.strerror or error} ({error.filename})")
            return {"CANCELLED"}
        if bpy.app.background:
            with session.interruptible():
                session.finish_task(running)
            if running.task.error:
                self.report({"ERROR"}, running.task.error)
                return {"CANCELLED"}
        session.keep_ticking()
        return {"FINISHED"}


class _NeedsBackend(_Task):
    @classmethod
    def refusal(cls) -> str:
        return "" if session.current().ready else "Install the backend first"

    def command(self, title: str, *words: str) -> set[str]:
        running, data = session.current(), preferences.data_folder()
        python = environment.environment_python(backend_home())
        log = data / "tasks" / f"{words[0]}.log"
        return self.begin(lambda: tasks.Command(title, python, running.package_root, log, list(words)))


class PATINA_OT_install_backend(_Task, bpy.types.Operator):
    """Install the backend into an environment of its own: about 280 MB to download (2.7 GB more with an NVIDIA card)"""

    bl_idname = "patina.install_backend"
    bl_label = "Install Backend"

    @classmethod
    def refusal(cls) -> str:
        if session.current().ready:
            return "The backend is installed"
        if not bpy.app.online_access and preferences.wheels() is None:
            return "Blender may not go online: allow it in Preferences > System, or give a folder of wheels"
        return ""

    def execute(self, _context):
        return self.begin(lambda: tasks.Install(jobs.new_build()))


class PATINA_OT_repair_backend(_Task, bpy.types.Operator):
    """Install the backend anew, in place of what is there"""

    bl_idname = "patina.repair_backend"
    bl_label = "Repair"

    @classmethod
    def refusal(cls) -> str:
        if environment.chosen_python() is not None:
            return "PATINA_PYTHON names an environment that is not Patina's to repair"
        if not bpy.app.online_access and preferences.wheels() is None:
            return "Blender may not go online: allow it in Preferences > System, or give a folder of wheels"
        return ""

    def execute(self, _context):
        session.current().end_worker()
        return self.begin(lambda: tasks.Install(jobs.new_build()))


class PATINA_OT_remove_backend(_Task, bpy.types.Operator):
    """Delete the backend's environment; it can be installed again at any time"""

    bl_idname = "patina.remove_backend"
    bl_label = "Remove"

    @classmethod
    def refusal(cls) -> str:
        home = backend_home()
        return "" if home.exists() or tasks.removed(home).exists() else "There is nothing to remove"

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, _context):
        session.current().end_worker()
        tick_s = 1.0 if bpy.app.background else 0.05  # nobody waits for a window that is not there
        workers = preferences.data_folder() / "worker"
        outcome = self.begin(lambda: tasks.Removal(backend_home(), tick_s, workers))
        session.current().look_around()
        return outcome


class PATINA_OT_cancel_task(bpy.types.Operator):
    """End what is under way; an installation begins anew the next time, a download goes on where it ended"""

    bl_idname = "patina.cancel_task"
    bl_label = "Cancel"

    def execute(self, _context):
        task = session.current().task
        if task is not None and not task.finished:
            task.cancel()
        return {"FINISHED"}


class PATINA_OT_doctor(_NeedsBackend, bpy.types.Operator):
    """Look what works on this computer: Python, packages, device, memory, disk"""

    bl_idname = "patina.doctor"
    bl_label = "Doctor"

    def execute(self, _context):
        return self.command("Doctor", "doctor")


class PATINA_OT_copy_report(bpy.types.Operator):
    """Copy versions and the last lines of the log to the clipboard, to be pasted into a bug report"""

    bl_idname = "patina.copy_report"
    bl_label = "Copy Report"

    def execute(self, context):
        running = session.current()
        lines = [
            f"Blender {bpy.app.version_string}, {platform.platform()}",
            f"backend: {environment.environment_python(backend_home())}",
            f"ready: {environment.environment_ready(backend_home())}",
            f"last message: {running.status.message} {running.status.hint}",
            *(running.task.lines if running.task is not None else []),
        ]
        context.window_manager.clipboard = "\n".join(lines)
        self.report({"INFO"}, f"{len(lines)} lines copied")
        return {"FINISHED"}


class PATINA_OT_list_models(_NeedsBackend, bpy.types.Operator):
    """Look which models are on this computer, and which could be fetched"""

    bl_idname = "patina.list_models"
    bl_label = "List Models"

    def execute(self, _context):
        return self.command("Looking for models", "models", "list", "--json")


class PATINA_OT_pull_model(_NeedsBackend, bpy.types.Operator):
    """Fetch this model, or the rest of it"""

    bl_idname = "patina.pull_model"
    bl_label = "Download Model"
    model: StringProperty(options={"SKIP_SAVE", "HIDDEN"})
    licence: StringProperty(options={"SKIP_SAVE", "HIDDEN"})

    @classmethod
    def refusal(cls) -> str:
        if not bpy.app.online_access:
            return "Blender may not go online: allow it in Preferences > System"
        return super().refusal()

    def invoke(self, context, event):
        return context.window_manager.invoke_props_dialog(self, width=420)

    def draw(self, _context):
        self.layout.label(text=self.model, translate=False)
        self.layout.label(text=f"Licence: {self.licence}", translate=False)
        self.layout.label(text="By downloading you agree to it.")

    def execute(self, _context):
        return self.command(f"Fetching {self.model}", "models", "pull", "--accept", self.model)


class PATINA_OT_remove_model(_NeedsBackend, bpy.types.Operator):
    """Delete this model from the disk"""

    bl_idname = "patina.remove_model"
    bl_label = "Remove Model"
    model: StringProperty(options={"SKIP_SAVE", "HIDDEN"})

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, _context):
        return self.command(f"Removing {self.model}", "models", "remove", self.model)


register, unregister = bpy.utils.register_classes_factory(
    (
        PATINA_OT_install_backend,
        PATINA_OT_repair_backend,
        PATINA_OT_remove_backend,
        PATINA_OT_cancel_task,
        PATINA_OT_doctor,
        PATINA_OT_copy_report,
        PATINA_OT_list_models,
        PATINA_OT_pull_model,
        PATINA_OT_remove_model,
    )
)
