"""What is measured: each function here takes one sample, in seconds, bytes, or things per second.

A sample is a dictionary; rows.py names its values as "measurement.value".
"""

import json
import statistics
import struct
from math import prod
from pathlib import Path

import flops
import ours
from data import Workload
from environment import cpu, has_bf16
from lab import LLAMA_TARGETS, VIT_TARGETS, WARM_UP, Lab
from ours import Unavailable
from worker import Worker

Sample = dict[str, float]

RANK = 8
# Of the informative rows, whose peers are slow: a part of the epoch, the same for both sides.
PART = 4
TOGGLE_EVERY = 8
SCORED_STEPS = 14
EPOCHS_CACHED = 3
# Sizes of torch.matmul that the peak is looked for in.
PRODUCTS = [(2048, 384, 1536), (1024, 1024, 1024), (2048, 2048, 2048)]


def weights(model: Path) -> int:
    """Bytes of a model's weights in f32."""
    with (model / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors = (tensor for name, tensor in header.items() if name != "__metadata__")
    return sum(4 * prod(tensor["shape"]) for tensor in tensors if tensor["dtype"] in ("F32", "F16", "BF16"))


def rate(workload: Workload, seconds: list[float]) -> float:
    """Examples per second over so many steps."""
    return workload.batch_size * len(seconds) / sum(seconds)


def step_time(run: ours.Run) -> float:
    return statistics.median(run.seconds()[WARM_UP:])


def memory(peak: int, model: Path) -> Sample:
    return {"memory": peak, "above_weights": peak - weights(model)}


def part(lab: Lab) -> int:
    """Batches of the part of the epoch that the informative rows take."""
    return max(1, len(lab.cola.tokens) // PART)


# An epoch of CoLA.


def cola(lab: Lab) -> Sample:
    seconds = lab.run_ours(lab.model, lab.cola).seconds()
    return {"rate": rate(lab.cola, seconds), "part_rate": rate(lab.cola, seconds[: part(lab)])}


def peft_cola(lab: Lab) -> Sample:
    return {"rate": rate(lab.cola, lab.run_peer(lab.model, lab.cola))}


def require_bf16() -> None:
    if not has_bf16(cpu()[1]):
        raise Unavailable("this processor has neither avx512_bf16 nor amx_bf16")


def cola_bf16(lab: Lab) -> Sample:
    require_bf16()
    return {"rate": rate(lab.cola, lab.run_ours(lab.model, lab.cola, model__precision="bf16").seconds())}


def peft_cola_bf16(lab: Lab) -> Sample:
    require_bf16()
    return {"rate": rate(lab.cola, lab.run_peer(lab.model, lab.cola, bf16=True))}


# Half of the layers, chosen anew every twenty steps.
HALF_OF_LAYERS = {
    "allocation__unit": "layer",
    "allocation__initial": "all",
    "scorer__plugin": "gradient",
    "allocator__plugin": "top-k",
    "allocator__k": "50%",
    "allocation__schedule__kind": "periodic",
    "allocation__schedule__every": 20,
}


def topk50_cola(lab: Lab) -> Sample:
    return {"rate": rate(lab.cola, lab.run_ours(lab.model, lab.cola, **HALF_OF_LAYERS).seconds())}


def upper_cached_cola(lab: Lab) -> Sample:
    """The epochs after the first, which fills the cache."""
    keys = lab.recipe(lab.model, lab.cola)
    if not ours.knows(keys, "train.cache_frozen_prefix", True, lab.threads):
        raise Unavailable("the program has no train.cache_frozen_prefix")
    run = lab.run_ours(
        lab.model,
        lab.cola,
        adapter__targets=[f"regex:{lab.upper_targets}"],
        train__cache_frozen_prefix=True,
        train__epochs=EPOCHS_CACHED,
    )
    return {"rate": rate(lab.cola, run.seconds()[len(lab.cola.tokens) :])}


def peft_upper_cola(lab: Lab) -> Sample:
    return {"rate": rate(lab.cola, lab.run_peer(lab.model, lab.cola, targets=lab.upper_targets))}


# Informative: a part of the epoch.


def peft_adalora_cola(lab: Lab) -> Sample:
    return {"rate": rate(lab.cola, lab.run_peer(lab.model, lab.cola, method="adalora", count=part(lab)))}


def topk50_modules_cola(lab: Lab) -> Sample:
    half = HALF_OF_LAYERS | {"allocation__unit": "module", "allocation__schedule__every": TOGGLE_EVERY}
    return {"rate": rate(lab.cola, lab.run_ours(lab.model, lab.cola, **half, train__steps=part(lab)).seconds())}


def peft_toggled_cola(lab: Lab) -> Sample:
    settings = {"method": "toggled", "every": TOGGLE_EVERY, "count": part(lab)}
    return {"rate": rate(lab.cola, lab.run_peer(lab.model, lab.cola, **settings))}


# Evaluation.


def evaluation(lab: Lab) -> Sample:
    record = lab.run_ours(lab.model, lab.cola, train__steps=1, evaluation__every=1).evaluation()
    return {"rate": record["examples"] / record["seconds"]}


def peft_evaluation(lab: Lab) -> Sample:
    answer = lab.worker.ask("evaluate", **lab.evaluation_job(stride=1), batch_size=lab.evaluation_batch)
    return {"rate": lab.cola.dev_examples / answer["seconds"]}


# Dense batches: 16 × 128 tokens of the model, 8 × 128 of BERT-base's shape.


def dense(lab: Lab) -> Sample:
    run = lab.run_ours(lab.model, lab.dense, train__steps=SCORED_STEPS)
    seconds = step_time(run)
    useful = flops.step(lab.model, lab.dense.batch_size, lab.dense.max_length, RANK)
    return {"step": seconds, "flops_per_s": useful / seconds} | memory(run.peak_memory, lab.model)


def scored_dense(lab: Lab) -> Sample:
    """Every step measured for the scorer, all modules active; the one reallocation is at the end."""
    run = lab.run_ours(
        lab.model,
        lab.dense,
        train__steps=SCORED_STEPS + 1,
        scorer__plugin="activation",
        allocator__plugin="top-k",
        allocator__k="50%",
        allocation__schedule__kind="once",
        allocation__schedule__after=SCORED_STEPS,
    )
    return {"step": statistics.median(run.seconds()[WARM_UP:SCORED_STEPS])}


def peft_dense(lab: Lab) -> Sample:
    return {"step": statistics.median(lab.run_peer(lab.model, lab.dense, count=6))}


def half_dense(lab: Lab) -> Sample:
    """The upper half of the layers from the first step to the last, as after `once` by gradients."""
    run = lab.run_ours(lab.model, lab.dense, adapter__targets=[f"regex:{lab.upper_targets}"])
    return memory(run.peak_memory, lab.model)


def base_dense(lab: Lab) -> Sample:
    return {"step": step_time(lab.run_ours(lab.base, lab.base_dense))}


def peft_base_dense(lab: Lab) -> Sample:
    return {"step": statistics.median(lab.run_peer(lab.base, lab.base_dense, count=4))}


# A decoder that predicts tokens, all linear layers adapted, and a vision transformer.


def llama(lab: Lab) -> Sample:
    return family(lab.run_ours(lab.llama, lab.language, adapter__targets=LLAMA_TARGETS))


def peft_llama(lab: Lab) -> Sample:
    return peft_family(lab, lab.llama, lab.language, LLAMA_TARGETS)


def vit(lab: Lab) -> Sample:
    return family(lab.run_ours(lab.vit, lab.images, adapter__targets=VIT_TARGETS))


def peft_vit(lab: Lab) -> Sample:
    return peft_family(lab, lab.vit, lab.images, VIT_TARGETS)


def family(run: ours.Run) -> Sample:
    return {"step": step_time(run), "memory": run.peak_memory}


def peft_family(lab: Lab, model: Path, workload: Workload, targets: list[str]) -> Sample:
    """In a process that does nothing else, for its memory."""
    job = lab.tuned_job(model, workload, targets=targets, count=4)
    worker = Worker(lab.threads)
    answer = worker.ask("train", **job)
    worker.close()
    return {"step": statistics.median(answer["seconds"]), "memory": answer["peak_memory"]}


def peft_memory(lab: Lab) -> Sample:
    """In a process that does nothing else."""
    job = lab.tuned_job(lab.model, lab.dense, count=4, warm_up=0)
    worker = Worker(lab.threads)
    answer = worker.ask("train", **job)
    worker.close()
    imported = {"above_imports": answer["peak_memory"] - answer["imported_memory"] - weights(lab.model)}
    return memory(answer["peak_memory"], lab.model) | imported


# From starting the command to the end of the first step.


def start(lab: Lab) -> Sample:
    if "tokens cached" not in lab.notes:
        lab.run_ours(lab.model, lab.cola, train__steps=1)
        lab.notes["tokens cached"] = True
    return {"first_step": lab.run_ours(lab.model, lab.cola, train__steps=1).first_step}


def peft_start(lab: Lab) -> Sample:
    job = lab.tuned_job(lab.model, lab.cola, count=1, warm_up=0)
    worker = Worker(lab.threads)
    worker.ask("train", **job)
    seconds = worker.age()
    worker.close()
    return {"first_step": seconds}


# The machine's products, and the library by itself.


def torch_peak(lab: Lab) -> Sample:
    return {"flops_per_s": lab.worker.ask("matmul", sizes=PRODUCTS, seconds=1.0)["flops_per_s"]}


def gemm_peak(lab: Lab) -> Sample:
    return ours.bench("gemm", lab.threads)


def reallocation(lab: Lab) -> Sample:
    return {"ms": statistics.median(ours.bench("reallocation", lab.threads)["milliseconds"])}


# Scaling of our step, over scaling of what it has to do.


def growth(lab: Lab, small: tuple[Path, Workload], large: tuple[Path, Workload]) -> Sample:
    times, useful = [], []
    for model, workload in (small, large):
        times.append(step_time(lab.run_ours(model, workload)))
        useful.append(flops.step(model, workload.batch_size, workload.max_length, RANK))
    return {"time": times[1] / times[0], "flops": useful[1] / useful[0]}


def depth(lab: Lab) -> Sample:
    models = [lab.shaped(f"{layers}-layers", layers=layers) for layers in (6, 48)]
    return growth(lab, (models[0], lab.depth_batches), (models[1], lab.depth_batches))


def length(lab: Lab) -> Sample:
    short, long = lab.length_batches
    return growth(lab, (lab.model, short), (lab.model, long))
