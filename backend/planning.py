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
NO_GUIDANCE = "none"  # a run that ends with what it begins with
LATEST_WARM, EARLIEST_WARM = 0.5, 0.05  # shares of the timesteps, at most, after a warm start
STEPS = {"draft": 260, "standard": 900, "high": 2400}
VIEWS = {"draft": 4, "standard": 4, "high": 6}


def check_guidance(request: TextureRequest) -> None:
    """Raises ProtocolError where the request's guidance is none of ours."""
    if request.guidance not in GUIDANCE and not (request.guidance == NO_GUIDANCE and request.start != "uniform"):
        raise protocol.ProtocolError(
            f"guidance must be one of {', '.join(GUIDANCE)}, or {NO_GUIDANCE} with the start four_views or "
            "latent_paint."
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


def make_plan(request: TextureRequest, model: Denoiser) -> Plan:
    """Raises ProtocolError for options that the guidance does not have."""
    plan = Plan(
        steps=0 if request.guidance == NO_GUIDANCE else request.steps or STEPS[request.quality],
        views=request.views or VIEWS[request.quality],
        render_size=request.render_size or model.render_size,
        finest=min(request.texture_size, EFFECTIVE_SIZE),
        guidance=request.guidance,
        guidance_scale=model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        pattern_scale=request.pattern_scale,
        seed=request.seed,
        options=_options(request),
        all_detail_at=Plan.all_detail_at if request.start == "uniform" else 0.0,
    )
    # A run that goes on from maps goes on with all they show.
    return replace(plan, all_detail_at=0.0, normal_from=0.0) if goes_on(request) else plan


def second_plan(plan: Plan, request: TextureRequest, model: Denoiser) -> Plan:
    """How the second stage of a cascade goes on: larger pictures, half as many steps, small changes of all detail."""
    options = replace(
        plan.options, highest=(0.6, 0.3), lowest=(0.1, 0.02), guidance_scale_end=None, joint_views=False,
        deep_image_prior=False,  # it would begin anew
    )  # fmt: skip
    return replace(
        plan,
        steps=max(1, plan.steps // 2),
        render_size=model.render_size,
        finest=min(request.texture_size, REFINED_SIZE),
        guidance_scale=model.guidance_scale,
        rate=plan.rate / 3,
        normal_from=0.0,
        all_detail_at=0.0,
        average_from=0.2,
        binary_from=0.0,
        options=options,
    )


def goes_on(request: TextureRequest) -> bool:
    """Whether the run changes the maps it starts from, instead of painting them anew."""
    return request.start_maps and request.strength < 1.0


def first_step(request: TextureRequest, plan: Plan) -> int:
    """Where a run begins: one that goes on from maps leaves out the steps that would paint them anew."""
    return min(round(plan.steps * (1 - request.strength)), plan.steps - 1) if goes_on(request) else 0


def _options(request: TextureRequest) -> Options:
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
    if request.start != "uniform":
        # Late timesteps would paint over what is there already.
        options = replace(
            options,
            highest=tuple(min(share, LATEST_WARM) for share in options.highest),
            lowest=tuple(min(share, EARLIEST_WARM) for share in options.lowest),
        )
    return replace(options, negative_prompt=bool(request.negative_prompt.strip()))
