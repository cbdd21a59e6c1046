"""Mutants of every file format that retailtag reads: each refused in a sentence, or read right.

    python benchmarks/hostile.py [-n 1000] [--only FORMAT ...] [--first 0] [--dry]
    python benchmarks/hostile.py --write FOLDER --only FORMAT --first NUMBER

Each format is attacked in a process of its own, with a limit of time and memory for each mutant. A
fault is a traceback, an answer that neither the sound file nor a second, independent reading of the
mutant gives, a refusal that names no file, or no answer in time; the faults are printed and the
exit code is 1. Mutants follow from their number: ``--write`` puts one, and what it needs, into a
folder. Appends to ``results/hostile.csv``.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

from record import append, stamp

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"
MODULES = ("attack.py", "mutations.py")


def load_reference() -> None:
    """Import the modules of the tests that mutate and read files."""
    for path in sorted(REFERENCE.glob("*.py")):
        if path.name in MODULES or path.name.startswith("readings"):
            spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)


def attack(name: str, first: int, n: int, answer: multiprocessing.Queue) -> None:
    """Put the tally of one format, and the peak memory of this process, into `answer`."""
    from reference_attack import Attack
    from reference_readings_together import FORMATS

    with tempfile.TemporaryDirectory() as folder:
        os.environ["RETAILTAG_CACHE"] = f"{folder}/cache"
        os.environ["RETAILTAG_STATE"] = f"{folder}/state"
        form = next(form for form in FORMATS if form.name == name)
        tally = Attack(form, Path(folder) / "files").run(range(first, first + n))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer.put((tally, peak))


def attacked(name: str, first: int, n: int) -> tuple[dict[str, object], list[str]]:
    """Row of the table, and the faults."""
    answer: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=attack, args=(name, first, n, answer))
    process.start()
    while True:
        try:
            tally, peak = answer.get(timeout=5)
            break
        except Exception:  # noqa: BLE001 - queue.Empty
            if not process.is_alive():
                died = {"format": name, "inputs": n, "refused": 0, "right": 0, "tracebacks": n,
                        "wrong": 0, "slowest_seconds": "", "peak_mib": ""}  # fmt: skip
                return died, [f"{name}: the process died with code {process.exitcode}"]
    process.join()
    row = {
        "format": name,
        "inputs": tally.inputs,
        "refused": tally.refused,
        "right": tally.right,
        "tracebacks": tally.tracebacks,
        "wrong": tally.wrong,
        "slowest_seconds": round(tally.slowest, 2),
        "peak_mib": round(peak),
    }
    return row, tally.faults


def main() -> None:
    """Attack, print and record."""
    load_reference()
    from reference_attack import Attack
    from reference_readings_together import FORMATS

    known = [form.name for form in FORMATS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=1000, help="mutants of each format")
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="FORMAT")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write one mutant, read none")
    parser.add_argument("--dry", action="store_true", help="print only; record nothing")
    args = parser.parse_args()
    if args.write:
        form = next(form for form in FORMATS if form.name == args.only[0])
        Attack(form, args.write).put(args.first)
        return
    facts, all_faults = stamp(), []
    for name in args.only:
        row, faults = attacked(name, args.first, args.n)
        print(*(f"{key} {value}" for key, value in row.items()), sep="; ", flush=True)
        print(*(f"  {fault}" for fault in faults), sep="\n", end="\n" if faults else "", flush=True)
        all_faults += faults
        if not args.dry:
            append("hostile.csv", [{**facts, **row}])
    sys.exit(f"{len(all_faults)} faults" if all_faults else 0)


if __name__ == "__main__":
    main()
