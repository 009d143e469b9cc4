"""dynalora, measured through the program that ships and the files that it writes."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data import Workload
from environment import BENCH, PROGRAM, ROOT, child_environment

POLL_SECONDS = 0.002


class Unavailable(Exception):
    """A row that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Run:
    folder: Path
    # From starting the command to the first record of a step.
    first_step: float
    # The largest resident memory of the whole process, in bytes.
    peak_memory: int

    @cached_property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict]:
        return [record for record in self.records if record["kind"] == "step"]

    def seconds(self) -> list[float]:
        """Of each step."""
        ends = [0.0, *(record["seconds"] for record in self.steps)]
        return [end - start for start, end in zip(ends, ends[1:])]

    def evaluation(self) -> dict:
        return next(record for record in self.records if record["kind"] == "evaluation")


def recipe(model: Path, targets: list[str], workload: Workload, output: Path, threads: int) -> dict[str, object]:
    """Plain LoRA on a workload; its keys are a recipe's, dotted."""
    data = {
        "classes": {
            "model.max_length": workload.max_length,
            "data.train": str(workload.folder / "train.csv"),
            "data.labels": workload.labels,
            "data.columns.text": "text",
            "data.columns.label": "label",
        },
        "tokens": {
            "model.max_length": workload.max_length,
            "data.problem": "causal-lm",
            "data.train": str(workload.folder / "train.csv"),
            "data.columns.text": "text",
        },
        "images": {"data.format": "images", "data.train": str(workload.folder / "train")},
    }
    return {
        "seed": 42,
        "output": str(output),
        "device": "cpu",
        "threads": threads,
        "model.name": str(model),
        "model.hidden_dropout": 0.0,
        "model.attention_dropout": 0.0,
        "model.classifier_dropout": 0.0,
        **data[workload.kind],
        **({"data.columns.text_pair": "pair"} if workload.pairs else {}),
        **({"data.validation": str(workload.folder / "dev.csv")} if workload.dev_examples else {}),
        "adapter.rank": 8,
        "adapter.alpha": 16.0,
        "adapter.dropout": 0.0,
        "adapter.targets": targets,
        "train.batch_size": workload.batch_size,
        "train.order": "sequential",
        "train.epochs": 1,
        "train.learning_rate": 1e-3,
        "train.log_every": 1,
        "evaluation.every": "never",
        "checkpoint.every": "never",
    }


def to_toml(keys: dict[str, object]) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in keys.items())


def train(keys: dict[str, object], threads: int) -> Run:
    output = Path(str(keys["output"]))
    shutil.rmtree(output, ignore_errors=True)
    file = output.with_suffix(".toml")
    file.write_text(to_toml(keys), encoding="utf-8")
    metrics = output / "metrics.jsonl"
    started = time.perf_counter()
    process = subprocess.Popen(
        [PROGRAM, "train", file, "--quiet"], stdout=subprocess.DEVNULL, env=child_environment(threads)
    )
    first_step = None
    while first_step is None and not exited(process.pid):
        if metrics.is_file() and metrics.stat().st_size > 0:
            first_step = time.perf_counter() - started
        time.sleep(POLL_SECONDS)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or first_step is None:
        raise RuntimeError(f"`dynalora train {file}` failed with exit code {process.returncode}")
    return Run(output, first_step, usage.ru_maxrss * 1024)


def exited(pid: int) -> bool:
    """Whether a child has ended; it stays to be waited for, as its memory is asked for then."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def check_batches(run: Run, workload: Workload) -> None:
    """Refuses a run whose batches had other tokens than the peer's."""
    ends = [0, *(record["tokens"] for record in run.steps)]
    found = [end - start for start, end in zip(ends, ends[1:])]
    expected = [workload.tokens[step % len(workload.tokens)] for step in range(len(found))]
    if found != expected:
        raise RuntimeError(f"{run.folder}: other tokens in the batches than the peer's: {found[:5]}, {expected[:5]}")


def knows(keys: dict[str, object], key: str, value: object, threads: int) -> bool:
    """Whether the program takes a recipe's key."""
    file = Path(str(keys["output"])).with_suffix(".toml")
    file.write_text(to_toml(keys | {key: value}), encoding="utf-8")
    plan = subprocess.run([PROGRAM, "plan", file, "--quiet"], capture_output=True, env=child_environment(threads))
    return plan.returncode == 0


def bench(what: str, threads: int) -> dict:
    """A measurement of tests/benches/peers.rs."""
    command = [*BENCH, "--", what, str(threads)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=child_environment(threads))
    except FileNotFoundError:
        raise Unavailable("cargo is not on the path")
    if done.returncode != 0:
        raise Unavailable(f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)
