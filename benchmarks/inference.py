"""Report decoding and image sampling against PyTorch at equal shapes, on the same machine.

    pip install '.[torch]'
    python benchmarks/inference.py                      # the figures of benchmarks/README.md
    python benchmarks/inference.py --layers 2 --new-tokens 8 --repeats 3    # a quick look
    XLA_PYTHON_CLIENT_MEM_FRACTION=.5 python benchmarks/inference.py --dtype bfloat16 \\
        --width 2048 --mlp 5632 --layers 24 --heads 16 --vocab 102400   # published size, on a GPU

Decoding: tokens per second after a prefilled context, against `LlamaForCausalLM.generate` with a
KV cache (SDPA attention). Sampling: seconds per guided Euler step, against the plain PyTorch step
of `torch_reference.py`, one branch at a time. Both sides float32 unless told otherwise, on the same
device; ratios are pairwise, with their spread. The bound of decoding is bytes of weights and cache
read per token over the copy bandwidth; that of sampling is FLOPs over the rate of a large matrix
product.
"""

import copy
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from common import (
    copy_bandwidth,
    interleaved,
    machine,
    matmul_rate,
    print_table,
    ratio,
    to_torch,
    torch_wait,
    use_torch_device,
)
from torch_reference import TorchUniX

from unix_jax.config import DecoderConfig, SpecialTokens, UniXConfig, VisionConfig
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, bucket, image_context, prefill
from unix_jax.inference.sampling import Guidance, initial_state, sample_latents
from unix_jax.models.unix import UniX, init_params, unroll_params
from unix_jax.preprocessing.layout import TextSplit, lay_out


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    width: int = 512
    """Width of the decoder."""
    mlp: int = 1408
    """Width of the MLP."""
    layers: int = 8
    heads: int = 8
    vocab: int = 8192
    context: int = 700
    """Cached positions before decoding starts."""
    new_tokens: int = 64
    """Tokens decoded in one run."""
    steps: int = 4
    """Euler steps in one run."""
    prompt: int = 64
    """Number of tokens of the text to generate an image from."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes of decoding."""
    sizes: tuple[int, ...] = (256, 512)
    """Sides of the sampled image in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and computation."""
    layers_as: Literal["auto", "scanned", "unrolled"] = "auto"
    """auto: as the pipeline has them on this device."""
    repeats: int = 7


def build(a: Arguments) -> tuple[UniXConfig, dict[str, Any], UniX]:
    """A random model of these shapes; llm2vae is not left at its zero start."""
    config = UniXConfig(
        decoder=DecoderConfig(
            a.width, a.mlp, a.layers, a.heads, a.heads, a.width // a.heads, a.vocab, 4096
        ),
        vision=VisionConfig(64, 16, 64, 1, 4),
        special_tokens=SpecialTokens(0, 1, 2, 3, 4),
    )

    @jax.jit
    def weights() -> dict[str, Any]:
        params = init_params(config, jax.random.key(0))
        shape = params["llm2vae"]["kernel"].shape
        params["llm2vae"]["kernel"] = 0.02 * jax.random.normal(jax.random.key(1), shape)
        return jax.tree.map(lambda x: x.astype(a.dtype), params)

    scan = jax.default_backend() == "tpu" if a.layers_as == "auto" else a.layers_as == "scanned"
    return config, weights(), UniX(config, jnp.dtype(a.dtype), scan_layers=scan)


def for_model(model: UniX, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters in the form that the pipeline would hold."""
    if model.scan_layers:
        return params
    return unroll_params(jax.tree.map(lambda x: x, params), model.config.decoder.num_layers)


def decoding_bytes(a: Arguments, batch: int) -> int:
    """Bytes of weights and cache that one step of the loop must read."""
    layer = 4 * a.width**2 + 3 * a.width * a.mlp
    positions = a.context + a.new_tokens / 2
    cache = 2 * batch * positions * a.width
    return int(jnp.dtype(a.dtype).itemsize * (a.layers * (layer + cache) + a.width * a.vocab))


def llama(a: Arguments) -> Any:
    """transformers' Llama of the same shapes, attention bias included."""
    config = transformers.LlamaConfig(
        hidden_size=a.width, intermediate_size=a.mlp, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.heads, vocab_size=a.vocab,
        max_position_embeddings=4096, attention_bias=True, tie_word_embeddings=False,
        attn_implementation="sdpa", bos_token_id=0, eos_token_id=None, pad_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(getattr(torch, a.dtype)).eval()


def benchmark_decoding(
    a: Arguments, model: UniX, params: dict[str, Any], bandwidth: float
) -> list[list[str]]:
    rows = []
    reference = llama(a)
    for batch in a.batches:
        ids = np.random.default_rng(0).integers(5, a.vocab, (batch, a.context))
        layout = lay_out([[[TextSplit(row.tolist())]] for row in ids], model.config)
        capacity = bucket(a.context + a.new_tokens)
        cache, _ = prefill(model, params, as_batch(layout), capacity)
        new = decoding.NewRows(
            cache,
            jnp.asarray(layout.next_position),
            jax.random.split(jax.random.key(0), batch),
            limit=jnp.full(batch, a.new_tokens),
            temperature=jnp.zeros(batch),
            top_p=jnp.ones(batch),
            prompts=jnp.zeros((batch, 0), jnp.int32),
        )
        # An eos that no token equals: both sides write all tokens.
        config = dataclasses.replace(
            model.config, special_tokens=dataclasses.replace(model.config.special_tokens, eos=-1)
        )
        endless = dataclasses.replace(model, config=config)

        def ours(
            new: decoding.NewRows = new, batch: int = batch, endless: UniX = endless
        ) -> object:
            state = decoding.start(
                # The loop consumes its state, so each run starts from a copy.
                jax.tree.map(jnp.copy, new),
                context=a.context, bos=0, eos=-1, buffer=a.new_tokens,
            )  # fmt: skip
            state = decoding.decode_until(
                endless, params, state, np.int32(a.new_tokens), np.int32(batch), choice="greedy"
            )
            assert int(state.count.min()) == a.new_tokens
            return state.tokens.block_until_ready()

        prompt = to_torch(ids)
        with torch.inference_mode():
            past = reference(prompt, use_cache=True).past_key_values
        # `generate` runs the tokens that the cache does not hold: here, the one after the context.
        following = torch.cat([prompt, torch.zeros((batch, 1), dtype=torch.long)], dim=1)

        def theirs(past: Any = past, following: torch.Tensor = following) -> object:
            with torch.inference_mode():
                out = reference.generate(
                    following, past_key_values=copy.deepcopy(past), do_sample=False,
                    max_new_tokens=a.new_tokens, attention_mask=torch.ones_like(following),
                )  # fmt: skip
            torch_wait()
            assert out.shape[1] == a.context + 1 + a.new_tokens
            return out

        timings = interleaved({"ours": ours, "transformers": theirs}, a.repeats)
        per_second = {k: batch * a.new_tokens / t.median for k, t in timings.items()}
        bound = batch * bandwidth / decoding_bytes(a, batch)
        rows.append(
            [
                str(batch),
                f"{per_second['ours']:.0f}",
                f"{per_second['transformers']:.0f}",
                ratio(timings["transformers"], timings["ours"]),
                f"{bound:.0f}",
                f"{per_second['ours'] / bound:.0%}",
            ]
        )
    return rows


def sampling_flops(a: Arguments, tokens: int) -> int:
    """Of one guided step: two branches, projections, MLP and attention."""
    per_token = 2 * a.layers * (4 * a.width**2 + 3 * a.width * a.mlp)
    attention = 4 * a.layers * (tokens + 2) * (tokens + 2 + a.prompt / 2) * a.width
    return int(2 * ((tokens + 2) * per_token + attention))


def benchmark_sampling(
    a: Arguments, model: UniX, params: dict[str, Any], stacked: dict[str, Any], rate: float
) -> list[list[str]]:
    rows = []
    reference = TorchUniX(model.config, stacked)
    ids = [0, *np.random.default_rng(1).integers(5, a.vocab, a.prompt - 2).tolist(), 1]
    past = reference.prefill(ids)
    grid = np.linspace(1, 0.5, a.steps + 1).astype(np.float32)
    for size in a.sizes:
        side = size // model.config.latent_downsample
        context = image_context(model, params, [ids], (side, side), guided=True)
        noise = jax.random.normal(jax.random.key(2), (1, side * side, 16))
        scale = jnp.float32
        guidance = Guidance(scale(2), scale(1), scale(0.4), scale(1), scale(0))

        def ours(context: Any = context, noise: Any = noise, guidance: Any = guidance) -> Any:
            return sample_latents(
                model, params, context, initial_state(noise), jnp.asarray(grid), jnp.int32(0),
                jnp.int32(a.steps), guidance, guided=True, image_branch="none", renorm="global",
            ).latents.block_until_ready()  # fmt: skip

        position_ids, start = to_torch(context.latent_position_ids)[0], to_torch(noise)[0]

        def theirs(position_ids: Any = position_ids, start: Any = start) -> torch.Tensor:
            x = start
            for t, following in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
                v = reference.velocity(x, t, position_ids, len(ids), past)
                empty = reference.velocity(x, t, position_ids, 0, None)
                guided = empty + 2.0 * (v - empty)
                factor = (v.norm() / (guided.norm() + 1e-8)).clamp(0, 1)
                x = x - guided * factor * (t - following)
            torch_wait()
            return x

        difference = np.abs(np.asarray(ours())[0] - theirs().cpu().numpy()).max()
        exact = a.dtype == "float32" and jax.default_backend() == "cpu"
        assert difference < (1e-3 if exact else 0.2), f"the two sides differ by {difference}"
        timings = interleaved({"ours": ours, "torch": theirs}, a.repeats)
        per_step = {name: timing.median / a.steps for name, timing in timings.items()}
        bound = sampling_flops(a, side * side) / rate
        rows.append(
            [
                f"{size} x {size}",
                f"{1e3 * per_step['ours']:.3g}",
                f"{1e3 * per_step['torch']:.3g}",
                ratio(timings["torch"], timings["ours"]),
                f"{1e3 * bound:.3g}",
                f"{bound / per_step['ours']:.0%}",
            ]
        )
    return rows


def main(a: Arguments) -> None:
    device = use_torch_device()
    _, stacked, model = build(a)
    params = for_model(model, stacked)
    bandwidth, rate = copy_bandwidth(), matmul_rate(a.dtype)
    print(machine())
    print(f"torch {torch.__version__} on {device}, transformers {transformers.__version__}")
    print(f"copy {bandwidth / 1e9:.1f} GB/s (read + written), {a.dtype} {rate / 1e9:.0f} GFLOP/s")
    shapes = f"{a.dtype}, width {a.width}, {a.layers} layers, {a.heads} heads, MLP {a.mlp}"
    print_table(
        f"Decoding, tokens/s: {shapes}, vocabulary {a.vocab}, {a.context} cached positions",
        ["batch", "ours", "transformers", "ratio (spread)", "bound", "of the bound"],
        benchmark_decoding(a, model, params, bandwidth),
    )
    print_table(
        f"Sampling, ms per guided step: {shapes}, two streams, prompt {a.prompt}",
        ["image", "ours", "PyTorch", "ratio (spread)", "bound", "of the bound"],
        benchmark_sampling(a, model, params, stacked, rate),
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
