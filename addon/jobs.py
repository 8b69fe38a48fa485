# SPDX-License-Identifier: GPL-3.0-or-later
"""The run under way: backend process, events, previews, result, from one `tick` that never blocks.

Blender's timer calls `tick`; headless, `run_to_end` does. After a run has begun only pixels are changed here, and
none while Blender renders or bakes; material and images are made by `placing`, inside operators.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from pathlib import Path

from . import (
    environment,
    images,
    interrupted,
    outcome,
    pictures,
    placing,
    preferences,
    protocol,
    showing,
    status,
    tasks,
    variants,
    worker,
)
from .one_job import Job, inside, map_files
from .rendering import blender_is_rendering as _blender_is_rendering

TICK_S = 0.1
PUBLISH_S = 0.4  # the sidebar is drawn anew that often at most: on a weak machine more would swallow clicks
_SILENT_GIVE_UP_S = 30.0  # no sign of life; `worker` calls it stuck after 10
_EVENT_GIVE_UP_S = 900.0  # signs of life, but nothing happens
_END_GIVE_UP_S = 12.0  # asked to end, terminated, killed: longer than `worker` takes for that
_BYTES_A_TICK = 1 << 16  # of events: a flood takes several ticks, none of them long
_MOST_WARNINGS = 12


class Session:
    """What one Blender runs: at most one backend process, one environment being built, one job; others wait."""

    def __init__(self, package_root: Path) -> None:
        self.package_root = package_root
        self.status = status.Status()
        self.job: Job | None = None
        self.waiting: list[Job] = []
        self.left: list[interrupted.Left] = []  # jobs of other days, or paused
        self.ended: Job | None = None  # the last one
        self.result: Job | None = None  # ended, its maps are not on the object
        self.pictures = pictures.Pictures()
        self.ready = False  # is the backend installed? As of the last look around
        self.task: tasks.Install | tasks.Removal | tasks.Command | None = None  # what is done beside runs, or was last
        self.models: list[dict] = []  # as `backend models list --json` told
        self._build: environment.EnvironmentBuild | None = None
        self._worker: worker.Worker | None = None
        self._leaving: worker.Worker | None = None  # asked to end, may take a moment
        self._published = 0.0

    @property
    def busy(self) -> bool:
        return self.job is not None

    def begin(self, job: Job) -> None:
        """Take over a job whose folder is complete; `tick` does the rest. While another runs, it waits its turn.

        The result of an earlier run is let go.
        """
        if self.busy:
            self.waiting.append(job)
            self.status.queued = len(self.waiting)
            status.publish(self.status)
            return
        self.result = None
        self.status = status.Status(busy=True, can_cancel=True, object_name=job.place.object_name)
        self.status.run, self.status.queued = job.place.run, len(self.waiting)
        self.status.stage = "Starting the backend"
        job.last_event = time.monotonic()
        if not environment.environment_ready(preferences.data_folder() / "backend-env"):
            self._build = new_build()
        else:
            self._start(job)
        self.job = job
        status.publish(self.status)

    def pause(self) -> None:
        """Have the run save its state and end; the backend process ends too, so that its memory is free."""
        job = self.job
        if job is None or job.attempt is None or job.cancelling or job.pausing:
            return
        protocol.append_line(job.attempt.control, protocol.Pause())
        job.pausing, self.status.can_pause = True, False
        self.status.stage = "Pausing"
        status.publish(self.status)

    def drop_waiting(self) -> list[Job]:
        """Take all jobs that wait out of the queue, with their folders."""
        dropped, self.waiting = self.waiting, []
        for job in dropped:
            shutil.rmtree(job.folder.path, ignore_errors=True)
        self.status.queued = 0
        return dropped

    def busy_runs(self) -> set[str]:
        """The runs that are under way or wait."""
        return {job.place.run for job in (self.job, *self.waiting) if job is not None}

    def look_around(self) -> None:
        """What is on the disk: the backend, pictures of variants, jobs that were left. Not for `draw`."""
        self.ready = environment.environment_ready(preferences.data_folder() / "backend-env")
        self.left = interrupted.find(preferences.data_folder() / "jobs", self.busy_runs())
        self.pictures.look_around()

    def cancel(self) -> None:
        """End the run; what was made so far stays. Returns at once."""
        job = self.job
        if job is None or job.cancelling:
            return
        job.cancelling = True
        self.status.can_cancel = self.status.can_pause = False
        self.status.stage = "Cancelling"
        if self._build is not None:
            self._build.cancel()
        elif job.attempt is not None and self._worker is not None:
            self._worker.request_cancel(job.folder, job.attempt.number)
        status.publish(self.status)

    def close(self) -> None:
        """Blender ends or the add-on is disabled: a running job checkpoints and pauses, the process ends."""
        if self._build is not None:
            self._build.cancel()
        if self.task is not None and not self.task.finished:
            self.task.cancel()
        for process in (self._worker, self._leaving):
            if process is not None:
                process.stop()
        self.job = self._build = self._worker = None
        self.waiting = []
        self.pictures.close()

    def tick(self) -> None:
        """Go on a little; call about ten times a second while `busy`. Raises nothing but programming errors."""
        if self._worker is not None:
            self._worker.tick()
        if self.task is not None and not self.task.finished:
            self._tick_task()
        job = self.job
        if job is None:
            return
        try:
            if self._build is not None:
                self._tick_build(job)
            elif job.giving_up is not None:
                self._wait_for_end(job)
            elif job.outcome is None:
                self._read_events(job)
                self._watch_process(job)
            if not _blender_is_rendering():
                note = showing.show_one(job, self.pictures)
                self.status.note = self.status.note if note is None else note
                if job.outcome is not None and not job.pending:
                    self._finish(job)
        except OSError as error:  # a full disk, a folder taken away: the maps stay in the job folder
            if job.outcome is None and job.attempt is not None and self._worker is not None:
                self._worker.request_cancel(job.folder, job.attempt.number)
            self._finish(job, protocol.Failed("disk_full", f"A file could not be written: {status.told(error)}", _KEPT))
        if self.job is not None and time.monotonic() - self._published > PUBLISH_S:
            self._published = time.monotonic()
            status.publish(self.status)

    @property
    def has_work(self) -> bool:
        """Is there anything that `tick` must go on with?"""
        return self.busy or (self.task is not None and not self.task.finished)

    def _tick_task(self) -> None:
        self.task.tick()
        if self.task.finished and not self.task.error and "--json" in getattr(self.task, "words", ()):
            found = self.task.said_list()
            if found is None:
                self.task.error = "The backend did not tell which models there are. Try the Doctor."
            else:
                self.models = found
        if self.task.finished:
            self.ready = environment.environment_ready(preferences.data_folder() / "backend-env")
        if self.task.finished or time.monotonic() - self._published > PUBLISH_S:
            self._published = time.monotonic()
            status.redraw(preferences_too=True)

    # --- starting ---

    def _tick_build(self, job: Job) -> None:
        fraction, text = self._build.tick()
        self.status.stage, self.status.fraction = "Installing the backend (once)", fraction
        self.status.note = text
        if not self._build.finished:
            return
        build, self._build = self._build, None
        self.status.note, self.status.fraction = "", 0.0
        if job.cancelling:
            job.outcome = protocol.Cancelled(0)
        elif build.error:
            job.outcome = protocol.Failed("internal", "The backend could not be installed.", build.error)
            self.status.log = str(build.log)
        else:
            self._start(job)

    def _start(self, job: Job) -> None:
        self.status.stage = "Starting the backend"
        data = preferences.data_folder()
        try:
            job.attempt = job.folder.new_attempt()
            if self._worker is None or self._worker.poll() is not None:
                python = environment.environment_python(data / "backend-env")
                self._worker = worker.Worker.start(python, self.package_root, data / "worker")
            self._worker.send(protocol.Run(str(job.folder.path), job.attempt.number))
        except (worker.WorkerError, OSError) as error:
            job.outcome = protocol.Failed("internal", str(error))
        job.last_event = time.monotonic()

    # --- running ---

    def _read_events(self, job: Job) -> None:
        try:
            events, job.offset = protocol.read_lines(job.attempt.events, job.offset, protocol.Event, _BYTES_A_TICK)
            for event in events:
                job.last_event = time.monotonic()
                self._take(job, event)
                if job.outcome is not None:
                    break
        except protocol.ProtocolError as error:
            self._give_up(
                job,
                f"The backend said something Patina does not understand: {error}",
                "The backend and the add-on may be of different versions. Restart Blender, then press Generate again.",
            )

    def _take(self, job: Job, event: protocol.Event) -> None:
        shown = self.status
        if isinstance(event, protocol.Started):
            shown.total_steps, shown.stage = event.total_steps, f"Running on {event.device}"
            shown.can_pause = not job.pausing and not job.cancelling
        elif isinstance(event, protocol.Progress):
            if not job.cancelling and not job.pausing:
                shown.stage = event.stage
            shown.step, shown.total_steps = event.step, event.total_steps
            shown.fraction = min(max(event.fraction, 0.0), 1.0)
            shown.seconds_left = -1.0 if event.seconds_left is None else event.seconds_left
        elif isinstance(event, protocol.Preview):
            job.pending, _ = map_files(job, event.maps)
            job.picture = job.folder.preview_picture(event.number)
        elif isinstance(event, protocol.Warning):
            lines = [*shown.warnings.splitlines(), " ".join(event.message.split())]
            shown.warnings = "\n".join(dict.fromkeys(lines[:_MOST_WARNINGS]))
        elif isinstance(event, protocol.TERMINAL_EVENTS):
            if isinstance(event, protocol.Done | protocol.Cancelled) and event.maps:
                job.pending, job.extras = map_files(job, event.maps)
                job.picture = job.folder.picture
            if isinstance(event, protocol.Done):
                job.report = inside(job, event.report)
            job.outcome = event

    def _watch_process(self, job: Job) -> None:
        if job.outcome is not None or job.giving_up is not None:
            return
        if self._worker.poll() is not None:
            before = job.offset
            self._read_events(job)  # what it wrote before it died, over several ticks if it is much
            if job.offset == before and job.outcome is None and job.giving_up is None:
                self._ended_without_a_word(job)
            return
        self.status.note = ""
        if self._worker.is_stuck():
            silent = self._worker.alive_age()
            self.status.note = f"The backend has not shown a sign of life for {status.duration(silent)}."
            if silent > _SILENT_GIVE_UP_S:
                self._give_up(job, "The backend did not react any more and was ended.", "Press Generate to try again.")
        elif time.monotonic() - job.last_event > _EVENT_GIVE_UP_S:
            self._give_up(
                job,
                f"The backend has done nothing for {status.duration(_EVENT_GIVE_UP_S)} and was ended.",
                "Press Generate to try again, with a smaller texture size if it happens again.",
            )

    def end_worker(self) -> None:
        """End the resident backend process, and with it all memory it holds; the next run starts another."""
        if self._leaving is not None:
            self._leaving.stop(0.0)
        self._leaving, self._worker = self._worker, None
        if self._leaving is not None:
            self._leaving.close()

    def _ended_without_a_word(self, job: Job) -> None:
        if job.cancelling:
            job.outcome = protocol.Cancelled(self.status.step)
        else:
            last = self._worker.last_log_lines(1)
            sentence = self._worker.end_sentence() or "The backend ended unexpectedly."
            job.outcome = protocol.Failed("internal", sentence, f"Last words: {last[0]}" if last else "")
            self.status.log = str(self._worker.log)

    def _give_up(self, job: Job, message: str, hint: str) -> None:
        """End the process (asked first, then terminated, then killed by `worker`) and fail with this sentence."""
        job.giving_up, job.last_event = protocol.Failed("internal", message, hint), time.monotonic()
        self.status.stage, self.status.can_cancel = "Ending the backend", False
        self._worker.request_cancel(job.folder, job.attempt.number)
        self._worker.close()

    def _wait_for_end(self, job: Job) -> None:
        if self._worker.poll() is None:
            if time.monotonic() - job.last_event <= _END_GIVE_UP_S:
                return
            self._worker.stop(0.0)
        self.status.log = str(self._worker.log)
        if self._worker.poll() is None:
            self._worker = None  # the system holds it (a dead network drive, a driver): Blender does not wait for that
        job.outcome, job.giving_up = job.giving_up, None

    # --- the end ---

    def _finish(self, job: Job, ending: protocol.Event | None = None) -> None:
        ending = ending or job.outcome
        old, attached = self.status, bool(placing.attached_images(job.place))
        if isinstance(ending, protocol.Done):
            self._take_files(job)
        elif isinstance(ending, protocol.Paused):
            self.end_worker()
            self.waiting = []  # they are found again as what is left, to be resumed
        elif isinstance(ending, protocol.Failed) and job.attempt is None:
            self.drop_waiting()  # the backend cannot be started: neither for those that wait
        told = outcome.words(ending, attached, job.output, old.fraction, job.attempt is not None)
        shown = self.status = status.Status(
            object_name=job.place.object_name, warnings=old.warnings, log=old.log, step=old.step, run=job.place.run,
            message=told.message, hint=told.hint, level=status.ERROR if told.is_error else status.INFO, fix=told.fix,
        )  # fmt: skip
        if not attached and job.shown:
            self.result, shown.waiting_result = job, job.place.object_name
        job.outcome = ending
        if isinstance(ending, protocol.Cancelled | protocol.Failed):
            with contextlib.suppress(OSError):
                (job.folder.path / interrupted.PLACE).unlink(missing_ok=True)
        self.job, self.ended = None, job
        status.publish(shown)
        if self.waiting and not isinstance(ending, protocol.Paused):
            self.begin(self.waiting.pop(0))
        self.look_around()

    @staticmethod
    def _take_files(job: Job) -> None:
        """What a finished run has made beside the maps that are shown."""
        if job.report is not None and job.report.is_file():
            images.replace_file(job.report, job.output / variants.REPORT)
        for name, path in job.extras.items():
            images.replace_file(path, images.map_file(job.output, name))
        interrupted.took(job.folder)


_KEPT = "Free some space or choose another folder. What was made so far is kept in the job folder."


def new_build() -> environment.EnvironmentBuild:
    """The installation of the backend, as the preferences want it."""
    own = Path(sys.executable) if sys.executable else None
    pythons = environment.python_candidates(preferences.preferred_python(), own)
    home = preferences.data_folder() / "backend-env"
    workers = preferences.data_folder() / "worker"
    return environment.EnvironmentBuild(home, pythons, wheels=preferences.wheels(), workers=workers)
