"""A training step in plain PyTorch, as an eager port would run it.

One sequence holds both streams; each layer takes a stream's tokens out by index, applies that
stream's weights, and puts them back, and `scaled_dot_product_attention` gets the dense mask of the
whole sequence. The faster of PyTorch's own ways is taken where there are several: an additive mask
made once a step, fused AdamW, logits at places with a loss alone, no index for a single stream.

Takes this project's parameters and batches, so that both sides can be checked to give the same loss
and gradient norm. No padding. `bfloat16` is PyTorch's autocast over float32 weights.

Letters: B rows, N tokens of a row (und, then gen), D width, G latent tokens.
"""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from common import to_torch as tensor

from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.models.attention.mask import TokenMetadata, may_attend
from unix_jax.models.embeddings import TIME_FREQUENCIES
from unix_jax.training.draws import FlowDraw
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.parameter_groups import GENERATION, JOINT, UNDERSTANDING, split_params

Stage = Literal["understanding", "generation", "all"]
TRAINABLE: dict[Stage, str] = {
    "understanding": UNDERSTANDING, "generation": GENERATION, "all": JOINT,
}  # fmt: skip
_STACKED = ("decoder/layers/", "vision/blocks/")


def parameter(path: str, x: torch.Tensor) -> torch.Tensor:
    """A leaf in PyTorch's layout: [out, in], [out, in, height, width]."""
    if path.endswith("/kernel"):
        x = x.T if x.ndim == 2 else x.permute(3, 2, 0, 1)
    return x.clone(memory_format=torch.contiguous_format)


class TorchTrainer:
    """The model, its optimiser and running mean; `step` is one update.

    As in the library, a generation stage detaches the und stream and keeps no gradient of it.
    """

    def __init__(
        self,
        config: UniXConfig,
        params: dict[str, Any],
        stage: Stage,
        optimizer: OptimizerConfig,
        losses: LossConfig,
        ema_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.losses = config, losses
        self.ema_decay, self.clip_norm, self.dtype = ema_decay, optimizer.clip_norm, dtype
        self.frozen_und = stage == "generation"
        self.weights: dict[str, list[torch.Tensor]] = {}
        trainable = flatten(split_params({"unix": params}, TRAINABLE[stage])[0])
        for path, leaf in flatten(params).items():
            layers = tensor(leaf) if path.startswith(_STACKED) else tensor(leaf)[None]
            trained = f"unix/{path}" in trainable
            self.weights[path] = [parameter(path, x).requires_grad_(trained) for x in layers]
        self.trained = [x for xs in self.weights.values() for x in xs if x.requires_grad]
        self.ema = [x.detach().clone() for x in self.trained]
        self.adamw = torch.optim.AdamW(
            self.trained, optimizer.learning_rate, (optimizer.b1, optimizer.b2), optimizer.eps,
            optimizer.weight_decay, fused=True,
        )  # fmt: skip

    def load(self, batch: TrainingBatch, draw: FlowDraw) -> None:
        """Keeps a batch, and the noise and times that its steps use."""
        parts = [batch.und] if batch.gen is None else [batch.und, batch.gen]
        metadata = TokenMetadata(
            *(np.concatenate([getattr(p, name) for p in parts], axis=1)
              for name in ("position", "segment", "split", "order", "mode"))
        )  # fmt: skip
        assert (np.asarray(metadata.segment) > 0).all(), "rows: expected no padding"
        self.visible = tensor(may_attend(metadata, metadata))
        self.position = tensor(metadata.position).flatten()
        rows, length = metadata.position.shape
        und = batch.und.position.shape[1]
        places = torch.arange(rows * length).view(rows, length)
        self.places = {"und": places[:, :und].flatten()}
        if batch.gen is not None:
            self.places["gen"] = places[:, und:].flatten()
        self.batch: Any = batch.map(tensor)  # of tensors
        drawn = (draw.latents, draw.noise, draw.timesteps)
        self.draw: list[Any] = [None if x is None else tensor(x) for x in drawn]

    def step(self) -> tuple[float, float]:
        """(loss, norm of its gradient before clipping) of one update with the batch."""
        self.adamw.zero_grad(set_to_none=True)
        device, lower = torch.get_default_device().type, self.dtype != torch.float32
        with torch.autocast(device, self.dtype, enabled=lower):
            loss = self.loss()
        loss.backward()
        # A weight that no token uses has no gradient here.
        used = [x for x in self.trained if x.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(used, self.clip_norm)
        self.adamw.step()
        with torch.no_grad():
            for mean, new in zip(self.ema, self.trained, strict=True):
                mean.lerp_(new, 1 - self.ema_decay)
        return loss.item(), norm.item()

    def loss(self) -> torch.Tensor:
        """Weighted cross-entropy of text and squared error of velocities."""
        batch, hidden = self.batch, self._hidden()
        loss = torch.zeros(())
        if self.losses.ce_weight:
            weights = batch.ce_weights.flatten()
            places = weights.nonzero()[:, 0]
            logits = self._linear(hidden["und"][places], "lm_head")
            ce = F.cross_entropy(logits, batch.labels.flatten()[places].long(), reduction="none")
            loss = loss + self.losses.ce_weight * (ce * weights[places]).sum() / weights.sum()
        if self.losses.mse_weight and "gen" in hidden:
            latents, noise, _ = (x.flatten(0, 1) for x in self.draw)
            weights = batch.mse_weights.flatten()
            velocity = self._linear(hidden["gen"], "llm2vae")
            error = (velocity - (noise - latents)).square().mean(-1)
            loss = loss + self.losses.mse_weight * (error * weights).sum() / weights.sum()
        return loss

    # ------------------------------------------------------------------ model

    def _linear(self, x: torch.Tensor, name: str, i: int = 0) -> torch.Tensor:
        bias = self.weights.get(f"{name}/bias")
        kernel = self.weights[f"{name}/kernel"][i]
        return F.linear(x, kernel, None if bias is None else bias[i])

    def _rms(self, x: torch.Tensor, name: str, i: int = 0) -> torch.Tensor:
        scale = self.weights[f"{name}/scale"][i]
        # Of one type, or PyTorch does not take its fused kernel.
        return F.rms_norm(x, scale.shape, scale.to(x.dtype), self.config.decoder.rms_norm_eps)

    def _layer_norm(self, x: torch.Tensor, name: str, i: int = 0) -> torch.Tensor:
        scale, bias = (self.weights[f"{name}/{kind}"][i] for kind in ("scale", "bias"))
        return F.layer_norm(x, scale.shape, scale, bias, self.config.vision.layer_norm_eps)

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        """[images, H, W, 3] -> [images, P, D]."""
        c = self.config.vision
        kernel, bias = (
            self.weights[f"vision/patch_embed/{kind}"][0] for kind in ("kernel", "bias")
        )
        x = F.conv2d(pixels.permute(0, 3, 1, 2), kernel, bias, stride=c.patch_size)
        x = x.flatten(2).transpose(1, 2) + self.weights["vision/pos_embed"][0]
        for i in range(c.num_layers):
            y = self._linear(self._layer_norm(x, "vision/blocks/norm1", i), "vision/blocks/qkv", i)
            qkv = y.view(*y.shape[:2], 3, c.num_heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*qkv.unbind()).transpose(1, 2).flatten(2)
            x = x + self._linear(y, "vision/blocks/proj", i)
            y = self._linear(self._layer_norm(x, "vision/blocks/norm2", i), "vision/blocks/fc1", i)
            x = x + self._linear(F.gelu(y), "vision/blocks/fc2", i)
        x = self._linear(self._layer_norm(x, "vision/norm"), "connector/fc1")
        tanh = self.config.connector_act == "gelu_pytorch_tanh"
        return self._linear(F.gelu(x, approximate="tanh" if tanh else "none"), "connector/fc2")

    def _und(self) -> torch.Tensor:
        batch = self.batch
        und = F.embedding(batch.token_ids.flatten(), self.weights["embed_tokens/embedding"][0])
        if batch.vit_pixels is not None:
            rows, images = batch.vit_pixels.shape[:2]
            features = self._images(batch.vit_pixels.flatten(0, 1))
            first = torch.arange(rows)[:, None] * images * features.shape[1]
            index = torch.where(batch.vit_index >= 0, batch.vit_index + first, -1).flatten()
            places = (index >= 0).nonzero()[:, 0]
            taken = features.flatten(0, 1)[index[places]].to(und.dtype)
            und = und.index_copy(0, places, taken)
        return und

    def _gen(self) -> torch.Tensor:
        latents, noise, times = (x.flatten(0, 1) for x in self.draw)
        half = TIME_FREQUENCIES // 2
        frequencies = torch.exp(-np.log(10000.0) * torch.arange(half).float() / half)
        angles = times[:, None] * frequencies
        time = self._linear(torch.cat([angles.cos(), angles.sin()], -1), "time_embedder/fc1")
        time = self._linear(F.silu(time), "time_embedder/fc2")
        noised = (1 - times[:, None]) * latents + times[:, None] * noise
        table = self.weights["latent_pos_embed"][0]
        return (
            self._linear(noised, "vae2llm") + time + table[self.batch.latent_position_ids.flatten()]
        )

    def _hidden(self) -> dict[str, torch.Tensor]:
        """Final hidden states of each stream, [tokens, D]."""
        streams = {"und": self._und()}
        if "gen" in self.places:
            streams["gen"] = self._gen()
        mask = torch.where(self.visible, 0.0, -torch.inf)[:, None]
        c = self.config.decoder
        frequencies = c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = self.position.float()[:, None] / frequencies
        rope = tuple(torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
        x = self._join(streams)
        for i in range(c.num_layers):
            x = self._layer(x, i, rope, mask)
        return {
            name: self._rms(part, f"decoder/norm/{name}") for name, part in self._split(x).items()
        }

    def _split(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The streams' tokens; those of a frozen stream as constants."""
        if len(self.places) == 1:
            return {"und": x}
        streams = {name: x[places] for name, places in self.places.items()}
        if self.frozen_und:
            streams["und"] = streams["und"].detach()
        return streams

    def _join(self, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        """The inverse of `_split`."""
        if len(streams) == 1:
            return streams["und"]
        x = streams["gen"].new_zeros(len(self.position), *streams["gen"].shape[1:])
        for name, part in streams.items():
            x = x.index_copy(0, self.places[name], part.to(x.dtype))
        return x

    def _layer(
        self, x: torch.Tensor, i: int, rope: tuple[torch.Tensor, ...], mask: torch.Tensor
    ) -> torch.Tensor:
        c = self.config.decoder
        streams = self._split(x)
        normed = {
            name: self._rms(part, f"decoder/layers/{name}/input_norm", i)
            for name, part in streams.items()
        }

        def project(kind: str, norm: str | None) -> torch.Tensor:
            parts = {}
            for name, part in normed.items():
                y = self._linear(part, f"decoder/layers/{name}/{kind}", i)
                y = y.view(len(part), -1, c.head_dim)
                parts[name] = self._rms(y, f"decoder/layers/{name}/{norm}", i) if norm else y
            return self._join(parts)

        query = self._rotate(project("q_proj", "q_norm"), rope)
        key = self._rotate(project("k_proj", "k_norm"), rope)
        attended = self._split(self._attend(query, key, project("v_proj", None), mask))
        return self._join(
            {name: self._finish(part, attended[name], name, i) for name, part in streams.items()}
        )

    def _rotate(self, x: torch.Tensor, rope: tuple[torch.Tensor, ...]) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (x.view(len(mask), -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups > 1)
        return out.transpose(1, 2).reshape(len(query), -1)

    def _finish(self, x: torch.Tensor, attended: torch.Tensor, name: str, i: int) -> torch.Tensor:
        expert = f"decoder/layers/{name}"
        x = x + self._linear(attended, f"{expert}/o_proj", i)
        y = self._rms(x, f"{expert}/post_attention_norm", i)
        gated = F.silu(self._linear(y, f"{expert}/gate_proj", i))
        return x + self._linear(
            gated * self._linear(y, f"{expert}/up_proj", i), f"{expert}/down_proj", i
        )
