"""Loads an adapter with PEFT, as any user of it would, and writes the logits it gives.

    python tests/oracle/check_adapter.py --base DIR --adapter RUN/adapter --sentences FILE --out logits.json
    python tests/oracle/check_adapter.py --base DIR --adapter RUN/adapter --images FILE.png … --out logits.json

With --expect it also compares, with --merged with those of the folder that `dynalora merge` wrote: exit code 1 where the
logits are further apart than --tolerance, or where PEFT did not take every tensor of the adapter's file as it stands.
Of a model that predicts tokens, the logits are those after a sentence's last; of one that tags words, those of each word's
first token, one word after the other.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.image_utils import load_image

from common import be_deterministic, write_json
from words import first_tokens, tokenizer_of

# The last layer of each family's head: its rows are the labels.
HEAD_OUTPUTS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


def count_labels(saved):
    for name, tensor in saved.items():
        if name.endswith(HEAD_OUTPUTS):
            return tensor.shape[0]
    sys.exit(f"the adapter holds no head: none of its tensors is named {' or '.join(HEAD_OUTPUTS)}")


def untaken(saved, model):
    """What differs between the adapter's file and what PEFT has in memory, one line each."""
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    lines = [f"in the file, not in the model: {name}" for name in sorted(saved.keys() - loaded.keys())]
    lines += [f"in the model, not in the file: {name}" for name in sorted(loaded.keys() - saved.keys())]
    for name in sorted(saved.keys() & loaded.keys()):
        if not torch.equal(saved[name].float(), loaded[name].float()):
            lines.append(f"other values in the model than in the file: {name}")
    return lines


@torch.no_grad()
def logits(model, tokenizer, lines, with_pairs, max_length):
    result = []
    for line in lines:
        texts = line.split("\t") if with_pairs else [line]
        inputs = tokenizer(*texts, truncation="longest_first", max_length=max_length, return_tensors="pt")
        found = model(**inputs).logits[0]
        result.append((found if found.ndim == 1 else found[-1]).tolist())
    return result


@torch.no_grad()
def logits_of_words(model, tokenizer, lines, max_length):
    result = []
    for line in lines:
        inputs = tokenizer(
            [line.split()], is_split_into_words=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        result += model(**inputs).logits[0][first_tokens(inputs, 0)].tolist()
    return result


@torch.no_grad()
def logits_of_images(model, folder, paths):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    prepared = [processor(load_image(str(path)), return_tensors="pt") for path in paths]
    return [model(**inputs).logits[0].tolist() for inputs in prepared]


def compare(found, expected, tolerance):
    found, expected = torch.tensor(found), torch.tensor(expected)
    if found.shape != expected.shape:
        sys.exit(f"logits of shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    worst = (found - expected).abs().max().item()
    print(f"largest difference {worst:.2e}, tolerance {tolerance:.0e}")
    # Put this way round so that a NaN fails.
    return worst <= tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the base model's Hugging Face folder")
    parser.add_argument("--adapter", type=Path, required=True, help="adapter_config.json and adapter_model.safetensors")
    examples = parser.add_mutually_exclusive_group(required=True)
    examples.add_argument("--sentences", type=Path, help="one sentence a line")
    examples.add_argument("--images", type=Path, nargs="+", help="files of images")
    parser.add_argument("--pairs", action="store_true", help="each line is two sentences with a tab between")
    parser.add_argument("--max-length", type=int, default=128, help="tokens a sentence is cut at (128)")
    parser.add_argument("--out", type=Path, help='where to write {"logits": [[..], ..]}')
    parser.add_argument("--expect", type=Path, help="a JSON file of the same form to compare with")
    parser.add_argument("--merged", type=Path, help="a folder to compare with, which needs no adapter")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference (1e-4)")
    arguments = parser.parse_args()

    be_deterministic()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    saved = load_file(arguments.adapter / "adapter_model.safetensors")
    task = json.loads((arguments.adapter / "adapter_config.json").read_text())["task_type"]
    kind, settings = AutoModelForSequenceClassification, {}
    if task == "CAUSAL_LM":
        kind = AutoModelForCausalLM
    else:
        if task == "TOKEN_CLS":
            kind = AutoModelForTokenClassification
        settings["num_labels"] = count_labels(saved)
    if arguments.images is not None:
        kind = AutoModelForImageClassification
    common = dict(dtype=torch.float32, attn_implementation="eager")
    base = kind.from_pretrained(arguments.base, **settings, **common)
    model = PeftModel.from_pretrained(base, arguments.adapter).eval()
    complaints = untaken(saved, model)
    for complaint in complaints:
        print(complaint, file=sys.stderr)

    def logits_of(model, folder):
        if arguments.images is not None:
            return logits_of_images(model, folder, arguments.images)
        lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
        if task == "TOKEN_CLS":
            return logits_of_words(model, tokenizer_of(folder), lines, arguments.max_length)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return logits(model, tokenizer, lines, arguments.pairs, arguments.max_length)

    found = logits_of(model, arguments.base)
    if arguments.out is not None:
        write_json(arguments.out, {"logits": found})
    agree = True
    if arguments.merged is not None:
        merged, told = kind.from_pretrained(arguments.merged, output_loading_info=True, **common)
        complaints += [f"{what}: {names}" for what, names in told.items() if names]
        for what, names in told.items():
            if names:
                print(f"{what}: {names}", file=sys.stderr)
        agree = compare(logits_of(merged.eval(), arguments.merged), found, arguments.tolerance)
    if arguments.expect is not None:
        agree = compare(found, json.loads(arguments.expect.read_text())["logits"], arguments.tolerance)
    return 0 if agree and not complaints else 1


if __name__ == "__main__":
    sys.exit(main())
