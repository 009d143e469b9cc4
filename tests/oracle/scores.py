"""Golden scores: what the two scorers answer, module by module, in runs that reallocate by them.

Everything is done the plain way, from the definitions: padded batches whose padding is masked out, hooks that
see whole tensors, the adapter's share as the product of its two matrices with the module's input.
"""

from dataclasses import asdict, dataclass

import torch

from common import write_json
from training import build, modules, optimisation, trainable

STEPS = 21
# None follows the last step, so that twenty steps are scored.
REALLOCATIONS = (5, 10, 15, 20)
# A choice that hangs by less than this could fall either way on another machine.
CLOSE = 1e-3


@dataclass
class Case:
    """A scorer with its parameters, as a recipe writes them."""

    plugin: str
    norm: str = "l2"
    target: str = "output"
    window: object = "run"
    reduce: str = "sum"
    # Whether only steps count at which every module has a gradient; of the gradients.
    shared: bool = False
    probe_steps: int = 1
    accumulation: int = 1


CASES = {
    "activation": Case("activation"),
    "activation-l1-period": Case("activation", norm="l1", window="period"),
    "activation-mean-period": Case("activation", window="period", reduce="mean"),
    "activation-ema-accumulated": Case("activation", window={"ema": 0.9}, reduce="mean", accumulation=2),
    "delta": Case("activation", target="delta"),
    "delta-period-accumulated": Case("activation", target="delta", window="period", accumulation=2),
    "gradient": Case("gradient"),
    "gradient-l1-period": Case("gradient", norm="l1", window="period", probe_steps=2),
    "gradient-mean": Case("gradient", reduce="mean"),
    "gradient-mean-shared": Case("gradient", reduce="mean", shared=True),
    "gradient-ema-shared": Case("gradient", window={"ema": 0.8}, reduce="mean", shared=True, probe_steps=2),
    "gradient-ema-unprobed": Case("gradient", window={"ema": 0.9}, reduce="mean", probe_steps=0),
    "gradient-accumulated": Case("gradient", accumulation=2),
    "gradient-l1-ema-accumulated": Case(
        "gradient", norm="l1", window={"ema": 0.5}, reduce="mean", accumulation=2
    ),
}


class Watch:
    """Adds up what comes out of every module over the real tokens of the passes made while it is there."""

    def __init__(self, layers, mask):
        self.layers, self.mask = layers, mask.bool()
        self.sums = {path: {"l1": 0.0, "squares": 0.0, "delta": 0.0} for path in layers}

    def __enter__(self):
        self.hooks = [m.register_forward_hook(self.hook(path)) for path, m in self.layers.items()]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def hook(self, path):
        @torch.no_grad()
        def see(module, inputs, output):
            x = inputs[0]
            weight = 1.0
            if x.ndim == 3:
                x, output = x[self.mask], output[self.mask]
            else:
                # A pooler sees one token a sentence, which stands for all of them.
                weight = self.mask.sum().item() / len(x)
            x, y = x.double(), output.double()
            a = module.lora_A["default"].weight.double()
            b = module.lora_B["default"].weight.double()
            update = module.scaling["default"] * (b @ a)
            sums = self.sums[path]
            sums["l1"] += weight * y.abs().sum().item()
            sums["squares"] += weight * y.square().sum().item()
            sums["delta"] += weight * (x @ update.T).square().sum().item()

        return see


def value_of(case, module, watches, path):
    """One step's value of one module."""
    if case.plugin == "gradient":
        pair = [module.lora_A["default"].weight.grad, module.lora_B["default"].weight.grad]
        gradient = torch.cat([part.double().flatten() for part in pair])
        return gradient.norm(1 if case.norm == "l1" else 2).item()
    total = lambda kind: sum(watch.sums[path][kind] for watch in watches)
    if case.target == "delta":
        return total("delta")
    return total("l1") if case.norm == "l1" else total("squares") ** 0.5


def score_of(case, measured):
    """The score of a module that was measured so: steps and values, in order."""
    if not measured:
        return 0.0
    if isinstance(case.window, dict):
        # It decays by the steps that pass, whether or not the module is measured there.
        average, last = None, None
        for step, value in measured:
            kept = 0.0 if last is None else case.window["ema"] ** (step - last)
            average = kept * (average or 0.0) + (1.0 - kept) * value
            last = step
        return average
    total = sum(value for _, value in measured)
    return total / len(measured) if case.reduce == "mean" else total


def top(scores, k):
    order = sorted(range(len(scores)), key=lambda module: -scores[module])
    inside, outside = scores[order[k - 1]], scores[order[k]]
    if inside - outside <= CLOSE * inside:
        raise SystemExit(f"the choice between {inside} and {outside} is too close: choose another k")
    return [module in order[:k] for module in range(len(scores))]


def run(setup, case, k):
    """A run whose modules are chosen by its own scores; every reallocation and every loss of it."""
    model = build(setup, random_b=True)
    layers = modules(model)
    parameters = trainable(model)
    optimiser, schedule = optimisation(setup, model, parameters)
    active, measured = [True] * len(layers), [[] for _ in layers]
    losses, reallocations = [], []
    for step, batch in enumerate(setup.batches(), start=1):
        optimiser.zero_grad(set_to_none=True)
        size = len(batch) // case.accumulation
        watches, loss = [], 0.0
        for start in range(0, len(batch), size):
            inputs = setup.encode(batch[start : start + size])
            with Watch(layers, inputs["attention_mask"]) as watch:
                part = model(**inputs).loss / case.accumulation
            part.backward()
            loss += part.item()
            watches.append(watch)
        losses.append(loss)
        due = [at for at in REALLOCATIONS if at >= step]
        probing = bool(due) and due[0] - step < case.probe_steps
        everyone = case.plugin == "activation" or all(active) or probing
        for index, (path, module) in enumerate(layers.items()):
            if due and (everyone or (active[index] and not case.shared)):
                measured[index].append((step, value_of(case, module, watches, path)))
            if not active[index]:
                # Seen perhaps, but neither clipped nor applied.
                module.lora_A["default"].weight.grad = None
                module.lora_B["default"].weight.grad = None
        torch.nn.utils.clip_grad_norm_(parameters.values(), setup.max_grad_norm, foreach=False)
        optimiser.step()
        schedule.step()
        if step in REALLOCATIONS:
            scores = [score_of(case, values) for values in measured]
            active = top(scores, k)
            reallocations.append({"step": step, "scores": scores, "active": active})
            if case.window == "period":
                measured = [[] for _ in layers]
    return {"scorer": asdict(case), "losses": losses, "reallocations": reallocations}


def write(setup, path, k):
    """`setup.steps` must be STEPS."""
    cases = {name: run(setup, case, k) for name, case in CASES.items()}
    header = {
        "config": setup.describe(),
        "k": k,
        "targets": setup.targets_of_examples(),
        "batches": setup.batches(),
        "modules": list(modules(build(setup, random_b=True))),
    }
    write_json(path, {**header, "cases": cases})
