"""Golden files of the diffusion U-Net, made with diffusers 0.42 and PyTorch on a CPU.

    pip install torch==2.13.0 transformers safetensors && pip install --no-deps diffusers==0.42.1
    python tests/golden/make_unet.py tests/golden

Writes four folders of random weights, in the form that `unix-jax convert check CHECKPOINT
GOLDEN_DIR` reads: `unet_mixed` (blocks with and without attention at other levels on the way down
and up, other numbers of layers, odd sizes, and gradients), `unet_joint` (UniX's cross-modal
attention, written as a processor for diffusers' U-Net), and the whole path of two pipelines with
v-prediction and zero-terminal-SNR scaling: `unet_bert` (Euler, `guidance_rescale`, a pickle) and
`unet_clip` (DDIM, keys of older libraries). `unet_schedulers` has runs of samplers alone.
"""

import json
import shutil
import string
import sys
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

# --------------------------------------------------------------------------- shared


def randomised(module, seed):
    """Weights of a size at which every part of the network counts in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(("norm" in name and name.endswith("weight")) + 0.1 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval()


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def save(directory, tensors, info):
    tensors = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    save_file(tensors, directory / "golden.safetensors")
    (directory / "golden.json").write_text(json.dumps(info, indent=1) + "\n")


def gradients(unet, latents, loss_of, prefix):
    """{prefix + name: gradient} of a loss by every parameter, and by the latents."""
    latents = latents.clone().requires_grad_()
    unet.zero_grad()
    loss_of(latents).backward()
    found = {f"{prefix}{n}": p.grad for n, p in unet.named_parameters() if p.grad is not None}
    return found | {f"{prefix}latents": latents.grad}


# --------------------------------------------------------------------------- mixed blocks

MIXED = {
    "sample_size": 10,
    "block_out_channels": [16, 24, 32],
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": [1, 2, 1],
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [2, 3, 4],
    "cross_attention_dim": 20,
    "use_linear_projection": True,
    "norm_eps": 1e-4,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_dim": 40,
    "in_channels": 3,
    "out_channels": 5,
}


def mixed(directory):
    unet = randomised(UNet2DConditionModel(**MIXED), 1)
    unet.save_pretrained(directory / "checkpoint" / "unet")
    text, latents, odd = draw(2, 2, 7, 20), draw(3, 2, 3, 12, 8), draw(4, 2, 3, 11, 7)
    target = draw(5, 2, 5, 12, 8)
    tensors = {
        "text.hidden": text,
        "unet.latents": latents,
        "unet.latents_odd": odd,
        "unet.target": target,
        "unet.out.t3": unet(latents, 3, text).sample,
        "unet.out.t987": unet(latents, 987, text).sample,
        "unet.out_odd.t500": unet(odd, 500, text).sample,
    }
    info = {"kind": "unet", "gradients": {"timestep": 500}}
    tensors |= gradients(
        unet, latents, lambda x: F.mse_loss(unet(x, 500, text).sample, target), "unet.grad."
    )
    save(directory, tensors, info)


# --------------------------------------------------------------------------- joint attention

JOINT = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
}
DECODER = {
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}


def rotated(x, position):
    """x [B, N, T, H] rotated at one position per row, by halves as Llama does."""
    half = DECODER["head_dim"] // 2
    frequency = DECODER["rope_theta"] ** (-torch.arange(half) / half)
    angles = (position[:, None] * frequency).repeat(1, 2)[:, None, None]
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * angles.cos() + turned * angles.sin()


class JointProcessor:
    """One softmax over a block's own keys and those that a decoder layer has cached."""

    def __init__(self, keys, values, valid, position):
        self.keys, self.values, self.valid, self.position = keys, values, valid, position

    def __call__(self, attn, hidden_states, *args, **kwargs):
        def heads(y):
            return y.unflatten(-1, (-1, DECODER["head_dim"])).transpose(1, 2)

        query = rotated(attn.norm_q(heads(attn.to_q(hidden_states))), self.position)
        key = rotated(attn.norm_k(heads(attn.to_k(hidden_states))), self.position)
        key = torch.cat([self.keys.transpose(1, 2), key], dim=2)
        value = torch.cat([self.values.transpose(1, 2), heads(attn.to_v(hidden_states))], dim=2)
        own = torch.ones(hidden_states.shape[:2], dtype=torch.bool)
        mask = torch.cat([self.valid, own], dim=1)[:, None, None]
        out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def joint(directory):
    unet = UNet2DConditionModel(**JOINT)
    keys, values = draw(11, 4, 2, 5, 2, 8), draw(12, 4, 2, 5, 2, 8)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], dtype=torch.bool)
    position = torch.tensor([9, 4])
    ordered = [unet.down_blocks, [unet.mid_block], unet.up_blocks]
    blocks = [
        block
        for part in ordered
        for level in part
        for attention in getattr(level, "attentions", [])
        for block in attention.transformer_blocks
    ]
    for i, block in enumerate(blocks):
        layer = round(i * (DECODER["num_layers"] - 1) / (len(blocks) - 1))
        block.attn1 = Attention(
            block.attn1.query_dim,
            heads=DECODER["num_heads"],
            kv_heads=DECODER["num_kv_heads"],
            dim_head=DECODER["head_dim"],
            qk_norm="rms_norm",
            eps=DECODER["rms_norm_eps"],
            processor=JointProcessor(keys[layer], values[layer], valid, position),
        )
        block.attn2 = block.norm2 = None
    unet = randomised(unet, 13)
    unet.save_pretrained(directory / "checkpoint" / "unet")
    text, latents, target = draw(1, 2, 1, 8), draw(14, 2, 4, 8, 6), draw(15, 2, 4, 8, 6)
    tensors = {
        "unet.latents": latents,
        "unet.target": target,
        "joint.valid": valid,
        "joint.position": position,
        "unet.out.t3": unet(latents, 3, text).sample,
        "unet.out.t801": unet(latents, 801, text).sample,
    }
    tensors |= {f"joint.keys.{i}": x for i, x in enumerate(keys)}
    tensors |= {f"joint.values.{i}": x for i, x in enumerate(values)}
    tensors |= gradients(
        unet, latents, lambda x: F.mse_loss(unet(x, 500, text).sample, target), "unet.grad."
    )
    save(directory, tensors, {"kind": "joint", "joint": DECODER, "gradients": {"timestep": 500}})


# --------------------------------------------------------------------------- pipelines

PROMPTS = ["Large  left effusion.", "No effusions", "LEFT left left left left left left left no"]
UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
}
VAE = {
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_act": "gelu"}


def write_bert_tokenizer(directory):
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*control, "no", "effusion", "left", "right", "##s", ".", "large"]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 12}) + "\n"
    )
    return BertTokenizer(vocab=str(directory / "vocab.txt")), len(words)


def write_clip_tokenizer(directory):
    letters = [*"!.", *string.ascii_lowercase]
    words = [*letters, *(f"{x}</w>" for x in letters), "le", "ft</w>", "left</w>", "ef", "eff"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    merges = ["#version: 0.2", "l e", "f t</w>", "le ft</w>", "e f", "ef f"]
    (directory / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (directory / "merges.txt").write_text("\n".join(merges) + "\n")
    start, end = ({"bos_token": words[-2]}, {"eos_token": words[-1], "unk_token": words[-1]})
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "pad_token": "!"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | start | end) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(directory / "vocab.json"), merges=str(directory / "merges.txt"), pad_token="!"
    )
    return tokenizer, len(words)


def old_names(directory):
    """A `vae` folder with the keys of diffusers before 0.17, as published ones have."""
    file = directory / "diffusion_pytorch_model.safetensors"
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in load_file(file).items():
        for new, old in renames.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        renamed[key] = tensor
    save_file(renamed, file, {"format": "pt"})


def prefixed(directory):
    """A `text_encoder` folder with the keys of transformers 4, as published ones have."""
    file = directory / "model.safetensors"
    tensors = {f"text_model.{key}": x for key, x in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(tensors, file, {"format": "pt"})


def pipeline(directory, kind, scheduler, run, seed):
    """The whole path of `StableDiffusionPipeline`, written out."""
    checkpoint = directory / "checkpoint"
    (checkpoint / "tokenizer").mkdir(parents=True)
    write = write_bert_tokenizer if kind == "bert" else write_clip_tokenizer
    tokenizer, words = write(checkpoint / "tokenizer")
    sizes = {"vocab_size": words, "intermediate_size": 32, "max_position_embeddings": 16}
    text_encoder = (
        BertModel(BertConfig(**TEXT, **sizes))
        if kind == "bert"
        else CLIPTextModel(CLIPTextConfig(**TEXT, **sizes))
    )
    unet = randomised(UNet2DConditionModel(**UNET), seed)
    vae = randomised(AutoencoderKL(**VAE), seed + 1)
    text_encoder = randomised(text_encoder, seed + 2)
    scheduler.save_pretrained(checkpoint / "scheduler")
    text_encoder.save_pretrained(checkpoint / "text_encoder")
    if kind == "bert":
        unet.save_pretrained(checkpoint / "unet", safe_serialization=False)
        vae.save_pretrained(checkpoint / "vae", variant="fp16")
    else:
        unet.save_pretrained(checkpoint / "unet")
        vae.save_pretrained(checkpoint / "vae")
        old_names(checkpoint / "vae")
        prefixed(checkpoint / "text_encoder")
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    index = {
        name: [type(part).__module__.partition(".")[0], type(part).__name__]
        for name, part in (parts | {"scheduler": scheduler}).items()
    }
    index = {"_class_name": "StableDiffusionPipeline", **index}
    (checkpoint / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")

    def encode(texts):
        return tokenizer(
            texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
        ).input_ids

    with torch.no_grad():
        ids, rows = encode(PROMPTS), len(PROMPTS)
        hidden = text_encoder(ids)[0]
        both = torch.cat([text_encoder(encode([""] * rows))[0], hidden])
        noise, pixels = draw(seed + 3, rows, 4, 6, 8), draw(seed + 4, 1, 3, 12, 16).clamp(-1, 1)
        scheduler.set_timesteps(run["num_inference_steps"])
        latents = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            plain, text = unet(scaled, t, both).sample.chunk(2)
            guided = plain + run["guidance_scale"] * (text - plain)
            if run["guidance_rescale"]:
                guided = rescale_noise_cfg(guided, text, run["guidance_rescale"])
            latents = scheduler.step(guided, t, latents).prev_sample
        tensors = {
            "text.ids": ids,
            "text.hidden": hidden,
            "vae.pixels": pixels,
            "vae.moments": vae.encode(pixels).latent_dist.parameters,
            "sample.noise": noise,
            "sample.latents": latents,
            "sample.image": vae.decode(latents / vae.config.scaling_factor).sample,
        }
    save(directory, tensors, {"kind": "pipeline", "prompts": PROMPTS, "sample": run})


def bert(directory):
    scheduler = EulerDiscreteScheduler(
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    run = {"num_inference_steps": 20, "guidance_scale": 4.0, "guidance_rescale": 0.7}
    pipeline(directory, "bert", scheduler, run, 21)


def clip(directory):
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )
    run = {"num_inference_steps": 13, "guidance_scale": 3.0, "guidance_rescale": 0.0}
    pipeline(directory, "clip", scheduler, run, 31)


# --------------------------------------------------------------------------- schedulers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    ("DDIMScheduler", {"timestep_spacing": "linspace", "prediction_type": "sample"}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 2.0}),
    ("DDIMScheduler", SD | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                            "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"num_train_timesteps": 100, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", SD | {"prediction_type": "v_prediction",
                                     "rescale_betas_zero_snr": True}),
    ("EulerDiscreteScheduler", SD | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
                                     "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min", "prediction_type": "sample"}),
    ("EulerDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
]  # fmt: skip


def schedulers(directory):
    """Whole runs of 7 steps, with a formula in the place of the network."""
    tensors, runs = {"noise": draw(41, 1, 2, 3, 2)}, []
    for i, (name, fields) in enumerate(SCHEDULERS):
        scheduler = getattr(diffusers, name)(**fields)
        scheduler.set_timesteps(7)
        x = tensors["noise"] * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            out = 0.6 * scaled - 0.3 + 0.2 * torch.cos(t / 100)
            x = scheduler.step(out, t, x).prev_sample
        tensors[f"timesteps.{i}"] = scheduler.timesteps.float()
        tensors[f"out.{i}"] = x
        runs.append({"_class_name": name} | fields)
    save(directory, tensors, {"runs": runs})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    for make in (mixed, joint, bert, clip, schedulers):
        folder = out / f"unet_{make.__name__}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        print(folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), "bytes")
