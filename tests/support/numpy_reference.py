"""The whole model in float64 numpy, written from the description of the original alone.

Slow and plain: one sample at a time as one list of tokens, each token carrying its own weights
("und" or "gen"), a dense mask from the sentence in words, no streams, no caches, no batches. It
shares no code with `unix_jax`; only the parameter tree's names are common.

A sample is a list of splits:
  ("text", ids), ("vit", pixels [H, W, 3]), ("vae", latents [H, W, C], t, noised).
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x, tanh):
    if tanh:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(x, p, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def rms_norm(x, p, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def layer_of(tree, i):
    """One layer of a stacked tree."""
    return {k: layer_of(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def rotate(x, position, theta):
    """Pairs (i, i + H/2) of each head as complex numbers, turned by position / theta^(2i/H)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * position / theta ** (np.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([z.real, z.imag], -1)


def vision(pixels, params, config):
    """[H, W, 3] -> [P, W]: patches row by row, pre-norm blocks, final norm."""
    p, width, heads = config.patch_size, config.width, config.num_heads
    conv = params["patch_embed"]
    x = np.array(
        [
            np.einsum("ijc,ijcw->w", pixels[r : r + p, c : c + p], conv["kernel"]) + conv["bias"]
            for r in range(0, pixels.shape[0], p)
            for c in range(0, pixels.shape[1], p)
        ]
    )
    x = x + params["pos_embed"][0]
    for i in range(config.num_layers):
        block = layer_of(params["blocks"], i)
        q, k, v = np.split(
            linear(layer_norm(x, block["norm1"], config.layer_norm_eps), block["qkv"]), 3, -1
        )
        out = np.zeros_like(x)
        for h in range(heads):
            s = slice(h * width // heads, (h + 1) * width // heads)
            out[:, s] = softmax(q[:, s] @ k[:, s].T / math.sqrt(width / heads)) @ v[:, s]
        x = x + linear(out, block["proj"])
        y = linear(layer_norm(x, block["norm2"], config.layer_norm_eps), block["fc1"])
        x = x + linear(gelu(y, tanh=False), block["fc2"])
    return layer_norm(x, params["norm"], config.layer_norm_eps)


def connector(features, params, config):
    tanh = config.connector_act == "gelu_pytorch_tanh"
    return linear(gelu(linear(features, params["fc1"]), tanh), params["fc2"])


def bucket(i, count, buckets):
    """Which of `buckets` equal parts of [0, 1] the fraction i / count lies in; exact integers."""
    return i * buckets // count


def embed_latents(latents, t, params, config):
    """[H, W, C] -> tokens row by row: patch, plus time, plus place."""
    p, m = config.latent_patch_size, config.max_latent_size
    rows, columns = latents.shape[0] // p, latents.shape[1] // p
    half = 128
    angles = t * np.array([10000.0 ** (-i / half) for i in range(half)])
    time = np.concatenate([np.cos(angles), np.sin(angles)])
    time = linear(
        silu(linear(time, params["time_embedder"]["fc1"])), params["time_embedder"]["fc2"]
    )
    tokens = []
    for r in range(rows):
        for c in range(columns):
            patch = latents[r * p : r * p + p, c * p : c * p + p].reshape(-1)
            row, column = r, c
            if config.interpolate_pos:
                row, column = bucket(r, rows, m), bucket(c, columns, m)
            place = params["latent_pos_embed"][row * m + column]
            tokens.append(linear(patch, params["vae2llm"]) + time + place)
    return tokens


def embed(sample, params, config):
    """(embedded tokens, is-gen flags, rope positions, split of each token, kind of each split)."""
    special, table = config.special_tokens, params["embed_tokens"]["embedding"]
    x, gen, positions, split, kinds = [], [], [], [], []
    position = 0
    for index, (kind, content, *rest) in enumerate(sample):
        if kind == "text":
            tokens, flags = [table[i] for i in content], [False] * len(content)
            places = list(range(position, position + len(content)))
            position += len(content)
            kinds.append("causal")
        else:
            if kind == "vit":
                inner = connector(
                    vision(content, params["vision"], config.vision), params["connector"], config
                )
                noised = False
            else:
                t, noised = rest
                inner = embed_latents(content, t, params, config)
            tokens = [table[special.start_of_image], *inner, table[special.end_of_image]]
            flags = [False, *[kind == "vae"] * len(inner), False]
            places = [position] * len(tokens)
            position += 0 if noised else 1
            kinds.append("noise" if noised else "full")
        x += tokens
        gen += flags
        positions += places
        split += [index] * len(tokens)
    return np.array(x), np.array(gen), np.array(positions), split, kinds


def visible(q, k, split, kinds):
    """Whether token q of a sample sees token k."""
    if split[q] == split[k]:
        return kinds[split[q]] != "causal" or k <= q
    return split[k] < split[q] and kinds[split[k]] != "noise"


def forward(sample, params, config):
    """(hidden states after the final norm [n, D], is-gen flags [n]) in sequence order."""
    d = config.decoder
    x, gen, positions, split, kinds = embed(sample, params, config)
    n, group = len(x), d.num_heads // d.num_kv_heads
    mask = np.array([[visible(q, k, split, kinds) for k in range(n)] for q in range(n)])

    def expert(layer, i):
        return layer["gen" if gen[i] else "und"]

    for l in range(d.num_layers):
        layer = layer_of(params["decoder"]["layers"], l)
        q = np.zeros((n, d.num_heads, d.head_dim))
        k, v = np.zeros((2, n, d.num_kv_heads, d.head_dim))
        for i in range(n):
            w = expert(layer, i)
            y = rms_norm(x[i], w["input_norm"], d.rms_norm_eps)
            for out, name in ((q, "q"), (k, "k")):
                head = linear(y, w[f"{name}_proj"]).reshape(-1, d.head_dim)
                head = rms_norm(head, w[f"{name}_norm"], d.rms_norm_eps)
                out[i] = rotate(head, positions[i], d.rope_theta)
            v[i] = linear(y, w["v_proj"]).reshape(-1, d.head_dim)
        attended = np.zeros_like(q)
        for h in range(d.num_heads):
            logits = q[:, h] @ k[:, h // group].T / math.sqrt(d.head_dim)
            attended[:, h] = softmax(np.where(mask, logits, -np.inf)) @ v[:, h // group]
        for i in range(n):
            w = expert(layer, i)
            x[i] = x[i] + linear(attended[i].reshape(-1), w["o_proj"])
            y = rms_norm(x[i], w["post_attention_norm"], d.rms_norm_eps)
            x[i] = x[i] + linear(
                silu(linear(y, w["gate_proj"])) * linear(y, w["up_proj"]), w["down_proj"]
            )
    norm = params["decoder"]["norm"]
    return np.array([rms_norm(x[i], expert(norm, i), d.rms_norm_eps) for i in range(n)]), gen
