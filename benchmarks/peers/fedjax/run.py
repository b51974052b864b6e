"""FedJAX: `algorithms.fed_avg` over in-memory data. The variant is the `for_each_client` backend: `jit` or `pmap`.

`pmap` puts a client on each of two host devices; `jit`, the default on a CPU, trains one after another. JAX works
ahead, so each round waits for its parameters. XLA chooses its threads by itself.
"""

from __future__ import annotations

import os
import sys

if "pmap" in sys.argv:  # before jax is imported
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import fedjax
import haiku as hk
import jax
import numpy as np
import shims
import work


def uniform(inputs: int) -> dict[str, hk.initializers.Initializer]:
    """PyTorch's initial weights and biases, so that every framework begins alike. inputs: of one unit."""
    start = hk.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
    return {"w_init": start, "b_init": start}


def forward(model: str) -> hk.Transformed:
    """The network; images as (batch, height, width, channel), which is what XLA likes on a CPU."""

    def mlp(batch: dict[str, jax.Array]) -> jax.Array:
        layers = [hk.Flatten(), hk.Linear(200, **uniform(784)), jax.nn.relu, hk.Linear(10, **uniform(200))]
        return hk.Sequential(layers)(batch["x"])

    def cnn(batch: dict[str, jax.Array]) -> jax.Array:
        layers = [
            hk.Conv2D(32, 3, padding="VALID", **uniform(9)),
            jax.nn.relu,
            hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID"),
            hk.Conv2D(64, 3, padding="VALID", **uniform(288)),
            jax.nn.relu,
            hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID"),
            hk.Flatten(),
            hk.Linear(240, **uniform(1600)),
            jax.nn.relu,
            hk.Linear(10, **uniform(240)),
        ]
        return hk.Sequential(layers)(batch["x"])

    return hk.transform(mlp if model == "mlp" else cnn)


def main() -> None:
    task = work.task(variant="jit")
    if task.variant == "pmap":
        shims.mend_pmap()
    data = work.load(task.seed)
    clients = {n: {"x": x[..., None], "y": y} for n, (x, y) in enumerate(zip(data.x, data.y, strict=True))}
    watch = work.Watch()
    federated = fedjax.InMemoryFederatedData(clients)
    model = fedjax.create_model_from_haiku(
        forward(task.model),
        sample_batch={"x": np.zeros((1, 28, 28, 1), np.float32), "y": np.zeros(1, np.int64)},
        train_loss=lambda batch, outputs: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], outputs),
        eval_metrics={"accuracy": fedjax.metrics.Accuracy()},
    )
    with fedjax.for_each_client_backend(task.variant):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            grad_fn=fedjax.model_grad(model),
            client_optimizer=fedjax.optimizers.sgd(task.lr),
            server_optimizer=fedjax.optimizers.sgd(1.0),
            client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=work.BATCH, num_epochs=1, seed=None),
        )
    state = algorithm.init(model.init(jax.random.PRNGKey(task.seed)))
    for number, cohort in enumerate(work.cohorts(task)):
        keys = jax.random.split(jax.random.PRNGKey(number), task.cohort)
        members = federated.get_clients(cohort)
        state, _ = algorithm.apply(state, [(*member, key) for member, key in zip(members, keys, strict=True)])
        jax.block_until_ready(state.params)
        watch.lap()
    test = fedjax.ClientDataset({"x": data.x_test[..., None], "y": data.y_test})
    found = fedjax.evaluate_model(model, state.params, test.padded_batch(batch_size=1000))
    work.report(task, "fedjax", watch, float(found["accuracy"]), "XLA's own choice")


if __name__ == "__main__":
    main()
