"""Golden values of training with PEFT's LoRA and VeRA: gradients, loss curves, signals."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import EvaConfig, LoraConfig, TaskType, VeraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.layer import Embedding, LoraLayer
from peft.tuners.vera.layer import VeraLayer
from safetensors.torch import load_file
from transformers import get_linear_schedule_with_warmup

from common import SEED, body_prefix, classifier, language_model, sentences, write_json, write_tensors

SIGNAL_STEPS = 5


@dataclass
class Setup:
    """One model with one way of adapting it."""

    folder: Path
    encoder: object
    head: dict
    # What adapter_config.json calls the base model.
    name: str
    targets: object = field(default_factory=lambda: ["query", "value"])
    head_modules: tuple = ("classifier",)
    # 0 where the next token is predicted, from the one after `ignored` tokens on.
    labels: int = 2
    ignored: int = 1
    # "lora" or "vera"
    method: str = "lora"
    rank: int = 8
    alpha: int = 16
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    # "none", or "lora_only".
    bias: str = "none"
    # True for PEFT's own start, or "pissa", or "eva" with settings of its own.
    init_lora_weights: object = True
    eva: dict = None
    # LoRA+'s, whose weight decay is 0 and leaves out vectors where it is not.
    loraplus_lr_ratio: float = None
    loraplus_lr_embedding: float = 1e-6
    # Another `pad_token_id` than the model's own: the entry of the vocabulary that PyTorch never trains.
    padding: int = None
    # Whether each sentence's positions are given, which else are looked up once for all sentences.
    positions: bool = False
    # What a saved pooler is multiplied by, so that it is not the base model's.
    pooler_scale: float = 1.0
    b_scale: float = 0.05
    # VeRA's: the start of every element of lambda_d, and the spread of both vectors in `random_b`.
    d_initial: float = 0.1
    vector_scale: float = 0.3
    steps: int = 50
    batch_size: int = 8
    learning_rate: float = 1e-3
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 5
    max_grad_norm: float = 1.0
    # What it is trained on, in the names of tensors.
    examples: str = "sentences"

    def targets_of_examples(self):
        """What each of the examples is trained towards: a class, or a number where `labels` is 1."""
        count = len(sentences())
        return [index % 11 / 2 for index in range(count)] if self.labels == 1 else [i % 2 for i in range(count)]

    def batches(self):
        """One shuffle of all examples, cut into batches and repeated for as many steps as there are."""
        generator = torch.Generator().manual_seed(SEED)
        order = torch.randperm(len(self.targets_of_examples()), generator=generator).tolist()
        epoch = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [epoch[step % len(epoch)] for step in range(self.steps)]

    def encode(self, batch):
        inputs = self.encode_texts(batch)
        if self.positions:
            ids = inputs["input_ids"]
            inputs["position_ids"] = torch.arange(ids.shape[1]).expand(ids.shape)
        return inputs

    def encode_texts(self, batch):
        texts, targets = sentences(), self.targets_of_examples()
        if self.labels == 0:
            return self.encode_language([texts[index] for index in batch])
        dtype = torch.float32 if self.labels == 1 else torch.int64
        labels = torch.tensor([targets[index] for index in batch], dtype=dtype)
        return {**self.encoder([texts[index] for index in batch]), "labels": labels}

    def encode_language(self, texts):
        inputs = self.encoder(texts)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        # Transformers never predicts the first.
        labels[:, : self.ignored] = -100
        return {**inputs, "labels": labels}

    def alone(self, index):
        """What the model is given of one sentence by itself."""
        return self.encoder([sentences()[index]])

    def model(self):
        settings = {} if self.padding is None else {"pad_token_id": self.padding}
        if self.labels == 0:
            return language_model(self.folder, **settings)
        return classifier(self.folder, self.labels, self.head)

    def task_type(self):
        return TaskType.CAUSAL_LM if self.labels == 0 else TaskType.SEQ_CLS

    def real_tokens(self, inputs):
        """1 where there is a token, 0 where there is padding."""
        return inputs["attention_mask"]

    def describe(self):
        return {
            "base_model": self.name,
            **({} if self.encoder is None else {"max_length": self.encoder.max_length}),
            "target_modules": self.targets,
            "head_modules": list(self.head_modules),
            "num_labels": self.labels,
            **({"ignored": self.ignored} if self.labels == 0 else {}),
            "rank": self.rank,
            **({"alpha": self.alpha} if self.method == "lora" else {"d_initial": self.d_initial}),
            **({"rank_pattern": self.rank_pattern} if self.rank_pattern else {}),
            **({"alpha_pattern": self.alpha_pattern} if self.alpha_pattern else {}),
            **({"use_dora": True} if self.use_dora else {}),
            **({"bias": self.bias} if self.bias != "none" else {}),
            **({"init_lora_weights": self.init_lora_weights} if self.init_lora_weights is not True else {}),
            "dropout": 0.0,
            "optimiser": "torch.optim.AdamW",
            "learning_rate": self.learning_rate,
            **(
                {"loraplus_lr_ratio": self.loraplus_lr_ratio, "loraplus_lr_embedding": self.loraplus_lr_embedding}
                if self.loraplus_lr_ratio
                else {}
            ),
            **({} if self.padding is None else {"pad_token_id": self.padding}),
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "schedule": "linear",
            "warmup_steps": self.warmup_steps,
            "steps": self.steps,
            "max_grad_norm": self.max_grad_norm,
        }


def build(setup, random_b):
    """The adapted model. LoRA's A, or VeRA's A and B, are drawn by PEFT itself; LoRA's B is PEFT's zeros, or
    small noise so that A has a gradient; beside embeddings A is, and B is drawn; VeRA's vectors are PEFT's, or noise so that both have one."""
    model = setup.model()
    torch.manual_seed(SEED)
    common = dict(
        task_type=setup.task_type(),
        r=setup.rank,
        target_modules=setup.targets,
        modules_to_save=list(setup.head_modules) or None,
    )
    if setup.method == "lora":
        patterns = dict(rank_pattern=setup.rank_pattern, alpha_pattern=setup.alpha_pattern)
        config = LoraConfig(
            lora_alpha=setup.alpha,
            lora_dropout=0.0,
            use_rslora=setup.use_rslora,
            use_dora=setup.use_dora,
            bias=setup.bias,
            init_lora_weights=setup.init_lora_weights,
            eva_config=None if setup.eva is None else EvaConfig(**setup.eva),
            **patterns,
            **common,
        )
        noise = {".lora_B.": setup.b_scale, ".lora_embedding_A.": setup.b_scale}
    else:
        config = VeraConfig(d_initial=setup.d_initial, vera_dropout=0.0, projection_prng_key=SEED, **common)
        noise = {".vera_lambda_": setup.vector_scale}
    peft = get_peft_model(model, config)
    if random_b:
        generator = torch.Generator().manual_seed(SEED + 1)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                for part, scale in noise.items():
                    if part in name:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "pooler" in name and parameter.requires_grad:
                parameter.mul_(setup.pooler_scale)
    return peft.train()


def save_adapter(setup, model, folder):
    peft_config = model.peft_config["default"]
    # A machine's path has no place in a fixture, nor has a set's order, which changes with every run.
    peft_config.base_model_name_or_path = setup.name
    chosen = peft_config.target_modules
    peft_config.target_modules = sorted(chosen) if isinstance(chosen, (set, list)) else chosen
    peft_config.modules_to_save = list(setup.head_modules) or None
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def saved_name(name):
    """A trainable parameter's name as `save_pretrained` writes it."""
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def trainable(model):
    return {saved_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def is_adapters(name):
    """Whether a trainable parameter is an adapter's, and none of the head."""
    return any(part in name for part in (".lora_", ".vera_", ".base_layer."))


def modules(model):
    """The adapted linears in forward order, named by their path in the base model."""
    base = model.get_base_model()
    prefix = body_prefix(base)
    found = {n.removeprefix(prefix): m for n, m in base.named_modules() if isinstance(m, (LoraLayer, VeraLayer))}
    return {path: found[path] for path in in_forward_order(list(found))}


def in_forward_order(paths):
    """Queries before keys before values, which CLIP has another way round."""
    parent = lambda path: path.rpartition(".")[0]
    parents = [parent(path) for path in paths]
    roles = ("q_proj", "k_proj", "v_proj")
    role = lambda path: next((at for at, role in enumerate(roles) if path.endswith(role)), len(roles))
    return sorted(paths, key=lambda path: (parents.index(parent(path)), role(path), paths.index(path)))


def own_parameters(module):
    """The tensors that an adapted linear trains, the pair first."""
    if isinstance(module, Embedding):
        pair = [module.lora_embedding_A["default"], module.lora_embedding_B["default"]]
        more = [module.lora_magnitude_vector["default"].weight] if module.use_dora["default"] else []
        return pair + more
    if isinstance(module, LoraLayer):
        pair = [module.lora_A["default"].weight, module.lora_B["default"].weight]
        more = [module.lora_magnitude_vector["default"].weight] if module.use_dora["default"] else []
        bias = module.get_base_layer().bias
        return pair + more + ([bias] if bias is not None and bias.requires_grad else [])
    return [module.vera_lambda_d["default"], module.vera_lambda_b["default"]]


def delta_weight(module):
    """The adapter's share of the weight, in f64."""
    first, second, *more = (parameter.detach().double() for parameter in own_parameters(module))
    if isinstance(module, LoraLayer):
        delta = second @ first * module.scaling["default"]
        if not module.use_dora["default"]:
            return delta
        frozen = module.get_base_layer().weight.detach().double()
        frozen = frozen.T if module.fan_in_fan_out or isinstance(module, Embedding) else frozen
        return more[0][:, None] / (frozen + delta).norm(dim=1, keepdim=True) * (frozen + delta) - frozen
    a = module.vera_A["default"][:, : module.in_features].double()
    b = module.vera_B["default"][: module.out_features].double()
    return second[:, None] * (b * first) @ a


def embed_scale(module):
    """What Gemma's table multiplies its rows by."""
    return float(getattr(module.get_base_layer(), "embed_scale", 1.0))


def norms(tensor):
    tensor = tensor.detach().double()
    return tensor.abs().sum().item(), tensor.norm().item()


class Signals:
    """Measures every module during one step, over real tokens only."""

    def __init__(self, model):
        self.modules = modules(model)
        self.inputs, self.outputs = {}, {}
        self.hooks = []
        for path, module in self.modules.items():
            self.hooks.append(module.register_forward_hook(self.keep(path)))

    def keep(self, path):
        def hook(_module, inputs, output):
            # DeBERTa's run once more, over positions.
            if path in self.inputs:
                return
            self.inputs[path], self.outputs[path] = inputs[0].detach(), output.detach()

        return hook

    def read(self, step, mask):
        """To be called after `backward` and before the gradients are clipped."""
        for hook in self.hooks:
            hook.remove()
        record = {"step": step, "tokens": int(mask.sum())}
        names = ("activation_l1", "activation_l2", "delta_l2", "gradient_l1", "gradient_l2", "weight_l2")
        record |= {name: [] for name in names}
        for path, module in self.modules.items():
            delta = delta_weight(module)
            # A pooler sees one token a sentence, which stands for all of them.
            every = self.outputs[path].ndim == 3
            real = mask.bool() if every else slice(None)
            weight = 1.0 if every else record["tokens"] / len(self.outputs[path])
            l1, l2 = norms(self.outputs[path][real])
            record["activation_l1"].append(weight * l1)
            record["activation_l2"].append(weight**0.5 * l2)
            share = self.inputs[path][real]
            if isinstance(module, Embedding):
                share = delta.T[share] * embed_scale(module)
            else:
                share = share.double() @ delta.T
            delta_l2 = norms(share)[1]
            record["delta_l2"].append(weight**0.5 * delta_l2)
            l1, l2 = norms(torch.cat([parameter.grad.flatten() for parameter in own_parameters(module)]))
            record["gradient_l1"].append(l1)
            record["gradient_l2"].append(l2)
            record["weight_l2"].append(norms(delta)[1])
        return record


def layer_of(path):
    """The index of the transformer layer a module lies in; None outside the layers."""
    numbers = [part for part in path.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def optimisation(setup, model, parameters):
    """AdamW over trainable parameters, and its learning-rate schedule."""
    common = dict(lr=setup.learning_rate, betas=setup.betas, eps=setup.eps, foreach=False)
    if setup.loraplus_lr_ratio is not None:
        ratio = dict(loraplus_lr_ratio=setup.loraplus_lr_ratio, loraplus_lr_embedding=setup.loraplus_lr_embedding)
        decay = dict(loraplus_weight_decay=setup.weight_decay)
        optimiser = create_loraplus_optimizer(model, torch.optim.AdamW, **ratio, **decay, **common)
    else:
        optimiser = torch.optim.AdamW(parameters.values(), weight_decay=setup.weight_decay, **common)
    return optimiser, get_linear_schedule_with_warmup(optimiser, setup.warmup_steps, setup.steps)


def train(setup, random_b, active_layers=None, model=None):
    """A whole run, of a `model` that is there already or of a fresh one. `active_layers(step)` gives the layers whose
    modules are active, None for all of them."""
    model = build(setup, random_b) if model is None else model
    parameters = trainable(model)
    optimiser, schedule = optimisation(setup, model, parameters)
    log = {"losses": [], "learning_rates": [], "gradient_norms": []}
    signals = []
    for step, batch in enumerate(setup.batches(), start=1):
        if active_layers is not None:
            layers = active_layers(step)
            for path, module in modules(model).items():
                active = layers is None or layer_of(path) in layers
                for parameter in own_parameters(module):
                    parameter.requires_grad_(active)
        measured = Signals(model) if active_layers is None and step <= SIGNAL_STEPS else None
        inputs = setup.encode(batch)
        # None, not zero: AdamW leaves out parameters without a gradient, weight decay included.
        optimiser.zero_grad(set_to_none=True)
        loss = model(**inputs).loss
        loss.backward()
        if measured is not None:
            signals.append(measured.read(step, setup.real_tokens(inputs)))
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), setup.max_grad_norm, foreach=False)
        log["losses"].append(loss.item())
        log["learning_rates"].append(optimiser.param_groups[0]["lr"])
        log["gradient_norms"].append(norm.item())
        optimiser.step()
        schedule.step()
    log["final_l2"] = {name: norms(parameter)[1] for name, parameter in sorted(parameters.items())}
    if signals:
        log["signals"] = signals
    return model, log


def gradients(setup, random_b, micro_batches=1):
    """Gradients of the first step, accumulated over `micro_batches` batches of mean losses."""
    model = build(setup, random_b)
    losses = []
    for batch in setup.batches()[:micro_batches]:
        loss = model(**setup.encode(batch)).loss
        (loss / micro_batches).backward()
        losses.append(loss.item())
    return {name: parameter.grad for name, parameter in trainable(model).items()}, losses


@torch.no_grad()
def trained_logits(setup, model, indices):
    model.eval()
    return torch.stack([model(**setup.alone(index)).logits[0] for index in indices])


@torch.no_grad()
def write_losses(setup, model, out, indices):
    model.eval()
    texts = sentences()
    losses = torch.stack([model(**setup.encode_language([texts[index]])).loss for index in indices])
    chosen = torch.tensor(indices, dtype=torch.int32)
    write_tensors(out / "losses.safetensors", {"sentences": chosen, "losses": losses})


def write_logits(setup, model, out, indices):
    if setup.labels == 0:
        return write_losses(setup, model, out, indices)
    logits = trained_logits(setup, model, indices)
    write_tensors(
        out / "logits.safetensors",
        {setup.examples: torch.tensor(indices, dtype=torch.int32), "logits": logits},
    )


def write_run(setup, out, name, random_b):
    """One initialisation: its adapter in PEFT's format, its step-1 gradients and its curve."""
    save_adapter(setup, build(setup, random_b), out / name)
    grads, losses = gradients(setup, random_b)
    # With B (or lambda_b) at zero every gradient of A (or lambda_d) is exactly zero: left out, as there is
    # nothing to keep.
    write_tensors(out / name / "gradients.safetensors", {n: g for n, g in grads.items() if g.any()})
    model, log = train(setup, random_b)
    if log["losses"][0] != losses[0]:
        raise SystemExit(f"{out / name}: the first loss came out {losses[0]}, then {log['losses'][0]}")
    return model, log


def header(setup):
    model = build(setup, random_b=False)
    return {
        "config": setup.describe(),
        "targets": setup.targets_of_examples(),
        "batches": setup.batches(),
        "modules": list(modules(model)),
        "module_parameters": sum(p.numel() for n, p in trainable(model).items() if is_adapters(n)),
        "trainable_parameters": sum(p.numel() for p in trainable(model).values()),
    }


def write_minilm(setup, out):
    runs = {}
    for name, random_b in (("zero_b", False), ("random_b", True)):
        runs[name] = write_run(setup, out, name, random_b)[1]

    upper = lambda step: None if step <= 10 else {3, 4, 5}
    rotate = lambda step: {3, 4, 5} if 11 <= step <= 20 else {0, 1, 2} if 21 <= step <= 30 else None
    for name, layers in (("upper_layers", upper), ("rotating_layers", rotate)):
        log = train(setup, random_b=True, active_layers=layers)[1]
        log["active_layers"] = [sorted(layers(step) or range(6)) for step in range(1, setup.steps + 1)]
        runs[name] = log

    grads, losses = gradients(setup, random_b=True, micro_batches=2)
    write_tensors(out / "random_b" / "gradients_accumulated.safetensors", grads)
    runs["random_b"]["accumulated"] = {"micro_batches": 2, "losses": losses}
    write_json(out / "training.json", {**header(setup), "runs": runs})


def write_tiny(setup, out, indices):
    """A tiny model's adapter with random B: start, step-1 gradients, curve, end and the end's logits."""
    model, log = write_run(setup, out, "random_b", random_b=True)
    save_adapter(setup, model, out / "trained")
    write_logits(setup, model, out / "trained", indices)
    write_json(out / "training.json", {**header(setup), "runs": {"random_b": log}})


def write_pissa(setup, out, indices):
    """A run of PiSSA's: the pair that it starts from, its curve, and what has been learnt as plain LoRA."""
    start = build(setup, random_b=False)
    # PEFT would take the components out of the weight once more.
    start.peft_config["default"].init_lora_weights = True
    save_adapter(setup, start, out / "start")
    model, log = train(setup, random_b=False)
    # Of a share that the start is a part of.
    del log["signals"]
    model.peft_config["default"].init_lora_weights = True
    model.peft_config["default"].base_model_name_or_path = setup.name
    model.peft_config["default"].target_modules = setup.targets
    model.save_pretrained(
        out / "trained", save_embedding_layers=False, path_initial_model_for_weight_conversion=str(out / "start")
    )
    for folder in ("start", "trained"):
        (out / folder / "README.md").unlink(missing_ok=True)
    # What is not LoRA's is left out there.
    tensors = load_file(out / "trained" / "adapter_model.safetensors")
    head = {name: tensor for name, tensor in trainable(model).items() if ".lora_" not in name}
    write_tensors(out / "trained" / "adapter_model.safetensors", {**tensors, **head})
    save_adapter(setup, start, out / "start")
    write_logits(setup, model, out / "trained", indices)
    write_json(out / "training.json", {**header(setup), "runs": {"start": log}})


def write_adapter(setup, out, indices):
    """An adapter with random B as it starts, and its logits."""
    model = build(setup, random_b=True)
    save_adapter(setup, model, out)
    write_logits(setup, model, out, indices)
