"""Writes a model of another size with random weights, as a Hugging Face folder with the tokenizer of MODEL.

    python random_model.py MODEL OUT KEY=VALUE…

The keys are those of MODEL's config.json, such as num_hidden_layers=48; or, with model_type=llama first, those of that
family. A model of images gets the file of its processor.
"""

import json
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
    changes = dict(change.split("=", 1) for change in sys.argv[3:])
    family = changes.pop("model_type", None)
    changes = {key: json.loads(value) for key, value in changes.items()}
    if family is None:
        config = AutoConfig.from_pretrained(model)
        for key, value in changes.items():
            setattr(config, key, value)
    else:
        config = AutoConfig.for_model(family, **changes)
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(out)
    if hasattr(config, "image_size"):
        side = {"height": config.image_size, "width": config.image_size}
        processor = {"image_processor_type": "ViTImageProcessor", "size": side}
        (out / "preprocessor_config.json").write_text(json.dumps(processor))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (model / name).is_file():
            shutil.copy(model / name, out / name)


if __name__ == "__main__":
    main()
