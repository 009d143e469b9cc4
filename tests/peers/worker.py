"""A peer's process, seen from outside."""

import json
import subprocess
import sys
import time
from pathlib import Path

from environment import HERE, child_environment


class Worker:
    """`peer.py`, asked one job after another."""

    def __init__(self, threads: int) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "peer.py"), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(threads),
        )

    def ask(self, job: str, **arguments: object) -> dict:
        print(json.dumps({"job": job, **arguments}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer failed at `{job}`; what it said is above")
        return json.loads(answer)

    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self.started

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def random_model(model: Path, out: Path, changes: dict[str, object], threads: int) -> Path:
    """A model of another size beside `model`, made where it is not there yet."""
    if not (out / "model.safetensors").is_file():
        arguments = [f"{key}={value}" for key, value in changes.items()]
        command = [sys.executable, HERE / "random_model.py", model, out, *arguments]
        subprocess.run(command, check=True, env=child_environment(threads))
    return out
