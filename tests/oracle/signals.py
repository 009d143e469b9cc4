"""Golden signals: what is measured of inputs, of the gradients that come back, of each example's own gradient, of the
parameters and their updates, and of the frozen weights.

Everything is done the plain way, from the definitions: hooks that see whole padded tensors whose padding is masked
out, a backward pass for every single example, parameters before and after each update.
"""

from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import Embedding

from common import write_json
from training import build, layer_of, modules, norms, optimisation, own_parameters, trainable

STEPS = 3
# Of the norms of an input's columns so many are kept.
COLUMNS = 16


@dataclass
class Case:
    """How a batch of eight is cut, and whose modules are active after the first step; None for all."""

    micro_batches: tuple = (8,)
    layers: object = None


CASES = {
    "whole": Case(),
    "accumulated": Case(micro_batches=(5, 3)),
    "upper": Case(micro_batches=(3, 5), layers={1}),
}


class Watch:
    """Keeps what goes into every module and the gradient that comes back to its output."""

    def __init__(self, layers, mask):
        self.layers, self.mask = layers, mask.bool()
        self.inputs, self.outputs = {}, {}

    def __enter__(self):
        self.hooks = [m.register_forward_hook(self.hook(path)) for path, m in self.layers.items()]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def hook(self, path):
        def see(_module, inputs, output):
            self.inputs[path] = inputs[0].detach()
            if output.requires_grad:
                output.retain_grad()
            self.outputs[path] = output

        return see

    def column_squares(self, path):
        if isinstance(self.layers[path], Embedding):
            return torch.bincount(self.inputs[path][self.mask], minlength=self.layers[path].in_features).double()
        x = self.inputs[path].double()
        if x.ndim == 3:
            return x[self.mask].square().sum(0)
        # A pooler sees one token a sentence, which stands for all of them.
        return x.square().sum(0) * (self.mask.sum().item() / len(x))

    def returned(self, path):
        gradient = self.outputs[path].grad
        return None if gradient is None else gradient.double().square().sum().item()


def total(values):
    values = [value for value in values if value is not None]
    return sum(values) if values else None


def root(value):
    return None if value is None else value**0.5


def fisher(setup, model, layers, batch, active):
    """The sum over the examples of the squares of the gradient that each alone gives, by backward passes of their
    own."""
    sums = [0.0] * len(layers)
    for example in batch:
        model.zero_grad(set_to_none=True)
        model(**setup.encode([example])).loss.backward()
        for index, module in enumerate(layers.values()):
            if active[index]:
                sums[index] += sum(p.grad.double().square().sum().item() for p in own_parameters(module))
    model.zero_grad(set_to_none=True)
    return [value if active[index] else None for index, value in enumerate(sums)]


def run(setup, case):
    model = build(setup, random_b=True)
    layers = modules(model)
    parameters = trainable(model)
    optimiser, schedule = optimisation(setup, model, parameters)
    steps, updates = [], [None] * len(layers)
    for step, batch in enumerate(setup.batches()[:STEPS], start=1):
        active = [case.layers is None or step == 1 or layer_of(path) in case.layers for path in layers]
        for index, module in enumerate(layers.values()):
            for parameter in own_parameters(module):
                parameter.requires_grad_(active[index])
        record = {"step": step, "active": active, "fisher": fisher(setup, model, layers, batch, active)}
        watches, first = [], 0
        for size in case.micro_batches:
            part = batch[first : first + size]
            first += size
            inputs = setup.encode(part)
            with Watch(layers, inputs["attention_mask"]) as watch:
                loss = model(**inputs).loss * (size / len(batch))
            loss.backward()
            watches.append(watch)
        squares = [sum(watch.column_squares(path) for watch in watches) for path in layers]
        record["input_l2"] = [columns.sum().sqrt().item() for columns in squares]
        record["input_column_l2"] = [columns.sqrt()[:COLUMNS].tolist() for columns in squares]
        record["output_gradient_l2"] = [root(total(w.returned(path) for w in watches)) for path in layers]
        products = [
            torch.cat([(p.detach().double() * p.grad.double()).flatten() for p in own_parameters(module)])
            if active[index]
            else None
            for index, module in enumerate(layers.values())
        ]
        record["gradient_dot_weight"] = [None if p is None else p.sum().item() for p in products]
        record["gradient_dot_weight_abs"] = [None if p is None else p.abs().sum().item() for p in products]
        record["update_l2"] = updates
        torch.nn.utils.clip_grad_norm_(parameters.values(), setup.max_grad_norm, foreach=False)
        before = [[p.detach().double().clone() for p in own_parameters(m)] for m in layers.values()]
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        updates = [
            sum((p.detach().double() - old).square().sum().item() for p, old in zip(own_parameters(m), olds)) ** 0.5
            if active[index]
            else None
            for index, (m, olds) in enumerate(zip(layers.values(), before))
        ]
        steps.append(record)
    return {"micro_batches": list(case.micro_batches), "steps": steps}


def write(setup, path):
    weights = [norms(module.get_base_layer().weight) for module in modules(build(setup, random_b=True)).values()]
    write_json(
        path,
        {
            "frozen_weight_l1": [l1 for l1, _ in weights],
            "frozen_weight_l2": [l2 for _, l2 in weights],
            "cases": {name: run(setup, case) for name, case in CASES.items()},
        },
    )
