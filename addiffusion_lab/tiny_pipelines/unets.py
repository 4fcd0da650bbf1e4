"""UNets other than Stable Diffusion's: Kolors, Kandinsky, DreamLite, DeepFloyd IF, Stable Cascade, latent diffusion."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from addiffusion_lab.tiny_pipelines import parts
from addiffusion_lab.tiny_pipelines.builder import Builder
from addiffusion_lab.tiny_pipelines.diffusion_transformers import CFG, NOISE
from addiffusion_lab.tiny_pipelines.flux import scheduler
from addiffusion_lab.tiny_pipelines.stable_diffusion import UNET, clip, parts_xl


def chat_glm_tokenizer() -> Any:
    """Replaces Kolors' tokenizer, which needs sentencepiece: also returns the positions of the tokens."""

    class WithPositions(transformers.Qwen2Tokenizer):
        model_input_names = ("input_ids", "attention_mask", "position_ids")  # type: ignore[assignment]

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            encoded = super().__call__(*args, **kwargs)
            if isinstance(encoded["attention_mask"], torch.Tensor):  # lists are only counted
                encoded["position_ids"] = (encoded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            return encoded

    return parts.qwen_tokenizer(
        "[gMASK]", "sop", starts_with=("[gMASK]", "sop"), padding_side="left", tokenizer_class=WithPositions
    )


def kolors() -> Any:
    """Kolors: Stable Diffusion XL's UNet on a ChatGLM."""
    from diffusers.pipelines.kolors import pipeline_kolors  # diffusers exports it only if sentencepiece is installed
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    tokenizer = chat_glm_tokenizer()
    text_encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=3,
            padded_vocab_size=len(tokenizer),
            hidden_size=16,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=64,
            add_qkv_bias=True,
            multi_query_attention=True,
            original_rope=True,
        ),
        empty_init=False,
    )
    for name, weight in text_encoder.named_parameters():
        if "norm" in name:  # uninitialised memory
            torch.nn.init.ones_(weight)
    sdxl = parts_xl(encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    return pipeline_kolors.KolorsPipeline(
        vae=sdxl["vae"], text_encoder=text_encoder, tokenizer=tokenizer, unet=sdxl["unet"], scheduler=sdxl["scheduler"]
    )


def dreamlite(mobile: bool = False) -> Any:
    """DreamLite: the UNet's input is the latents next to an empty image, and half of its output is used."""
    from diffusers.models.unets.unet_dreamlite import DreamLiteUNetModel

    processor = parts.qwen3_vl_processor()
    return (diffusers.DreamLiteMobilePipeline if mobile else diffusers.DreamLitePipeline)(
        text_encoder=parts.qwen3_vl(processor.tokenizer),
        tokenizer=processor.tokenizer,
        processor=processor,
        vae=parts.tiny_autoencoder(),
        unet=DreamLiteUNetModel(
            sample_size=8,
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=16,
            attention_head_dim=8,
            addition_embed_type="time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16,
            ff_mult=2,
        ),
        scheduler=scheduler(use_dynamic_shifting=True),
    )


def movq(levels: int = 2) -> Any:
    """The autoencoder of Kandinsky."""
    return diffusers.VQModel(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        num_vq_embeddings=12,
        norm_num_groups=8,
        norm_type="spatial",
        vq_embed_dim=4,
    )


def kandinsky3() -> Any:
    """Kandinsky 3: prompts are trimmed to their lengths."""
    return diffusers.Kandinsky3Pipeline(
        **parts.text(parts.t5, parts.t5_tokenizer()),
        unet=diffusers.Kandinsky3UNet(
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(16, 16),
            cross_attention_dim=8,
            encoder_hid_dim=32,
        ),
        scheduler=diffusers.DDPMScheduler(**NOISE, clip_sample=False, steps_offset=1),
        movq=movq(levels=4),
    )


def kandinsky22() -> Any:
    """The decoder of Kandinsky 2.2: it takes the embedding of an image."""
    return diffusers.KandinskyV22Pipeline(
        unet=parts.unet(
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim=16,
            encoder_hid_dim_type="image_proj",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift",
        ),
        scheduler=diffusers.DDIMScheduler(**NOISE, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        movq=movq(levels=4),
    )


def kandinsky22_inputs(prompt: str) -> dict[str, torch.Tensor]:
    """An embedding for a prompt, and one for the empty prompt."""
    generator = torch.Generator().manual_seed(sum(prompt.encode()))
    embedding = torch.randn(1, 16, generator=generator)
    return {"image_embeds": embedding, "negative_image_embeds": torch.zeros(1, 16)}


def deepfloyd() -> Any:
    """The first stage of DeepFloyd IF: pixels, and a variance that the network predicts."""
    return diffusers.IFPipeline(
        **parts.text(parts.t5, parts.t5_tokenizer()),
        unet=parts.unet(
            sample_size=16,
            in_channels=3,
            out_channels=6,
            cross_attention_dim=32,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
            class_embed_type=None,
            cross_attention_norm="group_norm",
        ),
        # Without the released thresholding: with clipping at every step, tiny networks amplify 1e-7 to 1e-4.
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def cascade() -> Any:
    """The decoder of Stable Cascade: it takes the embedding of an image in addition to the prompt."""
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    tokenizer, text_encoder = clip(projection=True)
    return diffusers.StableCascadeDecoderPipeline(
        decoder=StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            conditioning_dim=16,
            block_out_channels=(16, 32),
            num_attention_heads=(0, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(1, 1),
            block_types_per_layer=(
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            clip_text_pooled_in_channels=16,
            clip_seq=1,
            effnet_in_channels=4,
            patch_size=1,
            kernel_size=3,
            dropout=(0.0, 0.0),
            self_attn=True,
            switch_level=(False,),
            timestep_ratio_embedding_dim=16,
        ),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=12),
        latent_dim_scale=4.0,
    )


def cascade_inputs(prompt: str) -> dict[str, Any]:
    """A prompt, and one embedding for all prompts."""
    generator = torch.Generator().manual_seed(0)
    return {"prompt": prompt, "image_embeddings": torch.randn(1, 4, 2, 2, generator=generator)}


def latent_diffusion() -> Any:
    """The original latent diffusion model."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    tokenizer = parts.bert_tokenizer()
    bert = LDMBertConfig(
        vocab_size=len(tokenizer),
        encoder_layers=2,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=16,
        init_std=0.3,
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=parts.autoencoder(levels=4),
        bert=LDMBertModel(bert),
        tokenizer=tokenizer,
        unet=parts.unet(),
        scheduler=diffusers.DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
    )


BUILDERS = {
    "kolors": Builder(kolors, (2,), {**CFG, "max_sequence_length": 32}, **UNET),
    "dreamlite": Builder(dreamlite, (2,), CFG, **UNET),
    "dreamlite_mobile": Builder(lambda: dreamlite(mobile=True), (1,), guidance=None, **UNET),
    "kandinsky3": Builder(kandinsky3, (2,), CFG, (64, 64), **UNET),
    "deepfloyd_if": Builder(deepfloyd, (2,), {**CFG, "clean_caption": False}, **UNET),
    "cascade_decoder": Builder(
        cascade, (2,), CFG, (32, 32), sized=False, denoisers=("decoder",), inputs=cascade_inputs
    ),
    "latent_diffusion": Builder(latent_diffusion, (2,), {**CFG, "output_type": "np"}, (64, 64), **UNET),
}
