"""The rows of the table: what each compares, and the bar it is to meet."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import truediv

import measurements as m


@dataclass(frozen=True)
class Bar:
    """At least or at most so much, at the two instruction-set levels; none where there is no bar."""

    sign: str
    avx2: float | None
    avx512: float | None

    def at(self, level: str) -> float | None:
        return {"avx2": self.avx2, "avx512": self.avx512}.get(level)

    def met(self, level: str, value: float) -> bool | None:
        bar = self.at(level)
        if bar is None:
            return None
        return value >= bar if self.sign == "≥" else value <= bar


def at_least(avx2: float | None, avx512: float | None) -> Bar:
    return Bar("≥", avx2, avx512)


def at_most(avx2: float | None, avx512: float | None) -> Bar:
    return Bar("≤", avx2, avx512)


def saved(half: float, whole: float) -> float:
    return 1 - half / whole


def added(longer: float, shorter: float) -> float:
    return (longer - shorter) / shorter


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    # Our value and what it is held against, as "measurement.value"; several of these: the largest counts.
    ours: str
    against: tuple[str, ...]
    # What both are given in.
    unit: str
    bar: Bar | None = None
    combine: Callable[[float, float], float] = truediv

    def measurements(self) -> list[str]:
        return [value.partition(".")[0] for value in (self.ours, *self.against)]


# In the order in which they are taken: ours first, then what stands against it.
MEASUREMENTS = {
    function.__name__: function
    for function in (
        m.cola,
        m.peft_cola,
        m.cola_bf16,
        m.topk50_cola,
        m.peft_cola_bf16,
        m.upper_cached_cola,
        m.peft_upper_cola,
        m.evaluation,
        m.peft_evaluation,
        m.dense,
        m.peft_dense,
        m.scored_dense,
        m.half_dense,
        m.peft_memory,
        m.torch_peak,
        m.gemm_peak,
        m.base_dense,
        m.peft_base_dense,
        m.llama,
        m.peft_llama,
        m.vit,
        m.peft_vit,
        m.start,
        m.peft_start,
        m.topk50_modules_cola,
        m.peft_toggled_cola,
        m.peft_adalora_cola,
        m.depth,
        m.length,
        m.reallocation,
    )
}

RATE, TIME, BYTES = "samples/s", "s", "bytes"
ROWS = (
    Row(
        "lora_cola_throughput",
        "plain LoRA, an epoch, batch 32; against PEFT, f32",
        "cola.rate",
        ("peft_cola.rate",),
        RATE,
        at_least(1.7, 2.5),
    ),
    Row(
        "lora_cola_throughput_bf16_peer",
        "the same in f32; against PEFT under bf16 autocast",
        "cola.rate",
        ("peft_cola_bf16.rate",),
        RATE,
        at_least(None, 1.7),
    ),
    Row(
        "bf16_cola_throughput",
        "the same under `model.precision = \"bf16\"`; against PEFT under bf16 autocast",
        "cola_bf16.rate",
        ("peft_cola_bf16.rate",),
        RATE,
        at_least(None, 1.7),
    ),
    Row(
        "lora_dense_step_time",
        "a step of 16 × 128 tokens; against PEFT, f32",
        "dense.step",
        ("peft_dense.step",),
        TIME,
        at_most(1.0, 0.6),
    ),
    Row(
        "base_dense_step_time",
        "BERT-base's shape, a step of 8 × 128 tokens; against PEFT, f32",
        "base_dense.step",
        ("peft_base_dense.step",),
        TIME,
        at_most(1.0, 0.7),
    ),
    Row(
        "llama_step_time",
        "SmolLM2-135M's shape, next token, all linear layers, a step of 4 × 256 tokens; against PEFT, f32",
        "llama.step",
        ("peft_llama.step",),
        TIME,
        at_most(0.8, 0.8),
    ),
    Row(
        "llama_peak_memory",
        "peak resident memory of the whole process there; against PEFT",
        "llama.memory",
        ("peft_llama.memory",),
        BYTES,
        at_most(0.5, 0.5),
    ),
    Row(
        "vit_step_time",
        "ViT-S/16's shape, a step of 16 images of 224 × 224; against PEFT, f32",
        "vit.step",
        ("peft_vit.step",),
        TIME,
        at_most(0.8, 0.8),
    ),
    Row(
        "vit_peak_memory",
        "peak resident memory of the whole process there; against PEFT",
        "vit.memory",
        ("peft_vit.memory",),
        BYTES,
        at_most(0.5, 0.5),
    ),
    Row(
        "topk50_cola_throughput",
        "top-k, half of the layers by their gradients, every 20 steps; against PEFT, all modules",
        "topk50_cola.rate",
        ("peft_cola.rate",),
        RATE,
        at_least(2.2, 3.0),
    ),
    Row(
        "once_upper_cached_throughput",
        "the upper half of the layers, frozen prefix cached, from the second epoch; against PEFT, the same half",
        "upper_cached_cola.rate",
        ("peft_upper_cola.rate",),
        RATE,
        at_least(3.0, 4.0),
    ),
    Row(
        "evaluation_throughput",
        "evaluation; against PEFT in inference mode",
        "evaluation.rate",
        ("peft_evaluation.rate",),
        RATE,
        at_least(1.7, 2.5),
    ),
    Row(
        "lora_memory_above_weights",
        "peak resident memory less the f32 weights, 16 × 128; against PEFT",
        "dense.above_weights",
        ("peft_memory.above_weights",),
        BYTES,
        at_most(0.35, 0.35),
    ),
    Row(
        "lora_memory_above_imports",
        "the same, less what the peer's process takes before it loads a model; informative",
        "dense.above_weights",
        ("peft_memory.above_imports",),
        BYTES,
    ),
    Row(
        "lora_peak_memory",
        "peak resident memory of the whole process, 16 × 128; against PEFT",
        "dense.memory",
        ("peft_memory.memory",),
        BYTES,
        at_most(0.3, 0.3),
    ),
    Row(
        "topk50_memory_saved",
        "share of memory above the weights that the upper half of the layers saves; against our plain LoRA",
        "half_dense.above_weights",
        ("dense.above_weights",),
        BYTES,
        at_least(0.25, 0.25),
        saved,
    ),
    Row(
        "roofline_share",
        "useful FLOPs of a 16 × 128 step; against the machine's best f32 product",
        "dense.flops_per_s",
        ("torch_peak.flops_per_s", "gemm_peak.flops_per_s"),
        "FLOP/s",
        at_least(0.8, 0.65),
    ),
    Row(
        "scoring_share",
        "what the activation scorer adds to a step that it measures, 16 × 128; against a step without",
        "scored_dense.step",
        ("dense.step",),
        TIME,
        at_most(0.02, 0.02),
        added,
    ),
    Row(
        "reallocation_ms_1000_modules",
        "a reallocation over 1,000 modules, plugins included, in ms",
        "reallocation.ms",
        (),
        "ms",
        at_most(20, 10),
    ),
    Row(
        "first_step_s",
        "from the command to the end of the first step, tokens cached, in s",
        "start.first_step",
        (),
        TIME,
        at_most(1.5, 0.7),
    ),
    Row(
        "startup_time",
        "the same; against PEFT, tokens ready; informative",
        "start.first_step",
        ("peft_start.first_step",),
        TIME,
    ),
    Row(
        "depth_scaling",
        "growth of the step from 6 to 48 layers; against growth of its FLOPs",
        "depth.time",
        ("depth.flops",),
        "×",
        at_most(1.1, 1.1),
    ),
    Row(
        "length_scaling",
        "growth of the step from 64 to 512 tokens a text; against growth of its FLOPs",
        "length.time",
        ("length.flops",),
        "×",
        at_most(1.1, 1.1),
    ),
    Row(
        "adalora_cola_throughput",
        "plain LoRA, a part of the epoch; against PEFT's AdaLoRA; informative",
        "cola.part_rate",
        ("peft_adalora_cola.rate",),
        RATE,
    ),
    Row(
        "toggled_cola_throughput",
        "top-k, half of the modules, a part of the epoch; against PEFT with modules toggled; informative",
        "topk50_modules_cola.rate",
        ("peft_toggled_cola.rate",),
        RATE,
    ),
)
