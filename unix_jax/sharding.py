"""From logical axis names to mesh axes, for parameters and activations.

The mesh has the axes `data` (replicated parameters), `fsdp` (parameters split along `embed`) and
`tensor` (heads, MLP and vocabulary). All are Auto axes: under Explicit ones, the default of
`jax.make_mesh`, Linen's logical constraints raise.

Several TPU slices are one mesh. Their network is much slower than the links within a slice, so only
`data` spans it: it carries the sum of the gradients and nothing else.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unix_jax.config import UniXConfig
from unix_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each logical axis; None = replicated.

    Parameters use `embed`, `heads`, `kv_heads`, `mlp`, `vocab`, `layers`, `norm`; activations use
    `batch`, `length`, `embed_act`, `heads_act`, `kv_heads_act`, `mlp`, and while tokens are looked
    up in a table split along `embed`, `lookup_batch`: the axes of `batch` that `embed` does not
    use.
    `gathered` is no axis of an array: the mesh axes over which a linear layer gathers its weights
    before the product, see `gathered_kernel`. None leaves the choice to XLA.

    Raises:
      ConfigError: a rule names an axis that no mesh has.
    """

    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = None
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    layers: MeshAxes = None
    norm: MeshAxes = None
    embed_act: MeshAxes = None
    heads_act: MeshAxes = "tensor"
    kv_heads_act: MeshAxes = "tensor"
    lookup_batch: MeshAxes = "data"
    gathered: MeshAxes = None

    def __post_init__(self) -> None:
        for name, axes in dataclasses.asdict(self).items():
            for axis in _as_tuple(axes):
                if axis not in MESH_AXES:
                    raise ConfigError(
                        f"ShardingRules.{name}: expected axes of {MESH_AXES}, found {axis!r}"
                    )

    def spec(self, logical: Sequence[str | None]) -> PartitionSpec:
        """The partition of an array whose dimensions carry these names.

        Raises:
          ConfigError: two dimensions would be split over the same mesh axis.
        """
        used: set[str] = set()
        entries: list[MeshAxes] = []
        for name in logical:
            axes: MeshAxes = None if name is None else getattr(self, name)
            collision = used & set(_as_tuple(axes))
            if collision:
                raise ConfigError(
                    f"ShardingRules: {tuple(logical)} puts {sorted(collision)} on two dimensions"
                )
            used |= set(_as_tuple(axes))
            entries.append(axes)
        return PartitionSpec(*entries)

    def linen(self) -> list[tuple[str, MeshAxes]]:
        """The rules as Linen reads them."""
        return list(dataclasses.asdict(self).items())


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def slice_count(devices: Sequence[Any]) -> int:
    """Number of slices that the devices belong to.

    JAX numbers the machines of a GPU cluster as slices, too. They count as one: a mesh axis may
    span their network.
    """
    if devices[0].platform == "gpu":
        return 1
    return len({getattr(device, "slice_index", None) or 0 for device in devices})


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of Auto axes (data, fsdp, tensor) over `devices` (default: all).

    Of several slices, each has a contiguous part of the data axis.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, the slices do not divide the
        data axis, or the axes do not fit the links between the devices.
    """
    sizes = (data, fsdp, tensor)
    available = jax.devices() if devices is None else list(devices)
    found = f"found data={data}, fsdp={fsdp}, tensor={tensor}"
    if math.prod(sizes) != len(available) or min(sizes) < 1:
        raise ConfigError(f"mesh: expected axes that multiply to {len(available)} devices, {found}")
    slices = slice_count(available)
    if data % slices:
        raise ConfigError(
            f"mesh: expected data to be a multiple of {slices}, the number of slices, whose "
            f"network no other axis may span, {found}"
        )
    try:
        arranged = _arranged(sizes, available, slices)
    except (AssertionError, NotImplementedError, ValueError) as error:
        # JAX knows the links of each kind of device.
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"mesh: expected axes that fit the links between {len(available)} x "
            f"{available[0].device_kind}, {found}: {reason}"
        ) from error
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(sizes: tuple[int, int, int], devices: Sequence[Any], slices: int) -> np.ndarray:
    """The devices as an array of `sizes`, neighbours in the mesh linked directly where possible."""
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def parse_mesh(text: str, *, partial: bool = False, devices: Sequence[Any] | None = None) -> Mesh:
    """`make_mesh` from text such as `data=1,fsdp=4,tensor=2`; absent axes have size 1.

    With `partial`, a mesh with fewer devices than available uses the first ones.

    Raises:
      ConfigError: another form, or as `make_mesh`.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    named: set[str] = set()
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in MESH_AXES or not size.isdecimal() or name in named:
            raise ConfigError(f"mesh: expected for example data=1,fsdp=4,tensor=2, found {text!r}")
        sizes[name] = int(size)
        named.add(name)
    if partial:
        devices = (jax.devices() if devices is None else devices)[: math.prod(sizes.values())]
    return make_mesh(sizes["data"], sizes["fsdp"], sizes["tensor"], devices)


def check_mesh(mesh: Mesh, config: UniXConfig) -> None:
    """Refuses a mesh without this module's axes, or whose tensor axis does not divide the heads.

    Raises: ConfigError: the mesh is refused.
    """
    if tuple(mesh.axis_names) != MESH_AXES or any(t != AxisType.Auto for t in mesh.axis_types):
        raise ConfigError(
            f"mesh: expected Auto axes {MESH_AXES} (see unix_jax.sharding.make_mesh), "
            f"found {tuple(mesh.axis_names)} of types {tuple(map(str, mesh.axis_types))}"
        )
    tensor = mesh.shape["tensor"]
    for name, heads in (
        ("num_heads", config.decoder.num_heads),
        ("num_kv_heads", config.decoder.num_kv_heads),
    ):
        if heads % tensor:
            raise ConfigError(f"mesh: tensor={tensor} does not divide {name} {heads}")


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` for parameters whose leaves carry logical axes.

    A dimension that its mesh axes do not divide evenly is replicated.

    Args:
      boxed: `param_shapes(config, boxed=True)`, or boxed parameters.
    """
    rules = ShardingRules()

    def one(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, PartitionSpec())
        entries = [
            axes if size % math.prod(mesh.shape[a] for a in _as_tuple(axes)) == 0 else None
            for size, axes in zip(leaf.value.shape, rules.spec(leaf.names), strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def axes_in_use(name: str) -> tuple[str, ...]:
    """Mesh axes that split a logical axis within `use_mesh`; none outside of it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    axes = next(iter(nn.logical_to_mesh_axes((name,)) or (None,)))
    return tuple(axis for axis in _as_tuple(axes) if mesh.shape[axis] > 1)


def platform_in_use() -> str:
    """Of the mesh, if there is one: a program may be compiled for devices that are not here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@dataclasses.dataclass(frozen=True)
class AttentionAxes:
    """Mesh axes along which rows, query heads and key heads are split; None: they are not."""

    batch: tuple[str, ...] | None
    heads: tuple[str, ...] | None
    kv_heads: tuple[str, ...] | None


def attention_axes(batch: int, heads: int, kv_heads: int) -> AttentionAxes | None:
    """How a kernel, which the compiler cannot partition, is distributed with `shard_map`.

    Dimensions that the mesh does not divide evenly are replicated. None: there is only one device,
    or the kernel is already distributed.

    Args:
      batch, heads, kv_heads: rows, query heads and key heads of the whole batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.manual_axes:
        return None

    def dividing(name: str, size: int) -> tuple[str, ...] | None:
        axes = axes_in_use(name)
        return axes if axes and size % math.prod(mesh.shape[x] for x in axes) == 0 else None

    rows, queries, keys = (
        dividing(name, size)
        for name, size in (("batch", batch), ("heads_act", heads), ("kv_heads_act", kv_heads))
    )
    if queries is None or keys is None:
        queries = keys = None
    return AttentionAxes(rows, queries, keys)


@dataclasses.dataclass(frozen=True)
class GatheredKernel:
    """How a linear layer whose weights are split is computed by each device from its own rows.

    axis: the mesh axis that splits the kernel. dim: the kernel's dimension that it splits.
    batch: the mesh axes that split the rows, `axis` among them.
    """

    axis: str
    dim: int
    batch: tuple[str, ...]

    @property
    def spec(self) -> PartitionSpec:
        """Of the kernel, over the axes that `axes` names."""
        return PartitionSpec(*[None] * self.dim, self.axis)

    @property
    def others(self) -> tuple[str, ...]:
        """Axes of the batch over which the kernel is the same."""
        return tuple(axis for axis in self.batch if axis != self.axis)

    def whole(self, kernel: jax.Array) -> jax.Array:
        """The kernel from the parts of all devices; within `shard_map`."""
        return jax.lax.all_gather(kernel, self.axis, axis=self.dim, tiled=True)

    def part(self, gradient: jax.Array) -> jax.Array:
        """This device's part of the sum of gradients over `axis`; within `shard_map`."""
        return jax.lax.psum_scatter(gradient, self.axis, scatter_dimension=self.dim, tiled=True)


def gathered_kernel(
    rows: int, shape: Sequence[int], logical: Sequence[str | None]
) -> GatheredKernel | None:
    """Whether and how a kernel is gathered before its product; None: XLA chooses.

    Args:
      rows: the first dimension of what the kernel is multiplied with.
      shape, logical: of the kernel, and the names of its dimensions.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return None
    batch = axes_in_use("batch")
    for axis in axes_in_use("gathered"):
        for dim, name in enumerate(logical):
            divides = shape[dim] % mesh.shape[axis] == 0
            if name is not None and axis in axes_in_use(name) and axis in batch and divides:
                if rows % math.prod(mesh.shape[x] for x in batch):
                    return None
                return GatheredKernel(axis, dim, batch)
    return None


def batch_shards(mesh: Mesh) -> int:
    """Number of parts of the batch; its size must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in _as_tuple(ShardingRules().batch))


def rows_of_a_device(rows: int) -> int:
    """Rows of a batch that each device computes within `use_mesh`; all of them outside of it."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape[axis] for axis in axes_in_use("batch"))
    return rows if rows % shards else rows // shards


def split_rows(tree: Any) -> Any:
    """Arrays of a traced function, divided along their first axis within `use_mesh`."""
    axes = axes_in_use("batch")
    if not axes:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, _along(axes)), tree)


def splits_weights(mesh: Mesh) -> bool:
    """Whether a device holds less than all weights."""
    return any(mesh.shape[axis] > 1 for axis in ("fsdp", "tensor"))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Places arrays on the mesh, split along their first axis."""
    axes = _as_tuple(ShardingRules().batch)
    spec = _along([axis for axis in axes if mesh.shape[axis] > 1])
    return jax.device_put(tree, NamedSharding(mesh, spec))


def _along(axes: Sequence[str]) -> PartitionSpec:
    """Of arrays whose first axis is split, written as XLA writes those of its results.

    `jax.jit` compiles again for shardings that are equal, but written in another way.
    """
    return PartitionSpec(axes[0] if len(axes) == 1 else tuple(axes)) if axes else PartitionSpec()


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Makes Linen's logical constraints take effect; without a mesh, does nothing.

    `jax.set_mesh` is essential: under a plain `with mesh:` Linen drops them silently.
    """
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(ShardingRules().linen()):
        yield


@contextlib.contextmanager
def traced_on(mesh: Mesh | None) -> Iterator[None]:
    """As `use_mesh`, inside a function that is being traced, so that its callers need not care.

    For training: linear layers gather their weights themselves, see `gathered_kernel`.
    """
    if mesh is None:
        yield
        return
    rules = ShardingRules(gathered="fsdp").linen()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield
