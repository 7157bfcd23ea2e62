"""White-input analysis of one LRU layer and its cut to a quarter: time and memory.

    python benchmarks/analysis_and_cut.py            # (N, H) = (256, 8) and (512, 256)
    python benchmarks/analysis_and_cut.py --smoke    # tiny layers, a few seconds

"analysis and cut" is what a training run waits for: `compress_` as a user calls it, with the layer read and verified,
Gramian factors, Hankel singular values, balancing, re-diagonalisation and writing back; the estimated H-infinity and
the H2 error of the report are timed apart. Initial layers have poles all over the ring. Crowded ones have a quarter of
their poles next to another one, so that the Gramians are numerically singular and their factors come from the slower,
accurate elimination. "Gramians from data" is what weighting by data and loss adds: the second moments of states and
costates over 100 captured sequences of 784 steps, and their factors. "A bank of systems" is one with a system for each
channel; `compress_` of an S4D layer of this size also verifies it, writes it back and measures the errors. "A bank of
systems with common poles" is a DSS layer, read, verified, and reduced to a choice of its states; rules that allow a
loss try several sizes and measure what each loses. "Everything until the next step" is a cut under captured data with
the optimizer's state carried over, and what the first step after it takes more than those that follow. Peak memory is
the growth of the resident set, in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from _memory import peak_resident_mb
from _report import RESULTS, table, write
from torch import nn

from compressm.adapters.calibration import Calibration, Capture
from compressm.adapters.moments import controllability_moments, observability_moments
from compressm.analysis import Decision, LayerAnalysis
from compressm.compress import compress_
from compressm.layers import DSS, LRU, S4D
from compressm.linalg.forms import Frame
from compressm.linalg.gramians import gramian_factors, moment_factor
from compressm.linalg.hankel import hankel_spectrum
from compressm.linalg.norms import difference, h2_norm, hinf_estimate
from compressm.linalg.statespace import StateSpace
from compressm.reduction.criteria import Criterion, ErrorBound, FixedFraction, HankelEnergy, OrderChoice
from compressm.reduction.reduce import reduce_diagonal
from compressm.reduction.reducers import BalancedTruncation
from compressm.reduction.result import GramianSource, Reduction
from compressm.reduction.weighting import Limits, Weighting
from compressm.settings import CompressionSettings

SETTINGS = CompressionSettings(
    criterion=FixedFraction(0.75), controllability=GramianSource.WHITE, observability=GramianSource.WHITE
)
# N, H, seconds that analysis and cut may take
SHAPES = [(256, 8, 0.5), (512, 256, 3.0)]
SMOKE_SHAPES = [(16, 2, 0.5), (12, 20, 0.5)]
BANK, SMOKE_BANK = (512, 64), (6, 8)  # systems, order
TIED = [(FixedFraction(0.75), 2.0), (HankelEnergy(0.3), 10.0), (ErrorBound(2.0), 10.0)]  # seconds allowed
PAUSES, SMOKE_PAUSES = [(256, 8, 50, 784), (384, 512, 2, 1024)], [(16, 2, 4, 32)]  # N, H, batch, L; one layer
KINDS = ("initial", "crowded")


def layer(kind: str, order: int, width: int) -> LRU:
    """An LRU as initialised, or one with a quarter of its poles beside others."""
    model = LRU(width, order, generator=torch.Generator().manual_seed(0))
    if kind == "crowded":
        with torch.no_grad():
            quarter = order // 4
            model.nu_log[:quarter] = model.nu_log[-quarter:]
            model.theta_log[:quarter] = model.theta_log[-quarter:] + 1e-4
    return model


def system_of(model: LRU) -> StateSpace:
    from compressm.adapters.registry import find_layers

    (ref,) = find_layers(nn.ModuleList([model]))
    return ref.adapter.read(ref.module).to_double()


def timed(call: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Median seconds, and what the last call returned."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def measure(kind: str, order: int, width: int, allowed: float, repeats: int) -> dict[str, object]:
    """The whole, its parts, and memory."""
    system = system_of(layer(kind, order, width))
    slots = order // 4
    factoring, factors = timed(lambda: gramian_factors(system), repeats)
    decomposing, spectrum = timed(lambda: hankel_spectrum(factors), repeats)
    weighting = Weighting(factors, spectrum, GramianSource.WHITE, GramianSource.WHITE)
    choice = OrderChoice(2 * slots, slots)
    reducing, reduction = timed(
        lambda: reduce_diagonal(system, weighting, choice, BalancedTruncation(), Limits()), repeats
    )
    assert isinstance(reduction, Reduction), "the layer cannot be cut; nothing was measured"
    error = difference(system, reduction.system)
    estimating, _ = timed(lambda: hinf_estimate(error), repeats)
    squaring, _ = timed(lambda: h2_norm(error), repeats)
    whole = []
    for _ in range(repeats):
        models = nn.ModuleList([layer(kind, order, width)])
        start = time.perf_counter()
        report = compress_(models, SETTINGS)
        whole.append(time.perf_counter() - start)
        assert report.layers[0].order_after <= slots, "the layer was not cut; nothing was measured"
    total = factoring + decomposing + reducing
    return {
        "layer": kind,
        "N": order,
        "H": width,
        "to": reduction.order,
        "factors s": factoring,
        "values s": decomposing,
        "reduction s": reducing,
        "analysis and cut s": total,
        "allowed s": allowed,
        "within": "yes" if total <= allowed else "no",
        "H-infinity estimate s": estimating,
        "H2 error s": squaring,
        "compress_ s": statistics.median(whole),
        "peak memory MB": peak_memory(kind, order, width),
    }


def measure_capture(order: int, width: int, repeats: int) -> dict[str, object]:
    """Moments and factors from captured passes."""
    system = system_of(layer("initial", order, width))
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(50, 784, width, generator=generator), None) for _ in range(2)]
    capture = Capture(batches, batches)
    inputs, p = timed(lambda: controllability_moments(system, capture, Frame.REAL), repeats)
    gradients, q = timed(lambda: observability_moments(system, capture, Frame.REAL), repeats)
    if not (isinstance(p, torch.Tensor) and isinstance(q, torch.Tensor)):
        raise RuntimeError("no moments were found; nothing was measured")
    factoring, _ = timed(lambda: (moment_factor(p), moment_factor(q)), repeats)
    return {
        "N": order,
        "H": width,
        "states s": inputs,
        "costates s": gradients,
        "factors s": factoring,
        "whole s": inputs + gradients + factoring,
    }


def measure_bank(systems: int, order: int, repeats: int) -> dict[str, object]:
    """A bank of single-input single-output systems as S4D starts, analysed and cut to a quarter."""
    generator = torch.Generator().manual_seed(0)
    step = 10 ** (torch.rand(systems, 1, generator=generator, dtype=torch.float64) * 2 - 3)
    poles = torch.complex(torch.full((order,), -0.5, dtype=torch.float64), torch.pi * torch.arange(order).double())
    log_a, weights = poles * step, torch.randn(systems, 1, order, generator=generator, dtype=torch.complex128)
    bank = StateSpace(log_a.exp(), (torch.expm1(log_a.real) + 0j).unsqueeze(-1), weights, log_a=log_a)
    slots = max(1, order // 4)
    factoring, factors = timed(lambda: gramian_factors(bank), repeats)
    decomposing, spectrum = timed(lambda: hankel_spectrum(factors), repeats)
    weighting = Weighting(factors, spectrum, GramianSource.WHITE, GramianSource.WHITE)
    choice = OrderChoice(2 * slots, slots)
    reducing, reduction = timed(
        lambda: reduce_diagonal(bank, weighting, choice, BalancedTruncation(), Limits()), repeats
    )
    assert isinstance(reduction, Reduction), "the bank cannot be cut; nothing was measured"
    whole = factoring + decomposing + reducing
    calls = []
    for _ in range(repeats):
        model = nn.ModuleList([S4D(systems, order, generator=torch.Generator().manual_seed(0))])
        start = time.perf_counter()
        report = compress_(model, SETTINGS)
        calls.append(time.perf_counter() - start)
        assert report.changed, "the layer was not cut; nothing was measured"
    return {
        "systems": systems,
        "order": order,
        "to": reduction.order,
        "factors s": factoring,
        "values s": decomposing,
        "reduction s": reducing,
        "whole s": whole,
        "allowed s": 2.0,
        "within": "yes" if whole <= 2.0 else "no",
        "compress_ s": statistics.median(calls),
    }


def measure_tied(systems: int, order: int, criterion: Criterion, allowed: float, repeats: int) -> dict[str, object]:
    """A bank with common poles, of which a choice is kept: read, analysed and reduced, as `compress_` does."""
    from compressm.adapters.registry import find_layers

    (ref,) = find_layers(nn.ModuleList([DSS(systems, order, generator=torch.Generator().manual_seed(0))]))
    settings = replace(SETTINGS, criterion=criterion)
    whole, decision = timed(lambda: LayerAnalysis(ref, settings, None, None).decide(reduce=True), repeats)
    if not isinstance(decision, Decision) or decision.reduction is None or decision.discarded is None:
        raise RuntimeError("the bank cannot be cut; nothing was measured")
    return {
        "systems": systems,
        "order": order,
        "criterion": type(criterion).__name__,
        "to": decision.reduction.order,
        "discarded": float(decision.discarded.sum() / decision.values.sum()),
        "whole s": whole,
        "allowed s": allowed,
        "within": "yes" if whole <= allowed else "no",
    }


def measure_pause(order: int, width: int, batch: int, length: int, repeats: int) -> dict[str, object]:
    """What a training run waits for: one weighted cut to half and what the next step takes more, in steps' worth."""
    pauses, steps = [], []
    for _ in range(repeats):
        model = nn.Sequential(layer("initial", order, width))
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        u = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0))

        def train(model: nn.Module, optimizer: torch.optim.Optimizer, u: torch.Tensor) -> None:
            optimizer.zero_grad()
            model(u).square().mean().backward()
            optimizer.step()

        with Calibration(model) as calibration:
            for _ in range(2):
                train(model, optimizer, u)
        start = time.perf_counter()
        report = compress_(model, CompressionSettings(FixedFraction(0.5)), optimizer=optimizer, calibration=calibration)
        train(model, optimizer, u)
        pause = time.perf_counter() - start
        assert report.changed, "the layer was not cut; nothing was measured"
        step, _ = timed(partial(train, model, optimizer, u), 5)
        pauses.append(pause - step)
        steps.append(step)
    pause, step = statistics.median(pauses), statistics.median(steps)
    return {
        "N": order,
        "H": width,
        "batch": batch,
        "L": length,
        "cut until next step s": pause,
        "step at new size s": step,
        "steps' worth": pause / step,
        "within": "yes" if pause <= max(20 * step, 0.6) else "no",
    }


def peak_memory(kind: str, order: int, width: int) -> float:
    """Growth of the resident set over one `compress_`, in MB, measured in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", kind, str(order), str(width)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(kind: str, order: int, width: int) -> None:
    compress_(nn.ModuleList([layer("initial", 8, 2)]), SETTINGS)  # what the first cut of a process loads
    models = nn.ModuleList([layer(kind, order, width)])
    before = peak_resident_mb()
    compress_(models, SETTINGS)
    print(peak_resident_mb() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results are printed, not kept")
    parser.add_argument("--threads", type=int, help="number of threads (torch's default otherwise)")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions, of which the median is told")
    parser.add_argument("--memory-of", nargs=3, metavar=("KIND", "N", "H"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of[0], *(int(n) for n in options.memory_of[1:]))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    shapes, repeats = (SMOKE_SHAPES, 1) if options.smoke else (SHAPES, options.repeats)
    rows = [measure(kind, *shape, repeats) for shape in shapes for kind in KINDS]
    parts = ("factors s", "values s", "reduction s", "H-infinity estimate s", "H2 error s")
    same = ("layer", "N", "H", "to")
    measured = {
        "Analysis and cut to a quarter": [{k: v for k, v in row.items() if k not in parts} for row in rows],
        "Parts": [{k: row[k] for k in (*same, *parts)} for row in rows],
        "Gramians from data": [measure_capture(shapes[0][0], shapes[0][1], repeats)],
        "A bank of systems": [measure_bank(*(BANK if not options.smoke else SMOKE_BANK), repeats)],
        "A bank of systems with common poles": [
            measure_tied(*(BANK if not options.smoke else SMOKE_BANK), *case, repeats) for case in TIED
        ],
        "Everything until the next step": [
            measure_pause(*shape, repeats) for shape in (SMOKE_PAUSES if options.smoke else PAUSES)
        ],
    }
    for heading, lines in measured.items():
        print(f"{heading}\n{table(lines)}\n")
    with tempfile.TemporaryDirectory() as scratch:
        name = f"analysis_and_cut_threads_{torch.get_num_threads()}"
        path = write(name, "Analysis and cut", measured, Path(scratch) if options.smoke else RESULTS)
        print(f"written: {path.name}")


if __name__ == "__main__":
    main()
