"""Writes every golden file under tests/fixtures, or checks that they still come out the same.

    python tests/oracle/golden.py --minilm DIR            writes
    python tests/oracle/golden.py --minilm DIR --check    compares with what is committed

Without --minilm only the tiny models and their goldens are made.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

import adalora
import eva
import forward
import images
import scores
import signals
import tiny
import training
import words
from common import FIXTURES, SEED, Encoder, be_deterministic, draw_head, write_json

MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# Another processor sums in another order; more than this is another result.
TOLERANCE = 2e-5
# A rank that keeps the files small: they hold the shared matrices.
VERA = dict(method="vera", rank=16, learning_rate=1e-2)


def write_minilm(out, folder):
    encoder = Encoder(folder, max_length=128)
    head = draw_head(folder, labels=2, scale=0.02)
    forward.write_tokens(out / "minilm" / "tokens.safetensors", folder, encoder)
    worst = forward.write_minilm(out / "minilm", folder, encoder, head)
    training.write_minilm(training.Setup(folder, encoder, head, MINILM_NAME), out / "minilm")
    setup = training.Setup(folder, encoder, head, MINILM_NAME, **VERA)
    training.write_minilm(setup, out / "minilm" / "vera")
    setup = training.Setup(folder, encoder, head, MINILM_NAME, steps=scores.STEPS)
    scores.write(setup, out / "minilm" / "scores.json", k=5)
    signals.write(training.Setup(folder, encoder, head, MINILM_NAME), out / "minilm" / "signals.json")
    return worst


# The head's hidden layer is a `dense` too.
DEBERTA_LAYERS = ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"]


def write_tiny(out):
    tiny.write_all(out)
    tiny.write_decoders(out)
    short = dict(steps=20, rank=4, alpha=8)
    worst = 0.0
    worst = max(worst, write_deberta(out / "tiny-deberta", short))
    for name in tiny.MODERNBERTS:
        worst = max(worst, write_modernbert(out / name, name, short))
    for name, max_length, targets, head_modules in (
        ("tiny-bert", 64, ["query", "value"], ("classifier",)),
        ("tiny-roberta", 62, ["query", "value"], ("classifier",)),
        ("tiny-distilbert", 64, ["q_lin", "v_lin"], ("pre_classifier", "classifier")),
    ):
        folder = out / name
        encoder = Encoder(folder, max_length)
        head = draw_head(folder, labels=2, scale=0.2)
        forward.write_tokens(folder / "golden" / "tokens.safetensors", folder, encoder)
        worst = max(worst, forward.write_tiny(folder / "golden", folder, encoder, head))
        forward.write_extremes(folder / "golden", folder, head, max_length)
        setup = training.Setup(
            folder, encoder, head, name, targets=targets, head_modules=head_modules, **short
        )
        indices = forward.short_sentences(encoder)
        training.write_tiny(setup, folder / "golden" / "query-value", indices)
        if name in DORA:
            write_dora(folder, name, encoder, head, short)
        if name == "tiny-bert":
            setup = training.Setup(folder, encoder, head, name, targets="all-linear", **short)
            training.write_tiny(setup, folder / "golden" / "all-linear", indices)
            signals.write(setup, folder / "golden" / "all-linear" / "signals.json")
            setup = dataclasses.replace(setup, steps=scores.STEPS)
            scores.write(setup, folder / "golden" / "all-linear" / "scores.json", k=5)
            # Layers of two widths, so that the shared matrices are cut to both.
            setup = training.Setup(folder, encoder, head, name, targets="all-linear", steps=20, **VERA)
            training.write_tiny(setup, folder / "golden" / "vera", indices)
            signals.write(setup, folder / "golden" / "vera" / "signals.json")
            regression = draw_head(folder, labels=1, scale=0.2)
            setup = training.Setup(folder, encoder, regression, name, labels=1, **short)
            training.write_tiny(setup, folder / "golden" / "regression", indices)
            signals.write(setup, folder / "golden" / "regression" / "signals.json")
            # Ends of paths and expressions, of which the first that matches counts.
            ranks = {"layer.1.attention.self.query": 1, "query": 3, r"layer\.\d+\.intermediate.*": 2, "self.*": 5}
            alphas = {"bert.encoder.layer.0.attention.self.query": 3, "dense": 12, "self.value": 2.5}
            setup = training.Setup(
                folder, encoder, head, name, targets="all-linear", rank_pattern=ranks, alpha_pattern=alphas, **short
            )
            training.write_adapter(setup, folder / "golden" / "rank-pattern", indices)
            training.write_tiny(setup, folder / "golden" / "rank-pattern-trained", indices)
            setup = dataclasses.replace(setup, use_rslora=True)
            training.write_adapter(setup, folder / "golden" / "rank-stabilised", indices)
            plus = training.Setup(
                folder, encoder, head, name, targets="all-linear", loraplus_lr_ratio=8.0, weight_decay=0.0, **short
            )
            training.write_tiny(plus, folder / "golden" / "loraplus", indices)
            # No score changes by a key's bias, whose gradient is what rounding leaves.
            bias = training.Setup(
                folder, encoder, head, name, targets=["query", "value", "dense"], bias="lora_only", **short
            )
            training.write_tiny(bias, folder / "golden" / "bias", indices)
            signals.write(bias, folder / "golden" / "bias" / "signals.json")
            pissa = training.Setup(
                folder, encoder, head, name, targets="all-linear", init_lora_weights="pissa", **short
            )
            training.write_pissa(pissa, folder / "golden" / "pissa", indices)
            setup = training.Setup(folder, encoder, head, name, targets="all-linear", **short)
            adalora.write(setup, folder / "golden" / "adalora", indices)
            setup = training.Setup(
                folder, encoder, head, name, head_modules=("classifier", "pooler"), pooler_scale=2.0, **short
            )
            training.write_adapter(setup, folder / "golden" / "saved-pooler", indices)
            for suffix in ("-sharded", "-pretraining"):
                forward.check_same(folder, out / (name + suffix), encoder, head)
            for suffix in ("-f16", "-bf16"):
                half = out / (name + suffix)
                forward.write_tiny(half / "golden", half, encoder, head)
    write_eva(out)
    write_embeddings(out, short)
    for name, targets, head_modules in (
        ("tiny-bert", "all-linear", ("classifier",)),
        ("tiny-distilbert", ["q_lin", "v_lin"], ("classifier",)),
        ("tiny-deberta", DEBERTA_LAYERS, ("classifier",)),
        ("tiny-llama", "all-linear", ("score",)),
        ("tiny-gpt2", "all-linear", ("classifier",)),
        ("tiny-gemma2", "all-linear", ("score",)),
        ("tiny-modernbert", ["Wqkv", "Wo", "Wi"], ("head", "classifier")),
    ):
        # Some sentences are longer, and cut.
        words.write(out / name, targets, head_modules, most=40, **short)
    for name in (*tiny.IMAGES, "tiny-clip"):
        tiny.write_images(out, name)
        worst = max(worst, images.write(out / name, name, **short))
    return max(worst, write_decoders(out, short))


# Weights that lie the other way round, three that read the same, and with biases that train.
DORA = {
    "tiny-bert": dict(targets="all-linear"),
    "tiny-gpt2": dict(targets="all-linear", head_modules=("score",)),
    "tiny-llama": dict(targets="all-linear", head_modules=("score",)),
    "tiny-distilbert": dict(
        targets=["q_lin", "v_lin", "out_lin", "lin1", "lin2"],
        head_modules=("pre_classifier", "classifier"),
        bias="lora_only",
    ),
}


def write_dora(folder, name, encoder, head, short):
    golden = folder / "golden"
    setup = training.Setup(folder, encoder, head, name, use_dora=True, **DORA[name], **short)
    training.write_tiny(setup, golden / "dora", forward.short_sentences(encoder))
    signals.write(setup, golden / "dora" / "signals.json")
# But for the pooler, whose input PEFT's EVA would mask as if it were all tokens'.
BERT_LAYERS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def write_eva(out):
    folder = out / "tiny-bert"
    encoder = Encoder(folder, tiny.SHAPE["positions"])
    head = draw_head(folder, labels=2, scale=0.2)
    common = dict(steps=20, alpha=8, init_lora_weights="eva")
    # As many directions as there are, twice those of a module's largest rank, so that nothing hangs on how they are drawn:
    # with rank 4 PEFT's own seed moves some subspaces by two hundredths.
    setup = training.Setup(folder, encoder, head, "tiny-bert", targets=BERT_LAYERS, rank=8, eva={}, **common)
    eva.write(setup, folder / "golden" / "eva", forward.short_sentences(encoder))
    # With these PEFT divides what several modules read once for each of them.
    alone = dict(rho=1.0, tau=0.9, whiten=True)
    apart = ["attention.output.dense", "intermediate.dense", "output.dense"]
    setup = training.Setup(folder, encoder, head, "tiny-bert", targets=apart, rank=16, eva=alone, **common)
    eva.write(setup, folder / "golden" / "eva-whitened")
    folder = out / "tiny-llama"
    encoder = Encoder(folder, tiny.SHAPE["positions"])
    settings = dict(rho=1.6, adjust_scaling_factors=False)
    patterns = dict(rank_pattern={"q_proj": 12, "up_proj": 9}, alpha_pattern={"k_proj": 4})
    setup = training.Setup(
        folder, encoder, None, "tiny-llama", targets="all-linear", head_modules=(), labels=0, ignored=5, rank=15, eva=settings,
        **patterns, **common
    )
    eva.write(setup, folder / "golden" / "eva")


# Tables of embeddings: three that are added up, with layers that read them; those of a decoder whose head is the table; one
# whose rows are scaled; all of them under DoRA.
def write_embeddings(out, short):
    bert = ["word_embeddings", "position_embeddings", "token_type_embeddings", "query", "value"]
    classes = dict(labels=2)
    language = dict(labels=0, head_modules=())
    plus = dict(loraplus_lr_ratio=8.0, loraplus_lr_embedding=5e-3, weight_decay=0.0)
    # An entry that sentences have, and that does not train.
    still = dict(padding=225)
    for model, name, targets, settings in (
        ("tiny-bert", "embeddings", bert, classes),
        ("tiny-bert", "embeddings-dora", bert, dict(use_dora=True, **classes)),
        ("tiny-gpt2", "embeddings", ["wte", "wpe", "c_attn", "mlp.c_proj"], language),
        ("tiny-llama", "embeddings", ["embed_tokens", "q_proj"], dict(**language, **plus, **still)),
        ("tiny-gemma2", "embeddings", ["embed_tokens", "down_proj"], dict(head_modules=("score",), **classes)),
        ("tiny-gemma2", "embeddings-dora", ["embed_tokens"], dict(use_dora=True, **language)),
    ):
        folder = out / model
        encoder = Encoder(folder, tiny.SHAPE["positions"])
        head = draw_head(folder, labels=2, scale=0.2)
        setup = training.Setup(folder, encoder, head, model, targets=targets, positions=model in ("tiny-bert", "tiny-gpt2"), **settings, **short)
        training.write_tiny(setup, folder / "golden" / name, forward.short_sentences(encoder))
        if model == "tiny-bert":
            signals.write(setup, folder / "golden" / name / "signals.json")


def write_deberta(folder, short):
    linears = dict(targets=DEBERTA_LAYERS, head_modules=("pooler", "classifier"))
    return write_encoder(folder, "tiny-deberta", linears, short)


def write_modernbert(folder, name, short):
    # PEFT's all-linear would take the head's hidden layer too.
    linears = dict(targets=["Wqkv", "Wo", "Wi"], head_modules=("head", "classifier"))
    return write_encoder(folder, name, linears, short)


def write_encoder(folder, name, linears, short):
    golden = folder / "golden"
    encoder = Encoder(folder, tiny.SHAPE["positions"])
    head = draw_head(folder, labels=2, scale=0.2)
    forward.write_tokens(golden / "tokens.safetensors", folder, encoder)
    worst = forward.write_tiny(golden, folder, encoder, head)
    forward.write_extremes(golden, folder, head, encoder.max_length)
    setup = training.Setup(folder, encoder, head, name, **linears, **short)
    training.write_tiny(setup, golden / "all-linear", forward.short_sentences(encoder))
    if name == "tiny-modernbert":
        signals.write(setup, golden / "all-linear" / "signals.json")
    return worst


def write_decoders(out, short):
    return max(write_decoder(out / name, name, short) for name in tiny.DECODERS)


def write_decoder(folder, name, short):
    golden = folder / "golden"
    encoder = Encoder(folder, tiny.SHAPE["positions"])
    head = draw_head(folder, labels=2, scale=0.2)
    forward.write_tokens(golden / "tokens.safetensors", folder, encoder)
    worst = forward.write_tiny(golden, folder, encoder, head)
    forward.write_extremes(golden, folder, head, encoder.max_length)
    indices = forward.short_sentences(encoder)
    setup = training.Setup(folder, encoder, head, name, targets="all-linear", head_modules=("score",), **short)
    if name in DORA:
        write_dora(folder, name, encoder, head, short)
    if name in ("tiny-llama", "tiny-gpt2", "tiny-gemma2"):
        training.write_tiny(setup, golden / "all-linear", indices)
        signals.write(setup, golden / "all-linear" / "signals.json")
    language = dataclasses.replace(setup, labels=0, head_modules=())
    training.write_tiny(language, golden / "causal-lm", indices)
    if name == "tiny-llama":
        # Of a prompt of so many tokens nothing is predicted.
        masked = dataclasses.replace(language, ignored=5)
        training.write_tiny(masked, golden / "causal-lm-response", indices)
    return worst


def write_all(out, minilm):
    worst = {"tiny": write_tiny(out)}
    if minilm is not None:
        worst["minilm"] = write_minilm(out, minilm)
    return worst


def write_manifest(out, minilm, worst):
    if minilm is None:
        # MiniLM's goldens stay as they are, and so does what is said of them.
        before = json.loads((out / "manifest.json").read_text())
        checksum = before["minilm"]["model.safetensors"]
        worst = {**before["padding_difference"], **worst}
    else:
        checksum = hashlib.sha256((minilm / "model.safetensors").read_bytes()).hexdigest()
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json")
    manifest = {
        "written_by": "tests/oracle/golden.py",
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, transformers, peft, tokenizers, safetensors)},
        },
        "seed": SEED,
        "minilm": {"name": MINILM_NAME, "model.safetensors": checksum},
        "padding_difference": worst,
        "sha256": {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    write_json(out / "manifest.json", manifest)


def same(old, new):
    """Whether two JSON values agree, numbers within the tolerance."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(same, old, new))
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return old == new


def same_file(old, new):
    if not old.is_file():
        return False
    if new.suffix == ".json":
        return same(json.loads(old.read_text()), json.loads(new.read_text()))
    if new.suffix == ".safetensors":
        old, new = load_file(old), load_file(new)
        return old.keys() == new.keys() and all(
            old[key].dtype == new[key].dtype
            and old[key].shape == new[key].shape
            and torch.allclose(old[key].double(), new[key].double(), rtol=TOLERANCE, atol=TOLERANCE)
            for key in old
        )
    return old.read_bytes() == new.read_bytes()


def check(minilm):
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        write_all(scratch, minilm)
        names = sorted(p.relative_to(scratch) for p in scratch.rglob("*") if p.is_file())
        changed = [name for name in names if not same_file(FIXTURES / name, scratch / name)]
    for name in changed:
        print(f"differs: {name}", file=sys.stderr)
    print(f"{len(names) - len(changed)} of {len(names)} golden files come out the same")
    return 1 if changed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minilm", type=Path, metavar="DIR", help=f"the Hugging Face folder of {MINILM_NAME}")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    if arguments.minilm is not None and not (arguments.minilm / "model.safetensors").is_file():
        parser.error(f"--minilm: {arguments.minilm} holds no model.safetensors")
    be_deterministic()
    # A deprecation inside PEFT, said at every save.
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.check:
        return check(arguments.minilm)
    worst = write_all(FIXTURES, arguments.minilm)
    write_manifest(FIXTURES, arguments.minilm, worst)
    return 0


if __name__ == "__main__":
    sys.exit(main())
