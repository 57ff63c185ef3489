"""The two-stream denoising step in plain PyTorch, as an eager port would run it.

One branch at a time, as the published sampler does, with `scaled_dot_product_attention`. Takes
this project's parameters, so that both sides can be checked to give the same velocity. Computes in
the type of the parameters, with norms and rotations in float32.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import to_torch

from unix_jax.config import UniXConfig


def to_tensors(tree: Any) -> Any:
    """Nested dictionaries of arrays as tensors."""
    if isinstance(tree, dict):
        return {name: to_tensors(value) for name, value in tree.items()}
    return to_torch(tree)


class TorchUniX:
    """Enough of the model to denoise against a cached prompt and to prefill it."""

    def __init__(self, config: UniXConfig, params: dict[str, Any]) -> None:
        self.config = config
        p = to_tensors(params)
        # nn.Linear's layout: [out, in].
        self.layers = [
            {
                stream: {
                    name: {k: v[i].T.contiguous() if v[i].ndim == 2 else v[i] for k, v in q.items()}
                    for name, q in p["decoder"]["layers"][stream].items()
                }
                for stream in ("und", "gen")
            }
            for i in range(config.decoder.num_layers)
        ]
        self.norm = p["decoder"]["norm"]
        self.embedding = p["embed_tokens"]["embedding"]
        self.table = p["latent_pos_embed"]
        self.linear = {
            name: (p[name]["kernel"].T.contiguous(), p[name]["bias"])
            for name in ("vae2llm", "llm2vae")
        }
        self.time = [
            (p["time_embedder"][n]["kernel"].T.contiguous(), p["time_embedder"][n]["bias"])
            for n in ("fc1", "fc2")
        ]

    def _rms(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        eps, x32 = self.config.decoder.rms_norm_eps, x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * scale

    def _rope(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.config.decoder
        frequencies = c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = position.float()[:, None] / frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    def _rotate(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        cos, sin = (a[:, None] for a in rope)
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

    def _qkv(self, layer: Any, x: torch.Tensor, rope: Any) -> tuple[torch.Tensor, ...]:
        x = self._rms(x, layer["input_norm"]["scale"])
        dim = self.config.decoder.head_dim

        def project(name: str) -> torch.Tensor:
            y = F.linear(x, layer[name]["kernel"], layer[name]["bias"])
            return y.view(len(x), -1, dim)

        query = self._rotate(self._rms(project("q_proj"), layer["q_norm"]["scale"]), rope)
        key = self._rotate(self._rms(project("k_proj"), layer["k_norm"]["scale"]), rope)
        return query, key, project("v_proj")

    def _finish(self, layer: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + F.linear(attended, layer["o_proj"]["kernel"])
        y = self._rms(x, layer["post_attention_norm"]["scale"])
        gated = F.silu(F.linear(y, layer["gate_proj"]["kernel"]))
        gated = gated * F.linear(y, layer["up_proj"]["kernel"])
        return x + F.linear(gated, layer["down_proj"]["kernel"])

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool = False
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=groups > 1)
        return out[0].transpose(0, 1).reshape(len(query), -1)

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of a text, layer by layer."""
        x = self.embedding[torch.tensor(ids)]
        rope = self._rope(torch.arange(len(ids)))
        cache = []
        for layers in self.layers:
            query, key, value = self._qkv(layers["und"], x, rope)
            cache.append((key, value))
            x = self._finish(layers["und"], x, self._attend(query, key, value, causal=True))
        return cache

    @torch.inference_mode()
    def velocity(
        self,
        latents: torch.Tensor,
        t: float,
        position_ids: torch.Tensor,
        position: int,
        cache: list[tuple[torch.Tensor, torch.Tensor]] | None,
    ) -> torch.Tensor:
        """Velocity [G, C] of one image in one branch."""
        special = self.config.special_tokens
        half = torch.arange(128).float() / 128
        angles = t * torch.exp(-np.log(10000.0) * half)
        dtype = self.embedding.dtype
        time = torch.cat([angles.cos(), angles.sin()]).to(dtype)
        time = F.linear(F.silu(F.linear(time, *self.time[0])), *self.time[1])
        gen = F.linear(latents.to(dtype), *self.linear["vae2llm"]) + time + self.table[position_ids]
        und = self.embedding[torch.tensor([special.start_of_image, special.end_of_image])]
        ropes = [self._rope(torch.full((n,), position)) for n in (2, len(gen))]
        for i, layers in enumerate(self.layers):
            parts = [
                self._qkv(layers["und"], und, ropes[0]),
                self._qkv(layers["gen"], gen, ropes[1]),
            ]
            query, key, value = (torch.cat(p) for p in zip(*parts, strict=True))
            if cache is not None:
                key, value = torch.cat([cache[i][0], key]), torch.cat([cache[i][1], value])
            attended = self._attend(query, key, value)
            und = self._finish(layers["und"], und, attended[:2])
            gen = self._finish(layers["gen"], gen, attended[2:])
        out = F.linear(self._rms(gen, self.norm["gen"]["scale"]), *self.linear["llm2vae"])
        return out.float()
