# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend that behaves as its job's prompt says: real process, real protocol, real files, no torch.

`install(root)` makes a package root with `backend/__main__.py` (this file) and the add-on's protocol, for
`Session.package_root`. Words in the prompt: slow, silent, killed, rubbish, stopped, failed, refused,
deaf, flood, outside, endless, glass.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import sys
import threading
import time
import zlib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def install(root: Path) -> Path:
    (root / "addon").mkdir(parents=True, exist_ok=True)
    (root / "backend").mkdir(exist_ok=True)
    for name in ("__init__.py", "protocol.py"):
        shutil.copy(REPO / "addon" / name, root / "addon" / name)
    (root / "backend" / "__init__.py").touch()
    shutil.copy(__file__, root / "backend" / "__main__.py")
    return root


def png(path: Path, size: int, color: tuple[int, ...]) -> None:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + bytes(color) * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2 if len(color) == 3 else 0, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    os.replace(beside, path)


def colors(share: float) -> dict[str, tuple[int, ...]]:
    return {
        "base_color": (int(255 * share), 40, 20),
        "metallic": (255,),
        "roughness": (60,),
        "normal": (128, 128, 255),
    }


def run_job(command) -> None:
    from addon import protocol

    job = protocol.JobFolder(Path(command.job))
    attempt = job.attempt(command.attempt)
    request = job.read_request()
    words = request.prompt.split()

    def say(event) -> None:
        protocol.append_line(attempt.events, event)

    def maps(folder: Path, suffix: str, size: int, share: float) -> dict[str, str]:
        made = {}
        for name, color in colors(share).items():
            png(folder / f"{name}{suffix}.png", size, color)
            made[name] = f"{folder.name}/{name}{suffix}.png"
        return made

    if "silent" in words:
        time.sleep(600)
    lock = protocol.take_job_lock(job.lock, f"process {os.getpid()}")
    if lock is None:
        say(protocol.Failed("locked", "This job is already running.", "Wait for it."))
        return
    try:
        work(job, attempt, request, words, say, maps)
    finally:
        time.sleep(0.3)  # a real one tidies up after its last word
        protocol.release_lock(lock)


def work(job, attempt, request, words, say, maps) -> None:
    from addon import protocol

    steps = 3000 if "endless" in words else 40 if "slow" in words else 4
    say(protocol.Started("fake", "cpu", "fake", steps))
    if "refused" in words:
        say(protocol.Failed("bad_prompt", "No material word in the prompt.", "Name a material."))
        return
    for step in range(1, steps + 1):
        if step == 2 and "killed" in words:
            print("about to be killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and "stopped" in words:
            os.kill(os.getpid(), signal.SIGSTOP)
        if step == 2 and "rubbish" in words:
            with open(attempt.events, "a") as file:
                file.write('{"type": "Nonsense"}\n')
        if step == 2 and "flood" in words:
            with open(attempt.events, "a") as file:
                file.write(protocol.encode(protocol.Progress("Flooding", 1, steps, 0.1)) * 50_000)
        if step == 2 and "failed" in words:
            say(protocol.Failed("out_of_memory", "There is not enough memory.", "Choose a smaller texture size."))
            return
        if step == 2 and "outside" in words:
            say(protocol.Preview(1, step, {"base_color": "../../../etc/passwd"}))
        say(protocol.Progress("Texturing", step, steps, step / steps, (steps - step) * 0.1))
        png(job.preview_picture(step), 32, (int(255 * step / steps), 40, 20))
        say(protocol.Preview(step, step, maps(job.previews, f"_{step:04d}", 64, step / steps)))
        controls, _ = protocol.read_lines(attempt.control, 0, protocol.Control)
        if any(isinstance(order, protocol.Pause) for order in controls):
            say(protocol.Paused("asked", step))
            return
        if controls and "deaf" not in words:
            say(protocol.Cancelled(step, maps(job.maps, "", request.texture_size, 0.5)))
            return
        time.sleep(0.1)
    if "deaf" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    made = maps(job.maps, "", request.texture_size, 1.0)
    for name, shade in (("ambient_occlusion", 200), ("height", 90)):
        if name in request.extra_maps:
            png(job.maps / f"{name}.png", request.texture_size, (shade,))
            made[name] = f"maps/{name}.png"
    png(job.picture, 32, (255, 40, 20))
    if "glass" in words:
        say(protocol.Warning("Patina cannot make glass: it comes out opaque."))
    protocol.write_beside(job.report, b'{"prompt": "fake"}')
    say(protocol.Done(made, job.report.name))


def main() -> None:
    home = Path(sys.argv[sys.argv.index("--home") + 1])

    def beat() -> None:
        while True:
            (home / "alive").touch()
            time.sleep(0.5)

    threading.Thread(target=beat, daemon=True).start()
    from addon import protocol

    for line in sys.stdin:
        command = protocol.decode(line, protocol.Command)
        if isinstance(command, protocol.Shutdown):
            return
        if isinstance(command, protocol.Run):
            run_job(command)


if __name__ == "__main__":
    main()
