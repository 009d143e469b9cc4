"""What every oracle script shares: determinism, sentences, batches, heads, files."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SEED = 20240

# Every name under which a family's config keeps a dropout probability.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "embedding_dropout",
    "mlp_dropout",
    "cls_dropout",
    "pooler_dropout",
)


def be_deterministic():
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)


def sentences():
    return (FIXTURES / "sentences.txt").read_text(encoding="utf-8").splitlines()


def pairs():
    lines = (FIXTURES / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


class Encoder:
    """A folder's tokenizer, giving batches that are padded on the right."""

    def __init__(self, folder, max_length):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_length = max_length

    def __call__(self, texts):
        first, second = texts, None
        if isinstance(texts[0], tuple):
            first, second = map(list, zip(*texts))
        return self.tokenizer(
            list(first),
            second,
            truncation="longest_first",
            max_length=self.max_length,
            padding="longest",
            return_tensors="pt",
        )

    def packed(self, texts):
        """Ids and type ids of all texts end to end; text i is offsets[i]..offsets[i + 1]."""
        ids, types, offsets = [], [], [0]
        for text in texts:
            one = self([text])
            ids.append(one["input_ids"][0])
            types.append(one.get("token_type_ids", torch.zeros_like(one["input_ids"]))[0])
            offsets.append(offsets[-1] + len(ids[-1]))
        int32 = lambda tensor: tensor.to(torch.int32)
        return int32(torch.cat(ids)), int32(torch.cat(types)), torch.tensor(offsets, dtype=torch.int32)


def load(kind, folder, **settings):
    """The folder's model of this kind, in f32, without any dropout."""
    config = AutoConfig.from_pretrained(folder, **settings)
    for name in DROPOUTS:
        # A decoder's head over tokens drops out by `classifier_dropout`, which its config lacks.
        if hasattr(config, name) or name == "classifier_dropout":
            setattr(config, name, 0.0)
    return kind.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")


def language_model(folder, **settings):
    """The folder's model that predicts the next token."""
    return load(AutoModelForCausalLM, folder, **settings).eval()


def classifier(folder, labels=2, head=None, kind=AutoModelForSequenceClassification):
    """The folder's model with a classification head, in f32, without any dropout.

    `head` maps parameter names to values; without it the head stays as Transformers drew it.
    """
    model = load(kind, folder, num_labels=labels)
    if head is not None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in head.items():
                parameters[name].copy_(value)
    return model.eval()


def image_classifier(folder, labels, head=None):
    return classifier(folder, labels, head, AutoModelForImageClassification)


def body_prefix(model):
    """What names of the base model's parts begin with."""
    # CLIP's class says `clip`, which none of its parts is called.
    return "vision_model." if model.config.model_type == "clip" else model.base_model_prefix + "."


def draw_head(folder, labels, scale, make=classifier):
    """A head drawn from a normal distribution: every parameter outside the base model."""
    model = make(folder, labels)
    generator = torch.Generator().manual_seed(SEED + labels)
    base = body_prefix(model)
    return {
        name: torch.randn(parameter.shape, generator=generator) * scale
        for name, parameter in model.named_parameters()
        if not name.startswith(base)
    }


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # A list of plain values reads better on one line.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), text)
    path.write_text(text + "\n", encoding="utf-8")


def write_tensors(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})
