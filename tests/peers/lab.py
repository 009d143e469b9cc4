"""What everything is measured on: the model, the data, the machine, and the peer's best settings on it."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import data
import flops
import ours
from data import Example, Source, Workload
from environment import FOLDER, Missing, say
from worker import Worker, random_model

BATCH = 32
MAX_LENGTH = 128
# Steps whose time is not counted where the time of one step is asked for.
WARM_UP = 2
EVALUATION_BATCHES = (16, 32, 64, 128)

TARGETS = {"bert": ("query", "value"), "roberta": ("query", "value"), "distilbert": ("q_lin", "v_lin")}
# What config.json calls a model's sizes.
KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}
DISTILBERT_KEYS = {"layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim"}
# SmolLM2-135M, and ViT-S/16.
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": "true",
}
VIT_SMALL = {
    "model_type": "vit",
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VIT_TARGETS = ["q_proj", "v_proj"]
BERT_BASE = {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072}


@dataclass
class Lab:
    """The model, the data and the machine that everything is measured on; what it makes, it makes once."""

    model: Path
    source: Source
    rows: int
    threads: int
    scratch: Path

    def __post_init__(self) -> None:
        self.train = data.read(self.source.train, self.source.columns)
        self.dev = data.read(self.source.dev, self.source.columns)
        self.labels = sorted({example.label for example in (*self.train, *self.dev)})
        self.encode = data.encoder(self.model / "tokenizer.json")
        family = json.loads((self.model / "config.json").read_text()).get("model_type")
        if family not in TARGETS:
            raise Missing(f"--model: {family} is none of {', '.join(TARGETS)}")
        self.targets = list(TARGETS[family])
        self.keys = DISTILBERT_KEYS if family == "distilbert" else KEYS
        self.notes: dict[str, object] = {}

    @cached_property
    def worker(self) -> Worker:
        return Worker(self.threads)

    def close(self) -> None:
        # Without starting one that was never asked for.
        if "worker" in self.__dict__:
            self.worker.close()

    def workload(self, name: str, batches: list[list[Example]], max_length: int, dev: list[Example]) -> Workload:
        return data.write(self.scratch / name, self.encode, self.labels, batches, max_length, dev)

    @cached_property
    def sampled(self) -> list[Example]:
        return data.sample(self.train, self.rows, BATCH)

    @cached_property
    def cola(self) -> Workload:
        """An epoch, in the order of batches in which PEFT is faster."""
        orders = {
            "shuffled": data.in_batches(self.sampled, BATCH),
            "length-grouped": data.length_grouped(self.encode, self.sampled, BATCH, MAX_LENGTH),
        }
        workloads = {name: self.workload(name, batches, MAX_LENGTH, self.dev) for name, batches in orders.items()}
        times = {name: self.attention_times(self.model, workload, 12) for name, workload in workloads.items()}
        order = self.fastest("order of batches", {name: min(found.values()) for name, found in times.items()})
        self.fastest(attention_of(self.model, workloads[order]), times[order])
        return workloads[order]

    @cached_property
    def dense(self) -> Workload:
        return self.dense_workload("dense", batches=8, batch_size=16, length=128)

    @cached_property
    def base_dense(self) -> Workload:
        return self.dense_workload("base-dense", batches=WARM_UP + 4, batch_size=8, length=128)

    def dense_workload(self, name: str, batches: int, batch_size: int, length: int) -> Workload:
        return self.workload(name, data.dense(self.encode, self.train, batches, batch_size, length), length, dev=[])

    @cached_property
    def depth_batches(self) -> Workload:
        return self.dense_workload("depth", batches=WARM_UP + 4, batch_size=8, length=128)

    @cached_property
    def length_batches(self) -> tuple[Workload, Workload]:
        """The same number of texts, short and long."""
        sizes = ((64, WARM_UP + 10), (512, WARM_UP + 4))
        short, long = (self.dense_workload(f"length-{size}", batches, 8, size) for size, batches in sizes)
        return short, long

    @cached_property
    def llama(self) -> Path:
        return random_model(self.model, FOLDER / "smollm2-shape", SMOLLM2, self.threads)

    @cached_property
    def vit(self) -> Path:
        return random_model(self.model, FOLDER / "vit-small-shape", VIT_SMALL, self.threads)

    @cached_property
    def language(self) -> Workload:
        batches = data.language(self.encode, self.train, batches=WARM_UP + 4, batch_size=4, length=256)
        return replace(self.workload("language", batches, 256, dev=[]), kind="tokens")

    @cached_property
    def images(self) -> Workload:
        # The patches, and the token in front of them.
        tokens = 1 + (224 // 16) ** 2
        return data.write_images(self.scratch / "images", batches=WARM_UP + 4, batch_size=16, side=224, tokens=tokens)

    @cached_property
    def base(self) -> Path:
        return self.shaped("bert-base", **BERT_BASE)

    def shaped(self, name: str, **sizes: int) -> Path:
        """The model in another size, with random weights."""
        changes = {self.keys[size]: number for size, number in sizes.items()}
        return random_model(self.model, FOLDER / f"{self.model.name}-as-{name}", changes, self.threads)

    def fastest(self, what: str, seconds: dict[str, float]) -> str:
        choice = min(seconds, key=lambda name: seconds[name])
        self.notes[what] = {"chosen": choice, "seconds": seconds}
        say(f"  the peer's {what}: {choice}")
        return choice

    def attention_times(self, model: Path, workload: Workload, batches: int, **settings: object) -> dict[str, float]:
        """Seconds of about so many of the workload's batches under each implementation of attention."""
        job = self.job(model, workload, attention="sdpa", optimizer="fused", **settings)
        stride = max(1, len(workload.tokens) // batches)
        return self.worker.ask("tune_attention", **job, stride=stride)["seconds"]

    def attention(self, model: Path, workload: Workload, **settings: object) -> str:
        what = attention_of(model, workload)
        if what not in self.notes:
            return self.fastest(what, self.attention_times(model, workload, 3, **settings))
        return self.notes[what]["chosen"]

    @cached_property
    def optimizer(self) -> str:
        job = self.job(self.model, self.dense, attention="sdpa", optimizer="fused")
        return self.fastest("AdamW", self.worker.ask("tune_optimizer", **job)["seconds"])

    @cached_property
    def evaluation_batch(self) -> int:
        job = self.evaluation_job(stride=4)
        found = self.worker.ask("tune_evaluation", **job, batch_sizes=EVALUATION_BATCHES)
        return int(self.fastest("batch size of evaluation", found["seconds"]))

    def job(self, model: Path, workload: Workload, **settings: object) -> dict[str, object]:
        """What a peer is told; plain LoRA in f32 unless `settings` say otherwise."""
        return {
            "model": str(model),
            "kind": workload.kind,
            "labels": len(workload.labels),
            "batches": str(workload.folder / "batches.json"),
            "method": "lora",
            "targets": self.targets,
            "bf16": False,
            "count": None,
            "warm_up": WARM_UP,
            **settings,
        }

    def tuned_job(self, model: Path, workload: Workload, **settings: object) -> dict[str, object]:
        attention = self.attention(model, workload, targets=settings.get("targets", self.targets))
        tuned = {"attention": attention, "optimizer": self.optimizer}
        return self.job(model, workload, **tuned, **settings)

    def evaluation_job(self, stride: int) -> dict[str, object]:
        """Of every `stride`-th row of the dev set."""
        changes = {"batches": str(self.cola.folder / "dev.json"), "stride": stride}
        return self.tuned_job(self.model, self.cola) | changes

    def run_peer(self, model: Path, workload: Workload, **settings: object) -> list[float]:
        """Seconds of each of the peer's steps."""
        return self.worker.ask("train", **self.tuned_job(model, workload, **settings))["seconds"]

    def run_ours(self, model: Path, workload: Workload, **changes: object) -> ours.Run:
        """A run of plain LoRA; `changes` are a recipe's keys with `__` for their dots."""
        keys = self.recipe(model, workload)
        keys |= {key.replace("__", "."): value for key, value in changes.items()}
        if "train.steps" in keys:
            del keys["train.epochs"]
        run = ours.train(keys, self.threads)
        ours.check_batches(run, workload)
        return run

    def recipe(self, model: Path, workload: Workload) -> dict[str, object]:
        return ours.recipe(model, self.targets, workload, self.scratch / "run", self.threads)

    @cached_property
    def upper_targets(self) -> str:
        """A pattern for the targets in the upper half of the layers."""
        layers = flops.shape(self.model)[0]
        numbers = "|".join(str(layer) for layer in range(layers // 2, layers))
        return rf".*layer\.({numbers})\..*({'|'.join(self.targets)})"


def attention_of(model: Path, workload: Workload) -> str:
    return f"attention ({model.name}, {workload.folder.name})"
