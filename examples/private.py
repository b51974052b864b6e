"""Rare features, and every client hidden: a target chooses the noise; epsilon is recorded after every round."""

from __future__ import annotations

import partwise as pw


def main() -> None:
    workload = pw.SparseLogistic(num_clients=600)
    algorithm = pw.FedSubAvg(local=pw.LocalTraining(pw.SGD(lr=5.0), steps=5))
    drawn = pw.Synchronous(cohort=60, rounds=15, choice=pw.Poisson())
    in_turn = pw.Synchronous(cohort=60, rounds=15, choice=pw.Stalest())
    clip = {"clip_norm": 2.0, "delta": 1e-4}
    ways = {
        "no guarantee": (drawn, None),
        "noise for epsilon 8": (drawn, pw.ClientDP(**clip, epsilon=8.0)),
        "noise in a tree": (in_turn, pw.ClientDP(**clip, noise_multiplier=2.0, mechanism=pw.Tree(restart_every=5))),
    }
    for name, (scheduler, privacy) in ways.items():
        made = pw.Experiment(
            workload,
            algorithm,
            scheduler,
            privacy=privacy,
            evaluation=pw.Evaluation(every=15),
            seed=1,
            name=name.replace(" ", "-"),
        )
        result = made.run(root="runs")
        spent = f"epsilon {result.value('epsilon', 'privacy'):.2f}" if privacy else "epsilon is infinite"
        print(f"{name:20} AUC {result.value('auc', 'central'):.3f}, {spent}")


if __name__ == "__main__":
    main()
