# SPDX-License-Identifier: GPL-3.0-or-later
"""Model folders of every family at toy size, saved by the real diffusers and transformers classes. No network."""

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    ControlNetModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    IFPipeline,
    IFSuperResolutionPipeline,
    PNDMScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImageControlNetModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def clip_tokenizer():
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )


def clip_encoder(projection=None, width=16):
    config = transformers.CLIPTextConfig(
        vocab_size=56, hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=54, eos_token_id=55, pad_token_id=55,
        projection_dim=projection or width,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def t5_tokenizer():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(mark + letter, -2.0 - len(mark)) for mark in ("▁", "") for letter in LETTERS]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_encoder(width=16):
    config = transformers.T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2, is_gated_act=True,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def qwen_tokenizer():
    vocab = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocab[special] = len(vocab)
    return transformers.Qwen2Tokenizer(vocab=vocab, merges=[], chat_template=CHAT)


def qwen_encoder(layers, width=8):
    config = transformers.Qwen3Config(
        vocab_size=260, hidden_size=width, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config)


def unet(channels, cross, **more):
    return UNet2DConditionModel(
        in_channels=channels, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=cross, attention_head_dim=4,
        **{"sample_size": 8, "out_channels": channels, **more},
    )  # fmt: skip


def vae(channels=4, kind=AutoencoderKL, **more):
    return kind(
        in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **{"layers_per_block": 1, "sample_size": 16, **more},
    )  # fmt: skip


def schedule(**more):
    return {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **more}


def pixel(size=8):
    learned = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True)
    network = unet(3, 12, out_channels=6, encoder_hid_dim=16, sample_size=size)
    return IFPipeline(t5_tokenizer(), t5_encoder(), network, learned, None, None, None, requires_safety_checker=False)


def second_stage(size=32):
    learned = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True)
    network = unet(6, 12, out_channels=6, encoder_hid_dim=16, sample_size=size, class_embed_type="timestep")
    return IFSuperResolutionPipeline(
        t5_tokenizer(), t5_encoder(), network, learned, DDPMScheduler(beta_schedule="squaredcos_cap_v2"), None, None,
        None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion(prediction="epsilon"):
    scheduler = PNDMScheduler(**schedule(prediction_type=prediction, skip_prk_steps=True, steps_offset=1))
    return StableDiffusionPipeline(
        vae(), clip_encoder(), clip_tokenizer(), unet(4, 16), scheduler, None, None, requires_safety_checker=False
    )


def stable_diffusion_v():
    return stable_diffusion("v_prediction")


def sdxl():
    network = unet(
        4, 28, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae(scaling_factor=0.13025), clip_encoder(), clip_encoder(12, 12), clip_tokenizer(), clip_tokenizer(),
        network, PNDMScheduler(**schedule()), add_watermarker=False,
    )  # fmt: skip


def sd3(t5=True):
    network = SD3Transformer2DModel(  # the last layer hears of no control
        sample_size=8, patch_size=2, in_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=28, out_channels=8,
        pos_embed_max_size=16,
    )  # fmt: skip
    third = (t5_encoder(32), t5_tokenizer()) if t5 else (None, None)
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(8, scaling_factor=1.5305, shift_factor=0.0609),
        clip_encoder(16, 16), clip_tokenizer(), clip_encoder(12, 12), clip_tokenizer(), *third,
    )  # fmt: skip


def klein(distilled=False):
    network = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    autoencoder = vae(4, AutoencoderKLFlux2)
    generator = torch.Generator().manual_seed(5)
    autoencoder.bn.running_mean.copy_(torch.randn(16, generator=generator))
    autoencoder.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    return Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), autoencoder, qwen_encoder(28), qwen_tokenizer(),
        network, is_distilled=distilled,
    )  # fmt: skip


def z_image():
    network = ZImageTransformer2DModel(
        in_channels=8, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
        axes_dims=[2, 2, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0), vae(8, scaling_factor=0.3611, shift_factor=0.1159),
        qwen_encoder(2), qwen_tokenizer(), network,
    )  # fmt: skip


def control(network):
    """A ControlNet for this UNet, as trained ones are: not one of its layers is zero."""
    return trained(ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 8)))


def sd3_control(shared=False, **more):
    """For `sd3`; a `shared` one is of the kind of SD 3.5 Large's: it takes positions from the model, and no words."""
    words = {"joint_attention_dim": None, "use_pos_embed": False} if shared else {"joint_attention_dim": 32}
    settings = {
        "sample_size": 8, "patch_size": 2, "in_channels": 8, "num_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "caption_projection_dim": 16, "pooled_projection_dim": 28, "out_channels": 8,
        "pos_embed_max_size": 16, "force_zeros_for_pooled_projection": not shared,
    }  # fmt: skip
    return trained(SD3ControlNetModel(**{**settings, **words, **more}))


def z_image_control(channels=8, **more):
    settings = {
        "control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": channels, "dim": 16,
        "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    }  # fmt: skip
    return trained(ZImageControlNetModel(**{**settings, **more}))


def trained(net):
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


FAMILIES = {
    "pixel": pixel,
    "sd": stable_diffusion,
    "sd_v": stable_diffusion_v,
    "sdxl": sdxl,
    "sd3": sd3,
    "klein": klein,
    "z_image": z_image,
}


def save(name, folder, **settings):
    """Write the toy model `name` into `folder`, the same one each time."""
    torch.manual_seed(0)
    pipeline = {**FAMILIES, "second": second_stage}[name](**settings)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_control(name, folder, **settings):
    """Write a ControlNet for the toy model `name` into `folder`."""
    torch.manual_seed(1)
    flows = {"sd3": sd3_control, "z_image": z_image_control}
    net = flows[name](**settings) if name in flows else control(FAMILIES[name]().unet)
    net.save_pretrained(folder, safe_serialization=True)
    return folder


if __name__ == "__main__":
    import sys

    save(sys.argv[1], sys.argv[2])
