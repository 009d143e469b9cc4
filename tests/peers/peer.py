"""The peer: PEFT on PyTorch and Transformers, in a process of its own.

Reads one job a line as JSON on standard input, answers each with one line of JSON on standard output.
"""

import contextlib
import gc
import json
import math
import random
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

SEED = 42
LEARNING_RATE = 1e-3
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
DROPOUTS += ("dropout", "attention_dropout", "seq_classif_dropout")

# What is learnt, and its class and task in Transformers and PEFT.
KINDS = {
    "classes": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "tokens": (AutoModelForCausalLM, "CAUSAL_LM"),
    "images": (AutoModelForImageClassification, None),
}

Batch = dict[str, torch.Tensor]
# A batch's rows as data.py wrote them: ids, types, label.
Rows = list[dict]


def build(job: dict, steps: int) -> torch.nn.Module:
    """The model with its adapters, as `method` says."""
    torch.manual_seed(SEED)
    kind, task = KINDS[job["kind"]]
    config = AutoConfig.from_pretrained(job["model"], num_labels=job["labels"])
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    base = kind.from_pretrained(
        job["model"], config=config, dtype=torch.float32, attn_implementation=job["attention"]
    )
    saved = ["classifier"] if job["kind"] == "images" else None
    common = dict(task_type=task, modules_to_save=saved, lora_alpha=16, lora_dropout=0.0, target_modules=job["targets"])
    if job["method"] == "adalora":
        # A budget that shrinks from rank 12 to 8, over the middle of the run.
        adapter = AdaLoraConfig(
            init_r=12, target_r=8, tinit=steps // 8, tfinal=steps // 4, deltaT=5, total_step=steps, **common
        )
    else:
        adapter = LoraConfig(r=8, **common)
    return get_peft_model(base, adapter)


def make_optimizer(model: torch.nn.Module, kind: str) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    return torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0, **kinds[kind])


def pad(rows: Rows, token_types: bool) -> Batch:
    """Padded to the longest; no mask where nothing is padded."""
    longest = max(len(row["ids"]) for row in rows)

    def padded(values: list[list[int]]) -> torch.Tensor:
        return torch.tensor([line + [0] * (longest - len(line)) for line in values])

    batch = {
        "input_ids": padded([row["ids"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }
    if token_types:
        batch["token_type_ids"] = padded([row["types"] for row in rows])
    if any(len(row["ids"]) < longest for row in rows):
        batch["attention_mask"] = padded([[1] * len(row["ids"]) for row in rows])
    return batch


def prepare(job: dict, model: torch.nn.Module, rows: Rows) -> Batch:
    """A batch as the model takes it."""
    labels = torch.tensor([row["label"] for row in rows])
    if job["kind"] == "images":
        # What is seen on them changes nothing of the time.
        side = model.config.image_size
        return {"pixel_values": torch.randn(len(rows), 3, side, side), "labels": labels}
    if job["kind"] == "tokens":
        ids = torch.tensor([row["ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "use_cache": False}
    return pad(rows, takes_types(model))


def takes_types(model: torch.nn.Module) -> bool:
    return getattr(model.config, "type_vocab_size", 0) > 1


def precision(job: dict) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16) if job["bf16"] else contextlib.nullcontext()


def toggle(model: torch.nn.Module, choice: random.Random) -> None:
    """The callback: half of the modules train, chosen by chance so that choosing costs nothing."""
    modules = [module for module in model.modules() if isinstance(module, LoraLayer)]
    active = set(choice.sample(range(len(modules)), len(modules) // 2))
    for index, module in enumerate(modules):
        for parameter in (*module.lora_A.parameters(), *module.lora_B.parameters()):
            parameter.requires_grad_(index in active)


def steps(job: dict, model: torch.nn.Module, batches: list[Batch]) -> Iterator[float]:
    """Trains on the batches; yields the seconds of each step."""
    optimizer = make_optimizer(model, job["optimizer"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    choice = random.Random(SEED)
    model.train()
    for number, batch in enumerate(batches):
        started = time.perf_counter()
        if job["method"] == "toggled" and number % job["every"] == 0:
            toggle(model, choice)
        with precision(job):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        if job["method"] == "adalora":
            model.base_model.update_and_allocate(number)
        optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter() - started


def load(path: str) -> list[Rows]:
    return json.loads(Path(path).read_text())


def train(job: dict) -> dict:
    """`warm_up` steps that are not counted, on the last batches, and then `count` steps or all."""
    rows = load(job["batches"])
    count = job["count"] or len(rows)
    chosen = rows[-job["warm_up"] :] * (job["warm_up"] > 0) + rows[:count]
    model = build(job, len(chosen))
    batches = [prepare(job, model, batch) for batch in chosen]
    seconds = list(steps(job, model, batches))
    return {"seconds": seconds[job["warm_up"] :], "peak_memory": peak_memory()}


def evaluation_batches(job: dict, model: torch.nn.Module, batch_size: int) -> list[Batch]:
    """Every `stride`-th row, longest first, so that the first batch warms up the memory of all."""
    rows = sorted(load(job["batches"]), key=lambda row: -len(row["ids"]))[:: job["stride"]]
    batches = [pad(rows[at : at + batch_size], takes_types(model)) for at in range(0, len(rows), batch_size)]
    for batch in batches:
        del batch["labels"]
    return batches


def forward(job: dict, model: torch.nn.Module, batches: list[Batch]) -> float:
    """Seconds of the forward pass over all batches, after one batch that is not counted."""
    model.eval()
    with torch.inference_mode(), precision(job):
        model(**batches[0])
        started = time.perf_counter()
        for batch in batches:
            model(**batch).logits.argmax(dim=-1)
        return time.perf_counter() - started


def evaluate(job: dict) -> dict:
    model = build(job, steps=1)
    return {"seconds": forward(job, model, evaluation_batches(job, model, job["batch_size"]))}


def tune_evaluation(job: dict) -> dict:
    model = build(job, steps=1)
    rounds = {size: evaluation_batches(job, model, size) for size in job["batch_sizes"]}
    return {"seconds": {size: min(forward(job, model, batches) for _ in range(2)) for size, batches in rounds.items()}}


def tune_attention(job: dict) -> dict:
    """Seconds of every `stride`-th batch under each implementation of attention."""
    rows = load(job["batches"])[:: job["stride"]]
    found = {"sdpa": math.inf, "eager": math.inf}
    # In turn and twice, so that a moment's noise does not decide.
    for attention in list(found) * 2:
        model = build(job | {"attention": attention}, steps=len(rows))
        batches = [prepare(job, model, batch) for batch in rows]
        seconds = sum(list(steps(job, model, batches[:1] + batches))[1:])
        found[attention] = min(found[attention], seconds)
    return {"seconds": found}


def tune_optimizer(job: dict) -> dict:
    """Seconds of twenty updates by each of AdamW's implementations."""
    model = build(job, steps=1)
    batch = pad(load(job["batches"])[0], takes_types(model))
    model(**batch).loss.backward()
    found = {}
    for kind in ("fused", "foreach", "loop"):
        optimizer = make_optimizer(model, kind)
        optimizer.step()
        started = time.perf_counter()
        for _ in range(20):
            optimizer.step()
        found[kind] = time.perf_counter() - started
    return {"seconds": found}


def matmul(job: dict) -> dict:
    """The best FLOPs per second of large f32 products."""
    best = 0.0
    for m, k, n in job["sizes"]:
        a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        until = time.perf_counter() + job["seconds"]
        while time.perf_counter() < until:
            started = time.perf_counter()
            torch.matmul(a, b, out=out)
            best = max(best, 2 * m * k * n / (time.perf_counter() - started))
    return {"flops_per_s": best}


def peak_memory() -> int:
    """The largest resident memory this process has taken, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


JOBS = {
    job.__name__: job
    for job in (train, evaluate, tune_evaluation, tune_attention, tune_optimizer, matmul)
}


def main() -> None:
    answers = sys.stdout
    # A library that prints must not be taken for an answer.
    sys.stdout = sys.stderr
    # A deprecation inside PEFT, said at every model.
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(sys.argv[1]))
    imported = peak_memory()
    for line in sys.stdin:
        job = json.loads(line)
        answer = JOBS[job["job"]](job) | {"imported_memory": imported}
        gc.collect()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
