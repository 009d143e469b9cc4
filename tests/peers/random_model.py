"""Writes a model of another size with random weights, as a Hugging Face folder with the tokenizer of MODEL.

    python random_model.py MODEL OUT KEY=NUMBER…

The keys are those of MODEL's config.json, such as num_hidden_layers=48.
"""

import shutil
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel


def main() -> None:
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    transformers.logging.disable_progress_bar()
    torch.manual_seed(42)
    config = AutoConfig.from_pretrained(model)
    for change in sys.argv[3:]:
        key, _, value = change.partition("=")
        setattr(config, key, int(value))
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (model / name).is_file():
            shutil.copy(model / name, out / name)


if __name__ == "__main__":
    main()
