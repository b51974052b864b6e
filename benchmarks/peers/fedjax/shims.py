"""What FedJAX 0.0.17 expects of jax and jax 0.10 no longer does: one function, and two more things for `pmap`.

To be imported before FedJAX is used. May go when FedJAX is released for jax >= 0.10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree_util.tree_map


def device_put_sharded(shards: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
    """One entry of a leading dimension per device, as `pmap` lays its arguments."""
    stacked = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *shards)
    return jax.device_put(stacked, NamedSharding(Mesh(list(devices), ("device",)), PartitionSpec("device")))


def device_put_replicated(tree: Any, devices: Sequence[jax.Device]) -> Any:
    return device_put_sharded([tree] * len(devices), devices)


def mend_pmap() -> None:
    """Give back the two `device_put` functions, and one device's share without its leading dimension of 1."""
    jax.device_put_sharded = device_put_sharded
    jax.device_put_replicated = device_put_replicated
    kind = type(jnp.zeros(1))
    share = kind.addressable_data
    kind.addressable_data = lambda array, device: share(array, device)[0]
