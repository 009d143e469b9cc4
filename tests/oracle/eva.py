"""Where PEFT's EVA lets pairs start, and which ranks it gives them."""

import dataclasses

from peft import initialize_lora_eva_weights

import training
from common import write_json


def start(setup):
    """The model with the pairs that EVA finds, and how many batches it read for them: one epoch's, again and again."""
    batches = [setup.encode(batch) for batch in first_epoch(setup)]
    if setup.labels > 0:
        # PEFT would take a label for a mask of tokens.
        batches = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    # As it would be without EVA, which sees to the rest.
    model = training.build(setup, random_b=False)
    read = 0

    def forward(model, inputs):
        nonlocal read
        read += 1
        return model(**inputs)

    initialize_lora_eva_weights(model, batches, forward_fn=forward, show_progress_bar=False)
    # One pass is there to see which modules read the same.
    return model.train(), read - 1


def first_epoch(setup):
    count = -(-len(setup.targets_of_examples()) // setup.batch_size)
    return dataclasses.replace(setup, steps=count).batches()


def write(setup, out, indices=None):
    """The pairs at the start, and a run from them where its logits are asked for."""
    model, read = start(setup)
    training.save_adapter(setup, model, out / "start")
    header = {
        "config": {**setup.describe(), "eva": setup.eva, "eva_batches": read},
        "targets": setup.targets_of_examples(),
        "batches": setup.batches(),
        "modules": list(training.modules(model)),
    }
    runs = {}
    if indices is not None:
        model, log = training.train(setup, False, model=model)
        # Of a module without B they would be of nothing.
        del log["signals"]
        runs["start"] = log
        training.save_adapter(setup, model, out / "trained")
        training.write_logits(setup, model, out / "trained", indices)
    write_json(out / "training.json", {**header, "runs": runs})
