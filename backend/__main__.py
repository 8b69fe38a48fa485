# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m backend serve | run | texture | models | doctor | evaluate`.

Knows arguments, exit codes and one-sentence errors; the work is done elsewhere. Everything heavy is imported
by the command that needs it, so that the process answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import shutil
import signal
import sys
from pathlib import Path

from addon import protocol

from . import job

SETTINGS = (
    "as often as you like. Of the guidance: guidance_scale_end=W, rescale=0..1, threshold_percentile=0.95, "
    "threshold_bound=1.5, perp_neg=true, highest=START,END and lowest=START,END (timesteps as shares), "
    "anneal=sqrt|linear, stratified=false, weighting=uniform, shadows=auto|on|off (of the mesh on itself), k_steps=4, "
    "reuse=1, inversion_scale=-7.5, inversion_steps=10, inversion_noise=0.3, joint_views=true, latent_steps=400, "
    "staging=own|dreamfusion, deep_image_prior=true; of four views: grid_start=render|blob, grid_strength=0.95, "
    "grid_steps=30. Of memory: rows=4 (pictures seen at once; fewer take less), offload=auto|never|parts|blocks (what "
    "leaves the device while other parts of the model work), attention_slicing=true, vae_tiling=true. Of a reference "
    "picture: clip_model=FOLDER, clip_strength=0.1"
)


class UsageError(Exception):
    """The command cannot be carried out; the text is one sentence for a person, `exit_code` says it to a script."""

    def __init__(self, message: str, exit_code: int = protocol.EXIT_BAD_REQUEST) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: list[str] | None = None) -> int:
    """Carry out one command line and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (UsageError, job.CannotTell) as error:
        print(f"patina: {error}", file=sys.stderr)
        return error.exit_code
    except protocol.ProtocolError as error:
        print(f"patina: {error}", file=sys.stderr)
        return protocol.EXIT_BAD_REQUEST
    except ImportError as error:
        print(f"patina: {job.failure_of(error).message} Try: python build.py backend -- doctor", file=sys.stderr)
        return protocol.EXIT_FAILED
    except (OSError, MemoryError) as error:
        failure = job.failure_of(error)
        print(f"patina: {error if failure.kind == 'internal' else failure.message}", file=sys.stderr)
        return protocol.FAILURE_KINDS[failure.kind]
    except KeyboardInterrupt:
        print("patina: interrupted", file=sys.stderr)
        return protocol.EXIT_CANCELLED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m backend", description="Patina's texturing backend.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="obey commands on stdin (started by Blender)")
    serve.add_argument("--home", type=Path, required=True, help="folder for the sign of life and the log")
    serve.add_argument("--device-lock", type=Path, help="file whose lock makes workers queue for the device")
    serve.set_defaults(command=_serve)

    run = commands.add_parser("run", help="run or resume the job in a folder")
    run.add_argument("job", type=Path, metavar="JOB")
    run.set_defaults(command=_run)

    defaults = protocol.TextureRequest(prompt="-")
    texture = commands.add_parser("texture", help="texture a mesh file (.obj .glb .gltf .ply)")
    texture.add_argument("mesh", type=Path, metavar="MESH")
    texture.add_argument("--prompt", required=True)
    texture.add_argument("--out", type=Path, required=True, help="folder for the maps and the report")
    texture.add_argument("--negative-prompt", default=defaults.negative_prompt)
    texture.add_argument("--quality", choices=protocol.QUALITIES, default=defaults.quality)
    texture.add_argument("--seed", type=int, default=defaults.seed)
    texture.add_argument("--texture-size", type=int, choices=protocol.TEXTURE_SIZES, default=defaults.texture_size)
    texture.add_argument("--pattern-scale", type=float, default=defaults.pattern_scale)
    texture.add_argument("--model", default=defaults.model)
    texture.add_argument("--guidance", default=defaults.guidance, help="how the model is distilled: clamped, sds, …")
    texture.add_argument("--guidance-scale", type=float, help="w: 1 is the prompt alone; without it the model's own")
    texture.add_argument("--control", default=defaults.control, help="folder of a depth or normal ControlNet")
    texture.add_argument("--control-kind", choices=protocol.CONTROL_KINDS, default=defaults.control_kind)
    texture.add_argument("--control-strength", type=float, default=defaults.control_strength)
    texture.add_argument("--second-stage", default=defaults.second_stage, help="folder of a model that enlarges")
    texture.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help=SETTINGS)
    texture.add_argument("--reference", type=Path, help="a square picture of the object")
    texture.add_argument("--reference-view", default="", metavar="AZIMUTH,ELEVATION[,DISTANCE,FOV]",
                         help="where the picture was taken from, in degrees and object radii; without it the front")
    texture.add_argument("--panoramas", type=Path, help="folder of .hdr or .exr panoramas to paint under, by turns")
    texture.add_argument("--extra-map", action="append", choices=protocol.EXTRA_MAPS, default=[],
                         help="also write this one, beside the material's four")
    texture.add_argument("--start", choices=protocol.STARTS, default=defaults.start,
                         help="four_views: four pictures painted together; latent_paint: a texture of latents; with "
                         "--guidance none that is all")
    texture.add_argument("--steps", type=int, help="optimiser steps; without it what the quality says")
    texture.add_argument("--views", type=int, help="pictures a step; without it what the quality says")
    texture.add_argument("--render-size", type=int, metavar="PIXELS",
                         help="width of the pictures; without it what the model was made for")
    texture.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default=defaults.device)
    texture.add_argument("--format", choices=protocol.FILE_FORMATS, default=defaults.file_format)
    texture.add_argument("--bit-depth", type=int, help="of the maps: 8 or 16 in png, 16 or 32 in exr (half, float)")
    texture.add_argument("--rasterizer", choices=protocol.RASTERIZERS, default=defaults.rasterizer)
    texture.set_defaults(command=_texture)

    doctor = commands.add_parser("doctor", help="say what works on this computer")
    doctor.set_defaults(command=_doctor)

    models = commands.add_parser("models", help="the models on this computer: list, pull, check, remove")
    actions = models.add_subparsers(required=True, metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="what is here, and what could be; with licences")
    listing.add_argument("--json", action="store_true", help="for programs")
    pull = actions.add_parser("pull", help="fetch a model, or the rest of it")
    pull.add_argument("--accept", action="store_true", help="you have read the model's licence and agree")
    check = actions.add_parser("check", help="say whether a model is whole and can be used")
    remove = actions.add_parser("remove", help="delete a fetched model")
    for action in (pull, remove):
        action.add_argument("model", metavar="ID", help="owner/name on the hub")
    check.add_argument("model", metavar="PATH", help="a model's folder, or the id of a fetched one")
    models.set_defaults(command=_models)

    evaluate = commands.add_parser("evaluate", help="measure; options behind NAME are its own", add_help=False)
    evaluate.add_argument("name", metavar="NAME")
    evaluate.add_argument("rest", nargs=argparse.REMAINDER)
    evaluate.set_defaults(command=_evaluate)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from . import serve

    return serve.serve(options.home, options.device_lock)


def _run(options: argparse.Namespace) -> int:
    job_folder = protocol.JobFolder(options.job.absolute())
    if not job_folder.request.is_file():
        raise UsageError(f"{options.job} is no job folder: it holds no request.json.")
    return _run_here(job_folder)


def _run_here(job_folder: protocol.JobFolder) -> int:
    """Run a new attempt in this terminal. The first Ctrl-C pauses it, the second cancels it."""
    from .terminal import ProgressLine

    attempt = job_folder.new_attempt()

    def pause(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        protocol.append_line(attempt.control, protocol.Pause())

    before = signal.signal(signal.SIGINT, pause)
    try:
        code = job.run_job(job_folder.path, attempt.number, None, lambda: False, ProgressLine())
    finally:
        signal.signal(signal.SIGINT, before)
    if code == protocol.EXIT_OK and not _is_done(attempt):
        print(f"To go on: python -m backend run {job_folder.path}", file=sys.stderr)
        return protocol.EXIT_CANCELLED
    return code


def _is_done(attempt: protocol.AttemptFolder) -> bool:
    events, offset = [], 0
    while True:
        more, offset = protocol.read_lines(attempt.events, offset, protocol.Event)
        if not more:
            return bool(events) and isinstance(events[-1], protocol.Done)
        events = more


def _texture(options: argparse.Namespace) -> int:
    request = protocol.TextureRequest(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        object_name=options.mesh.stem,
        seed=options.seed,
        quality=options.quality,
        texture_size=options.texture_size,
        model=_model_named(options.model),
        guidance=options.guidance,
        guidance_scale=options.guidance_scale,
        reference=f"reference{options.reference.suffix}" if options.reference else "",
        reference_view=_view(options.reference_view),
        panoramas=str(options.panoramas.absolute()) if options.panoramas else "",
        extra_maps=list(dict.fromkeys(options.extra_map)),
        start=options.start,
        second_stage=_model_named(options.second_stage),
        options=_settings(options.set),
        control=_model_named(options.control),
        control_kind=options.control_kind,
        control_strength=options.control_strength,
        steps=options.steps,
        views=options.views,
        render_size=options.render_size,
        pattern_scale=options.pattern_scale,
        device=options.device,
        file_format=options.format,
        bit_depth=options.bit_depth,
        rasterizer=options.rasterizer,
    )
    if not options.mesh.is_file():
        raise UsageError(f"There is no mesh file {options.mesh}.")
    if options.reference and not options.reference.is_file():
        raise UsageError(f"There is no reference picture {options.reference}.")
    from . import glb, mesh, uv

    try:
        arrays = mesh.load_mesh_file(options.mesh, tell=lambda sentence: print(sentence, file=sys.stderr))
    except (mesh.MeshError, uv.UvError) as error:
        raise UsageError(str(error)) from error
    job_folder = protocol.JobFolder(_new_job_folder(options.out))
    mesh.save_job_mesh(job_folder.mesh, arrays)
    if options.reference:
        shutil.copy2(options.reference, job_folder.path / request.reference)
    job_folder.write_request(request)
    code = _run_here(job_folder)
    if code == protocol.EXIT_OK:
        for path in [*sorted(job_folder.maps.glob(f"*.{request.file_format}")), job_folder.report]:
            if path.is_file():
                shutil.copy2(path, options.out / path.name)
        glb.write_glb(options.out / "textured.glb", arrays, job_folder.maps)
        print(options.out)
    return code


def _view(text: str) -> dict[str, float]:
    if not text:
        return {}
    try:
        values = [float(part) for part in text.split(",")]
        return dict(zip(("azimuth_deg", "elevation_deg", "distance", "fov_deg")[: len(values)], values, strict=True))
    except ValueError:
        raise UsageError(
            f"“{text}” is no view; it is written AZIMUTH,ELEVATION or AZIMUTH,ELEVATION,DISTANCE,FOV.",
            protocol.EXIT_USAGE,
        ) from None


def _settings(given: list[str]) -> dict[str, str]:
    for text in given:
        if "=" not in text:
            raise UsageError(f"“--set {text}” says no value; it is written OPTION=VALUE.", protocol.EXIT_USAGE)
    settings = dict(text.split("=", 1) for text in given)
    return settings | {name: _model_named(path) for name, path in settings.items() if name == "clip_model"}


def _model_named(name: str) -> str:
    """A model's folder by its whole path: the job may be resumed from elsewhere."""
    return str(Path(name).absolute()) if name not in ("", protocol.BUILT_IN_MODEL) and os.path.exists(name) else name


def _new_job_folder(out: Path) -> Path:
    """The next free `job-N` in `out`; jobs that were there before stay."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100_000):
        try:
            folder = out.absolute() / f"job-{number:04d}"
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise UsageError(f"{out} holds too many jobs.")


def _doctor(_: argparse.Namespace) -> int:
    from . import doctor

    return doctor.main()


def _models(options: argparse.Namespace) -> int:
    from . import model_command, models

    try:
        return model_command.main(options)
    except models.ModelError as error:
        raise UsageError(str(error)) from error


def _evaluate(options: argparse.Namespace) -> int:
    from . import evaluate

    names = sorted(m.name for m in pkgutil.iter_modules(evaluate.__path__) if not m.name.startswith("_"))
    if options.name not in names:
        known = ", ".join(names) or "none in this package"
        raise UsageError(f"There is no evaluation {options.name!r}; there are: {known}.", protocol.EXIT_USAGE)
    return importlib.import_module(f"{__package__}.evaluate.{options.name}").main(options.rest) or 0


if __name__ == "__main__":
    sys.exit(main())
