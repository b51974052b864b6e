"""A network on one machine: three nodes with parts of the standard library's code, and what may go wrong.

The third node joins late, the second is killed in the middle of its work and comes back, the server is killed and goes
on from its folder. What the model reaches is compared with the same experiment in the simulator, under three seeds.
Needs `pip install 'partwise[flower]'`; takes some ten minutes, and fails if it takes too long, or the two do not agree.

    python three_nodes.py                   FedSubAvg, 20 rounds; --versions 6 makes fewer
    python three_nodes.py --method fedbuff  FedBuff, 60 commits
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from commands import Command, call, free_port, wait_for
from scores import auc, simulated

HERE = Path(__file__).resolve().parent
VERSIONS = {"fedsubavg": ("scheduler.rounds", 20), "fedbuff": ("scheduler.versions", 60)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(VERSIONS), default="fedsubavg")
    parser.add_argument("--versions", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1500.0, help="how long it may take")
    parser.add_argument("--folder", type=Path, default=Path("deployment"))
    given = parser.parse_args()
    key, usual = VERSIONS[given.method]
    versions, spec = given.versions or usual, HERE / f"{given.method}.toml"
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    network(spec, f"{key}={versions}", versions, time.monotonic() + given.seconds)
    compare(simulated(spec, f"{key}={versions}"), Path("net/server/run"))


def network(spec: Path, change: str, versions: int, until: float) -> None:
    call("deploy", "init", str(spec), change, "--folder", "net", "--address", f"127.0.0.1:{free_port()}")
    server = Path("net/server")
    running = [Command("deploy", "server", str(server))]
    try:
        running += [Command("deploy", "node", f"net/node-{number}") for number in (1, 2)]
        wait_for(server, max(1, versions // 6), until, running[0])
        running.append(Command("deploy", "node", "net/node-3"))
        wait_for(server, versions // 3, until, running[0])
        time.sleep(3.0)  # now it has work
        running[2].kill()
        wait_for(server, versions // 2, until, running[0])
        running[2].start()
        wait_for(server, 2 * versions // 3, until, running[0])
        running[0].kill()
        time.sleep(2.0)
        running[0].start()
        found = wait_for(server, 10**9, until, running[0])
    finally:
        for command in running:
            command.stop()
    print(json.dumps(found), flush=True)
    if found["status"] != "done" or found["version"] != versions:
        raise SystemExit("the run did not end as it should")


def compare(aucs: list[float], run: Path) -> None:
    from partwise.experiment.store import RunStore

    network_auc = auc(run, "central")
    with RunStore(run, "read") as store:
        clients = {row["client"] for row in store.replies()}
    middle, spread = statistics.mean(aucs), statistics.stdev(aucs)
    allowed = max(3 * spread, 0.01)
    print(f"AUC on the network {network_auc:.4f} ({len(clients)} clients took part)")
    print(f"AUC in the simulator {middle:.4f}, standard deviation over three seeds {spread:.4f}; allowed {allowed:.4f}")
    if abs(network_auc - middle) > allowed:
        raise SystemExit("the two do not agree")


if __name__ == "__main__":
    main()
