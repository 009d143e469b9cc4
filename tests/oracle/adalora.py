"""An adapter of PEFT's AdaLoRA, and PEFT's LoRA that goes on from it."""

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora.layer import AdaLoraLayer

import training
from common import SEED, write_json

RANK = 4
# Some modules come to keep nothing.
TARGET = 1
ALPHA = 8
STEPS = 30


def train(setup):
    """AdaLoRA's own run: its budget falls from step 4 to 24, and what it leaves trains on."""
    torch.manual_seed(SEED)
    config = AdaLoraConfig(
        task_type=setup.task_type(),
        init_r=RANK,
        target_r=TARGET,
        lora_alpha=ALPHA,
        tinit=4,
        tfinal=6,
        deltaT=2,
        total_step=STEPS,
        orth_reg_weight=0.1,
        target_modules=setup.targets,
        modules_to_save=list(setup.head_modules),
    )
    model = get_peft_model(setup.model(), config).train()
    optimiser = torch.optim.AdamW(training.trainable(model).values(), lr=2e-2, foreach=False)
    for step in range(STEPS):
        batches = setup.batches()
        model(**setup.encode(batches[step % len(batches)])).loss.backward()
        optimiser.step()
        model.base_model.update_and_allocate(step + 1)
        optimiser.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_E." in name:
                # So that the shares are no small part of the logits.
                parameter.mul_(10)
    return model


def as_lora(setup, model):
    """PEFT's LoRA with the shares of an AdaLoRA model: its B is B·diag(E)."""
    base = model.get_base_model()
    found = {name: module for name, module in base.named_modules() if isinstance(module, AdaLoraLayer)}
    kept = {name: module for name, module in found.items() if module.lora_E["default"].numel() > 0}
    config = LoraConfig(
        task_type=setup.task_type(),
        r=RANK,
        rank_pattern={name: module.lora_E["default"].numel() for name, module in kept.items()},
        lora_alpha=ALPHA,
        target_modules=list(kept),
        modules_to_save=list(setup.head_modules),
    )
    lora = get_peft_model(setup.model(), config).train()
    modules = dict(lora.get_base_model().named_modules())
    with torch.no_grad():
        for name, module in kept.items():
            a, b, e = (part["default"] for part in (module.lora_A, module.lora_B, module.lora_E))
            modules[name].lora_A["default"].weight.copy_(a)
            modules[name].lora_B["default"].weight.copy_(b * e.T)
            modules[name].scaling["default"] = ALPHA / (module.ranknum["default"].item() + 1e-5)
        theirs = dict(base.named_parameters())
        for name, parameter in lora.get_base_model().named_parameters():
            if "modules_to_save" in name:
                parameter.copy_(theirs[name])
    return lora


def write(setup, out, indices):
    adapter = out / "adapter"
    training.save_adapter(setup, train(setup), adapter)
    model = PeftModel.from_pretrained(setup.model(), adapter).eval()
    training.write_logits(setup, model, adapter, indices)
    lora = as_lora(setup, model)
    there = training.trained_logits(setup, model, indices)
    off = (training.trained_logits(setup, lora, indices) - there).abs().max().item()
    if off > 1e-5:
        raise SystemExit(f"{out}: as LoRA, logits are off by {off}")
    modules = list(training.modules(lora))
    log = training.train(setup, False, model=lora.train())[1]
    header = {
        "config": setup.describe(),
        "targets": setup.targets_of_examples(),
        "batches": setup.batches(),
        "modules": modules,
    }
    write_json(out / "training.json", {**header, "runs": {"adapter": log}})
