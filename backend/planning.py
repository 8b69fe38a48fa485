# SPDX-License-Identifier: Apache-2.0
"""From a request to the plan of its run: steps, views, timesteps. Knows no mesh and no state."""

from __future__ import annotations

from dataclasses import replace

from addon import protocol
from addon.protocol import TextureRequest

from .diffusion.interface import Denoiser
from .diffusion.memory import Memory
from .distillation import Options, option_names, published, read_settings
from .guidance import GUIDANCE
from .optimisation import Plan
from .reference import LikenessOptions

# The optimiser resolves no more than its close-ups show; larger outputs are interpolated from it.
EFFECTIVE_SIZE = 512
REFINED_SIZE = 1024  # with a second stage
PLAIN_GUIDANCE = "clamped"  # the one to name where a sentence asks for any
NO_GUIDANCE = "none"  # a run that ends with what it begins with
LATEST_WARM, EARLIEST_WARM = 0.5, 0.05  # shares of the timesteps, at most, after a warm start
STEPS = {"draft": 260, "standard": 900, "high": 2400}
VIEWS = {"draft": 4, "standard": 4, "high": 6}


def check(request: TextureRequest) -> None:
    """Raises ProtocolError where the request asks for what no run can do; needs no model."""
    alone = request.guidance == NO_GUIDANCE
    if request.guidance not in GUIDANCE and not (alone and request.start != "uniform"):
        raise protocol.ProtocolError(
            f"guidance must be one of {', '.join(GUIDANCE)}, or {NO_GUIDANCE} with the start four_views or "
            "latent_paint."
        )
    if goes_on(request) and request.start != "uniform":
        besides = f" and a guidance, as {PLAIN_GUIDANCE}" if alone else ""
        raise protocol.ProtocolError(
            f"With the strength {request.strength:g} a run changes the maps it starts from, and the start "
            f"“{request.start}” has no part in it. Choose the start uniform{besides}, or the strength 1."
        )
    if alone and request.second_stage:
        raise protocol.ProtocolError(
            f"A second stage goes on by the guidance, and it is “{NO_GUIDANCE}”. Choose a guidance, as "
            f"{PLAIN_GUIDANCE}, or leave the second stage out."
        )
    if alone and request.reference:
        raise protocol.ProtocolError(
            f"A reference picture needs a guidance, and it is “{NO_GUIDANCE}”: what a start paints follows the prompt "
            f"alone. Choose a guidance, as {PLAIN_GUIDANCE}, or leave the reference out."
        )


def memory_of(request: TextureRequest) -> Memory:
    """How the request's models share their device: no part of the plan, since it changes nothing of the maps. Raises
    ProtocolError."""
    return _read_as(Memory, request)


def likeness_of(request: TextureRequest) -> LikenessOptions:
    """Raises ProtocolError."""
    wanted = _read_as(LikenessOptions, request)
    if wanted != LikenessOptions() and not request.reference:
        raise protocol.ProtocolError(
            "The option clip_model compares other views with a reference picture, and none is given. Give one, or "
            "leave the option out."
        )
    return wanted


def _read_as(owner: type, request: TextureRequest):
    """What the request's options say of this dataclass."""
    try:
        return owner(**read_settings(owner, _of(owner, request)))
    except ValueError as error:
        raise protocol.ProtocolError(str(error)) from error


def _of(owner: type, request: TextureRequest) -> dict[str, str]:
    return {name: text for name, text in request.options.items() if name in option_names(owner)}


def asked_size(request: TextureRequest, model: Denoiser) -> int:
    """Pixels to a side of one picture that the model is shown."""
    return request.render_size or model.render_size


def make_plan(request: TextureRequest, model: Denoiser) -> Plan:
    """Raises ProtocolError for options that the guidance does not have."""
    options = options_of(request)
    # Joint views fill a quarter each of a picture of the model's own size.
    joint = options.joint_views and not request.render_size
    plan = Plan(
        steps=0 if request.guidance == NO_GUIDANCE else request.steps or STEPS[request.quality],
        views=request.views or VIEWS[request.quality],
        render_size=asked_size(request, model) // (2 if joint else 1),
        finest=min(request.texture_size, EFFECTIVE_SIZE),
        guidance=request.guidance,
        guidance_scale=model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        pattern_scale=request.pattern_scale,
        seed=request.seed,
        options=options if request.start == "uniform" else _warm(options, request),
        all_detail_at=Plan.all_detail_at if request.start == "uniform" else 0.0,
    )
    # A run that goes on from maps goes on with all they show.
    return replace(plan, all_detail_at=0.0, normal_from=0.0) if goes_on(request) else plan


def second_plan(plan: Plan, request: TextureRequest, model: Denoiser) -> Plan:
    """How the second stage of a cascade goes on: larger pictures, half as many steps, small changes of all detail.

    What the request says of the guidance scale and the timesteps holds here too; `warnings_of` says what does not.
    """
    said = request.options
    options = replace(
        _with_timesteps(plan.options, said, (0.6, 0.3), (0.1, 0.02)), joint_views=False,
        guidance_scale_end=plan.options.guidance_scale_end if "guidance_scale_end" in said else None,
        deep_image_prior=False,  # it would begin anew
    )  # fmt: skip
    return replace(
        plan,
        steps=max(1, plan.steps // 2),
        render_size=model.render_size,
        finest=min(request.texture_size, REFINED_SIZE),
        guidance_scale=model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        rate=plan.rate / 3,
        normal_from=0.0,
        all_detail_at=0.0,
        average_from=0.2,
        binary_from=0.0,
        options=options,
    )


def warnings_of(request: TextureRequest, plan: Plan, model: Denoiser, second: Denoiser | None) -> list[str]:
    """What a person may expect of the request and will not get, or not well: a sentence each."""
    found = []
    blind = not getattr(model, "sees_geometry", True) and getattr(model, "control", None) is None
    if request.start == "four_views" and blind:
        found.append(
            f"“{model.name}” paints the four views without seeing the object's shape, so what it paints may not lie on "
            "it when it is projected back. Give it a depth or normal control if there is one for it, or begin with "
            "uniform."
        )
    if second is None:
        return found
    only_first = "holds for the first stage alone"
    if plan.options.joint_views:
        found.append(f"The option joint_views {only_first}: the second one enlarges each picture by itself.")
    if plan.options.deep_image_prior:
        found.append(
            f"The option deep_image_prior {only_first}: a fresh network would paint anew, so the second one changes "
            "the maps themselves."
        )
    if request.render_size not in (None, second.render_size):
        found.append(
            f"The render size {request.render_size} {only_first}: the second one works with the {second.render_size} "
            "pixels it was made for."
        )
    return found


def goes_on(request: TextureRequest) -> bool:
    """Whether the run changes the maps it starts from, instead of painting them anew."""
    return request.start_maps and request.strength < 1.0


def first_step(request: TextureRequest, plan: Plan) -> int:
    """Where a run begins: one that goes on from maps leaves out the steps that would paint them anew."""
    return min(round(plan.steps * (1 - request.strength)), plan.steps - 1) if goes_on(request) else 0


def options_of(request: TextureRequest) -> Options:
    """What the request says, and where it says nothing what its guidance was published with. Raises ProtocolError."""
    known = [name for owner in (Options, Memory, LikenessOptions) for name in option_names(owner)]
    for name in request.options:
        if name not in known:
            raise protocol.ProtocolError(f"There is no option “{name}”; there are {', '.join(known)}.")
    try:
        options = published(request.guidance, _of(Options, request))
    except ValueError as error:
        raise protocol.ProtocolError(str(error)) from error
    if options.deep_image_prior and (request.start != "uniform" or request.start_maps):
        raise protocol.ProtocolError(
            "The option deep_image_prior paints from noise and cannot go on from maps or another start. Leave it out, "
            "or begin with uniform."
        )
    return replace(options, negative_prompt=bool(request.negative_prompt.strip()))


def _warm(options: Options, request: TextureRequest) -> Options:
    """After a start that painted already: late timesteps would paint over it."""
    highest = tuple(min(share, LATEST_WARM) for share in options.highest)
    lowest = tuple(min(share, EARLIEST_WARM) for share in options.lowest)
    return _with_timesteps(options, request.options, highest, lowest)


def _with_timesteps(
    options: Options, said: dict[str, str], highest: tuple[float, float], lowest: tuple[float, float]
) -> Options:
    """The options with these timesteps where the request has `said` none of its own; what it said bounds the other. A
    method of one timestep at a time stays one."""
    if "highest" in said:
        highest = options.highest
    if "lowest" in said:
        lowest = options.lowest
    elif options.lowest == options.highest:
        lowest = highest
    if "highest" not in said:
        highest = tuple(map(max, highest, lowest))
    return replace(options, highest=highest, lowest=tuple(map(min, lowest, highest)))
