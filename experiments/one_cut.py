"""One cut of a trained model by each kind of balancing: accuracy right after, no fine-tuning.

    python experiments/one_cut.py --out experiments/results/one_cut

An LRU (N = 256, H = 8) is trained for 2,000 steps on sequential MNIST, then cut once to each order by complex balancing
(the paper), real-output balancing, with the data-weighted controllability Gramian, and with the loss-weighted
observability Gramian on top, these two also with the reduced layer fitted to its inputs. The Gramians from data use the
last two training batches (100 sequences).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from smnist import Smnist, markdown, mean_and_spread, paper_model, training_step, write_record

from compressm import Balancing, Calibration, CompressionSettings, FixedOrder, GramianSource, compress_
from compressm.reduction.reducers import BalancedTruncation

WHITE, DATA, LOSS = GramianSource.WHITE, GramianSource.DATA, GramianSource.LOSS
KINDS = {
    "complex (paper)": (Balancing.COMPLEX, WHITE, WHITE, False),
    "real output": (Balancing.REAL, WHITE, WHITE, False),
    "real + data P": (Balancing.REAL, DATA, WHITE, False),
    "real + data P, fitted": (Balancing.REAL, DATA, WHITE, True),
    "real + data P + loss Q": (Balancing.REAL, DATA, LOSS, False),
    "real + data P + loss Q, fitted": (Balancing.REAL, DATA, LOSS, True),
}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", type=int, nargs="+", default=[6, 8, 13, 28, 47])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    full: list[float] = []
    found: dict[tuple[int, str], list[float]] = {}
    for seed in args.seeds:
        data, model = Smnist(seed), paper_model(seed)
        optimizer = torch.optim.Adam(model.parameters(), args.lr)
        calibration = Calibration(model)
        for step in range(args.steps):
            if step == args.steps - 2:
                calibration.start()
            training_step(model, optimizer, *data.batch(step))
        calibration.stop()
        full.append(data.accuracy(model))
        print(f"seed {seed}: uncut {full[-1]:.2f}", flush=True)
        for order in args.orders:
            for name, (balancing, p, q, refit) in KINDS.items():
                small = copy.deepcopy(model)
                settings = CompressionSettings(
                    criterion=FixedOrder(order),
                    balancing=balancing,
                    controllability=p,
                    observability=q,
                    reducer=BalancedTruncation(refit=refit),
                )
                report = compress_(small, settings, calibration=calibration)
                found.setdefault((order, name), []).append(data.accuracy(small))
                used = (report.layers[0].controllability, report.layers[0].observability)
                print(f"  r={order} {name}: {found[order, name][-1]:.2f} {used}", flush=True)
    rows = [[r, *(mean_and_spread(found[r, name]) for name in KINDS)] for r in args.orders]
    table = f"Uncut: {mean_and_spread(full)} %\n\n" + markdown(["order", *KINDS], rows)
    results = {"uncut": full, "cut": [{"order": r, "kind": k, "accuracy": v} for (r, k), v in found.items()]}
    write_record(args.out, "python experiments/one_cut.py", results, table)


if __name__ == "__main__":
    main()
