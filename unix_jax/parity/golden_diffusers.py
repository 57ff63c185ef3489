"""Recomputes every tensor of a golden directory of a diffusers folder.

What each name means is in `docs/conversion.md`; tensors have PyTorch's layout (NCHW).
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints.diffusers import DiffusersFolder
from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
from unix_jax.checkpoints.diffusers_table import unet_table
from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import DecoderConfig, build, typed
from unix_jax.errors import CheckpointError
from unix_jax.inference.denoising import denoise
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.bert import Bert, BertConfig
from unix_jax.models.clip import ClipText, ClipTextConfig
from unix_jax.models.unet import Context, JointContext, UNet
from unix_jax.models.unet_config import JointAttention
from unix_jax.parity.golden import Tensors, channels_first

_OUT = re.compile(r"unet\.out(?P<which>\w*)\.t(?P<time>[0-9]+(\.[0-9]+)?)")
_SAMPLE_FIELDS = {"num_inference_steps", "guidance_scale", "guidance_rescale", "eta"}


@dataclasses.dataclass(frozen=True)
class DiffusersGolden:
    """A golden directory and the folder under test."""

    folder: DiffusersFolder
    tensors: Mapping[str, np.ndarray]
    info: Mapping[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise CheckpointError(f"golden.safetensors: expected tensor {name!r}, found none")
        return self.tensors[name]

    def channels_last(self, name: str, channels: int) -> np.ndarray:
        """A tensor [B, C, h, w] of C channels as [B, h, w, C]."""
        return np.moveaxis(self.shaped(name, (None, channels, None, None)), 1, -1)

    def shaped(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor of a shape, whose None stand for any size.

        Raises:
          CheckpointError: it has another.
        """
        array = self[name]
        fits = array.ndim == len(shape) and all(
            size is None or size == found for size, found in zip(shape, array.shape, strict=True)
        )
        if not fits:
            expected = [size or "any" for size in shape]
            raise CheckpointError(
                f"golden.safetensors: {name}: expected shape {expected}, found {list(array.shape)}"
            )
        return array

    def entry(self, *path: str) -> Any:
        """An entry of golden.json; KeyError names one that is missing."""
        value: Any = self.info
        for i, name in enumerate(path):
            if not isinstance(value, Mapping):
                where = ".".join(path[:i])
                raise CheckpointError(f"golden.json: {where}: expected an object, found {value!r}")
            value = value[name]
        return value

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        tensors: Mapping[str, np.ndarray],
        info: Mapping[str, Any],
    ) -> "DiffusersGolden":
        """The folder at `path`; an entry `joint` in golden.json has the sizes of a decoder.

        Raises:
          ConfigError: the folder is of another kind, or `joint` has unknown fields or values.
        """
        joint = info.get("joint")
        kind = None
        if joint is not None:
            kind = JointAttention(build(joint, DecoderConfig, "golden.json: joint"))
        return cls(open_diffusers(path, kind), tensors, info)

    @functools.cached_property
    def unet(self) -> UNet:
        return UNet(self.folder.unet_config[0])

    @functools.cached_property
    def joint_context(self) -> JointContext:
        """The cache of `joint.*`: keys and values of every decoder layer."""
        assert isinstance(self.unet.config.context, JointAttention)
        decoder = self.unet.config.context.decoder
        rows, slots = self.shaped("joint.valid", (None, None)).shape
        shape = (rows, slots, decoder.num_kv_heads, decoder.head_dim)
        keys, values = (
            jnp.stack([self.shaped(f"joint.{name}.{i}", shape) for i in range(decoder.num_layers)])
            for name in ("keys", "values")
        )
        valid = jnp.asarray(self["joint.valid"], bool)
        self.shaped("joint.position", (rows,))
        cache = KVCache(keys, values, valid, jnp.int32(valid.shape[1]))
        return JointContext(cache, jnp.asarray(self["joint.position"], jnp.int32))

    def context(self, rows: int, name: str) -> Context:
        """What the U-Net attends to, for the first rows."""
        kind = self.unet.config.context
        if isinstance(kind, JointAttention):
            self.shaped("joint.position", (rows,))
            return self.joint_context
        return _rows(self.shaped("text.hidden", (None, None, kind.width)), rows, name)

    @functools.cached_property
    def encode_text(self) -> Callable[[Any], Any]:
        """Ids [B, T] to hidden states."""
        config = self.folder.text_config
        self._check_ids(config)
        if isinstance(config, ClipTextConfig):
            apply = jax.jit(ClipText(config).apply)
            return lambda ids: apply({"params": self.folder.text_encoder}, ids)
        apply = jax.jit(Bert(config).apply)
        params = {"params": self.folder.text_encoder}
        # The pipeline hands no mask over: padding is attended to.
        return lambda ids: apply(params, ids, jnp.ones(ids.shape, bool))

    def _check_ids(self, config: ClipTextConfig | BertConfig) -> None:
        ids = self.shaped("text.ids", (None, None))
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= config.vocab_size:
            raise CheckpointError(
                f"golden.safetensors: text.ids: expected ids below {config.vocab_size}"
            )
        if ids.shape[1] > config.max_positions:
            raise CheckpointError(
                f"golden.safetensors: text.ids: expected at most {config.max_positions} tokens, "
                f"found {ids.shape[1]}"
            )

    @functools.cached_property
    def vae(self) -> Callable[..., Any]:
        """The autoencoder's methods, compiled: vae("name", *arguments)."""
        model, params = Autoencoder(self.folder.vae_config), {"params": self.folder.vae}
        run = jax.jit(
            lambda method, *arguments: model.apply(params, *arguments, method=method),
            static_argnums=0,
        )
        return run


def text_tensors(golden: DiffusersGolden) -> Tensors:
    """`text.hidden`, and `text.ids` where golden.json has the prompts."""
    out: Tensors = {}
    if "text.ids" in golden.tensors:
        out["text.hidden"] = golden.encode_text(golden["text.ids"])
    if "prompts" in golden.info:
        prompts = golden.info["prompts"]
        if not isinstance(prompts, list) or not all(isinstance(x, str) for x in prompts):
            raise CheckpointError(f"golden.json: prompts: expected texts, found {prompts!r:.60}")
        out["text.ids"] = golden.folder.tokenizer.encode(prompts)[0]
    return out


def unet_tensors(golden: DiffusersGolden) -> Tensors:
    """`unet.out*.tT`: the network's output for `unet.latents*` at time T; and `unet.grad.*`."""
    apply = jax.jit(golden.unet.apply)
    out: Tensors = {}
    for name in golden.tensors:
        if match := _OUT.fullmatch(name):
            channels = golden.unet.config.in_channels
            latents = golden.channels_last(f"unet.latents{match['which']}", channels)
            times = np.full(len(latents), float(match["time"]), np.float32)
            context = golden.context(len(latents), name)
            params = {"params": golden.folder.unet}
            out[name] = channels_first(apply(params, latents, times, context))
    if any(name.startswith("unet.grad.") for name in golden.tensors):
        out |= _gradients(golden)
    return out


def _gradients(golden: DiffusersGolden) -> Tensors:
    """Gradients of the mean squared difference from `unet.target`, by the published keys."""
    config = golden.unet.config
    latents = golden.channels_last("unet.latents", config.in_channels)
    target = golden.channels_last("unet.target", config.out_channels)
    time = typed(golden.entry("gradients", "timestep"), float, "golden.json: gradients.timestep")
    times = np.full(len(latents), time, np.float32)
    context = golden.context(len(latents), "unet.grad")

    def loss(params: Any, latents: Any) -> Any:
        out: Any = golden.unet.apply({"params": params}, latents, times, context)
        return jnp.mean(jnp.square(out - target))

    by_params, by_latents = jax.jit(jax.grad(loss, (0, 1)))(golden.folder.unet, latents)
    flat = flatten(by_params)
    return {
        f"unet.grad.{entry.key}": entry.transform.to_file(np.asarray(flat[entry.path]))
        for entry in unet_table(*golden.folder.unet_config)
    } | {"unet.grad.latents": channels_first(by_latents)}


def autoencoder_tensors(golden: DiffusersGolden) -> Tensors:
    """`vae.moments`."""
    moments = golden.vae(
        "moments", golden.channels_last("vae.pixels", golden.folder.vae_config.in_channels)
    )
    return {"vae.moments": channels_first(moments)}


def sample_tensors(golden: DiffusersGolden) -> Tensors:
    """`sample.*`: the whole path, from ids and noise to pixels before clipping."""
    noise = golden.channels_last("sample.noise", golden.unet.config.in_channels)
    run = {name: golden.entry("sample", name) for name in golden.entry("sample")}
    if set(run) - _SAMPLE_FIELDS or run.get("eta", 0.0) != 0:
        raise CheckpointError(
            f"golden.json: sample: expected entries of {sorted(_SAMPLE_FIELDS)} with eta 0, "
            f"found {run!r}"
        )
    scale, rescale = (
        typed(value, float, f"golden.json: sample.{name}")
        for name, value in (
            ("guidance_scale", golden.entry("sample", "guidance_scale")),
            ("guidance_rescale", run.get("guidance_rescale", 0.0)),
        )
    )
    steps = typed(
        golden.entry("sample", "num_inference_steps"), int, "golden.json: num_inference_steps"
    )
    guided = scale > 1
    ids = _rows(golden["text.ids"], len(noise), "sample.noise")
    if guided:
        empty, _ = golden.folder.tokenizer.encode([""])
        ids = np.concatenate([ids, np.repeat(empty, len(noise), axis=0)])
    schedule = golden.folder.schedule
    plan = schedule.plan(steps)
    latents = denoise(
        golden.unet, schedule, golden.folder.unet, noise, golden.encode_text(ids), plan,
        jnp.int32(0), jnp.int32(len(plan.timesteps)), jnp.float32(scale), jnp.float32(rescale),
        guided=guided,
    )  # fmt: skip
    return {
        "sample.latents": channels_first(latents),
        "sample.image": channels_first(golden.vae("decode", latents)),
    }


def _rows(array: np.ndarray, count: int, name: str) -> np.ndarray:
    """The first rows; one row serves all."""
    if len(array) == 1:
        return np.repeat(array, count, axis=0)
    if len(array) < count:
        raise CheckpointError(
            f"golden.safetensors: {name}: expected at least {count} rows of text, "
            f"found {len(array)}"
        )
    return array[:count]


DIFFUSERS_GROUPS: Mapping[str, Callable[[DiffusersGolden], Tensors]] = {
    "text.": text_tensors,
    "unet.": unet_tensors,
    "vae.": autoencoder_tensors,
    "sample.": sample_tensors,
}
DIFFUSERS_INPUTS = ("text.ids", "unet.latents", "unet.target", "joint.", "sample.noise")
