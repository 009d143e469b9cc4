"""Token classification: goldens of training with PEFT's TOKEN_CLS, and what tokenizers make of sentences in words.

    python tests/oracle/words.py --data ../shared/data/glue --minilm DIR

writes `tests/fixtures/words.json`: for sentences of GLUE, cut into words at blanks, digests of the ids and labels that
`tokenizer(…, is_split_into_words=True)` and the alignment of Transformers' `run_ner.py` give. No sentence is in it.
The goldens are written by golden.py.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import TaskType
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerFast

import training
from common import FIXTURES, classifier, draw_head, sentences, write_json, write_tensors

TAGS = 5
# What has no label.
NONE = -100
# Sentences of GLUE, and how many a digest is of.
SENTENCES, GROUP = 1500, 50
MODELS = ("tiny-bert", "tiny-roberta", "tiny-distilbert", "tiny-llama", "tiny-gpt2")
# In the manner of Llama 3's and Qwen's: bytes behind an expression, which no argument puts blanks in front of.
SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": " ?[A-Za-z]+| ?[^A-Za-z ]+| +"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


def token_classifier(folder, labels=TAGS, head=None):
    return classifier(folder, labels, head, AutoModelForTokenClassification)


def tokenizer_of(folder):
    """As run_ner.py has it: with a blank before the words for tokenizers of bytes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
        # Where the class takes no such argument.
        tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    return tokenizer


def tag(sentence, word):
    """The tag of a word, from its number and its sentence's."""
    mixed = (sentence * 2654435761 + word * 40503 + 12345) % 2**32
    return (mixed >> 16) % TAGS


def aligned(encoding, row, tags):
    """The labels of tokens: run_ner.py's `tokenize_and_align_labels`, without `label_all_tokens`."""
    previous, labels = None, []
    for word in encoding.word_ids(batch_index=row):
        if word is None:
            labels.append(NONE)
        elif word != previous:
            labels.append(tags[word])
        else:
            labels.append(NONE)
        previous = word
    return labels


def first_tokens(encoding, row):
    """Where the words' first tokens are."""
    words = encoding.word_ids(batch_index=row)
    count = max(word for word in words if word is not None) + 1
    return [at for at, label in enumerate(aligned(encoding, row, [0] * count)) if label != NONE]


@dataclass
class WordSetup(training.Setup):
    """Sentences in words, each with a tag; `encoder` is a tokenizer's."""

    labels: int = TAGS

    def model(self):
        return token_classifier(self.folder, self.labels, self.head)

    def task_type(self):
        return TaskType.TOKEN_CLS

    def targets_of_examples(self):
        # Of the words themselves there is `tag`.
        return [0] * len(sentences())

    def encode(self, batch):
        words = [sentences()[index].split() for index in batch]
        encoding = self.encoder(
            words,
            is_split_into_words=True,
            truncation=True,
            max_length=self.encoder.max_length,
            padding="longest",
            return_tensors="pt",
        )
        tags = [[tag(index, word) for word in range(len(words[row]))] for row, index in enumerate(batch)]
        labels = [aligned(encoding, row, tags[row]) for row in range(len(batch))]
        return {**encoding, "labels": torch.tensor(labels)}


def encoder_of(folder, most):
    tokenizer = tokenizer_of(folder)
    tokenizer.padding_side = "right"
    # As the encoders of the other setups have it.
    tokenizer.max_length = most
    return tokenizer


@torch.no_grad()
def write_logits(setup, model, out, indices):
    """The logits of the words of each of these sentences alone, one after the other."""
    model.eval()
    rows = []
    for index in indices:
        inputs = setup.encode([index])
        labels = inputs.pop("labels")[0]
        rows.append(model(**inputs).logits[0][labels != NONE])
    chosen = torch.tensor(indices, dtype=torch.int32)
    write_tensors(out / "logits.safetensors", {"sentences": chosen, "logits": torch.cat(rows)})


def write(folder, targets, head_modules, most, **settings):
    """A whole training of a tiny model, in `golden/words`."""
    out = folder / "golden" / "words"
    head = draw_head(folder, TAGS, scale=0.2, make=token_classifier)
    setup = WordSetup(
        folder, encoder_of(folder, most), head, folder.name, targets=targets, head_modules=head_modules, **settings
    )
    model, log = training.write_run(setup, out, "random_b", random_b=True)
    training.save_adapter(setup, model, out / "trained")
    write_logits(setup, model, out / "trained", list(range(8)))
    write_json(out / "training.json", {**training.header(setup), "runs": {"random_b": log}})


def lines(data):
    """Sentences of SST-2 and CoLA in turn."""
    sst2 = (data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    cola = (data / "cola" / "train.tsv").read_text(encoding="utf-8").splitlines()
    first = [line.split("\t")[0] for line in sst2[: SENTENCES // 2]]
    second = [line.split("\t")[3] for line in cola[: SENTENCES // 2]]
    return first + second


def digests(tokenizer, texts, most):
    """One for each group of sentences."""
    found = []
    for start in range(0, len(texts), GROUP):
        text = ""
        for index in range(start, min(start + GROUP, len(texts))):
            words = texts[index].split()
            encoding = tokenizer([words], is_split_into_words=True, truncation=True, max_length=most)
            labels = aligned(encoding, 0, [tag(index, word) for word in range(len(words))])
            for numbers in (encoding["input_ids"][0], labels):
                text += " ".join(map(str, numbers)) + "\n"
        found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of GLUE's tasks")
    parser.add_argument("--minilm", type=Path, help="MiniLM's folder")
    arguments = parser.parse_args()
    texts = lines(arguments.data)
    tokenizers = {name: tokenizer_of(FIXTURES / name) for name in MODELS}
    whole = json.loads((FIXTURES / "tiny-llama" / "tokenizer.json").read_text())
    raw = Tokenizer.from_str(json.dumps({**whole, "pre_tokenizer": SPLIT}))
    tokenizers["split"] = PreTrainedTokenizerFast(tokenizer_object=raw)
    if arguments.minilm is not None:
        tokenizers["minilm"] = tokenizer_of(arguments.minilm)
    cases = []
    for name, tokenizer in tokenizers.items():
        for most in (12, 60):
            found = digests(tokenizer, texts, most)
            cases.append({"model": name, "max_length": most, "digests": found})
    write_json(FIXTURES / "words.json", {"sentences": len(texts), "group": GROUP, "tags": TAGS, "split": SPLIT, "cases": cases})


if __name__ == "__main__":
    main()
