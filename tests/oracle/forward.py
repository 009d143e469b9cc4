"""Golden values of the forward pass: tokens, hidden states, logits."""

import torch
from tokenizers import Tokenizer

from common import SEED, classifier, pairs, sentences, write_tensors

# The sentences whose whole hidden state is kept: short, middling and rather long.
WHOLE = (0, 17, 31, 3)
# What a padded batch may differ by from the same sentences alone.
PADDING_TOLERANCE = 1e-5


@torch.no_grad()
def run(model, encoder, texts):
    """Hidden states ([tokens, features] of every layer, embeddings first) and logits, one text at a time."""
    hidden, logits = [], []
    for text in texts:
        output = model(**encoder([text]), output_hidden_states=True)
        hidden.append([layer[0] for layer in output.hidden_states])
        logits.append(output.logits[0])
    return hidden, torch.stack(logits)


@torch.no_grad()
def check_padding(model, encoder, texts, hidden, logits):
    batch = encoder(texts)
    output = model(**batch, output_hidden_states=True)
    worst = (output.logits - logits).abs().max().item()
    for padded, alone in zip(output.hidden_states[-1], hidden):
        worst = max(worst, (padded[: len(alone[-1])] - alone[-1]).abs().max().item())
    if worst > PADDING_TOLERANCE:
        raise SystemExit(f"a padded batch differs from single sentences by {worst:.2e}")
    return worst


def check_tokens(folder, encoder, texts, ids, offsets):
    """The ids must be those of tokenizer.json itself, which is all that the Rust side reads."""
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_padding()
    raw.enable_truncation(encoder.max_length, strategy="longest_first")
    for index, text in enumerate(texts):
        encoding = raw.encode(*text) if isinstance(text, tuple) else raw.encode(text)
        if encoding.ids != ids[offsets[index] : offsets[index + 1]].tolist():
            raise SystemExit(f"{folder}: AutoTokenizer and tokenizer.json disagree on {text!r}")


def write_tokens(path, folder, encoder):
    tensors = {}
    for name, texts in (("sentences", sentences()), ("pairs", pairs())):
        ids, types, offsets = encoder.packed(texts)
        check_tokens(folder, encoder, texts, ids, offsets)
        tensors |= {f"{name}.ids": ids, f"{name}.type_ids": types, f"{name}.offsets": offsets}
    write_tensors(path, tensors)


def write_minilm(out, folder, encoder, head):
    model = classifier(folder, head=head)
    texts = sentences()
    hidden, logits = run(model, encoder, texts)
    worst = max(
        check_padding(model, encoder, texts[i : i + 16], hidden[i : i + 16], logits[i : i + 16])
        for i in range(0, len(texts), 16)
    )
    last = [layers[-1] for layers in hidden]
    tensors = {
        "cls": torch.stack([state[0] for state in last]),
        "mean": torch.stack([state.mean(dim=0) for state in last]),
        "logits": logits,
        "pairs.logits": run(model, encoder, pairs())[1],
        **{f"hidden.{index}": last[index] for index in WHOLE},
        **{f"layers.0.{depth}": state for depth, state in enumerate(hidden[0][:-1])},
        **head,
    }
    write_tensors(out / "forward.safetensors", tensors)
    return worst


def short_sentences(encoder, count=8):
    """Indices of the `count` sentences with the fewest tokens, in the order of the file."""
    texts = sentences()
    lengths = [len(encoder([text])["input_ids"][0]) for text in texts]
    return sorted(sorted(range(len(texts)), key=lambda index: lengths[index])[:count])


def check_same(folder, variant, encoder, head):
    """A variant that stores the same values otherwise must give the same logits, bit for bit."""
    texts = [sentences()[index] for index in short_sentences(encoder)]
    one, other = (run(classifier(path, head=head), encoder, texts)[1] for path in (folder, variant))
    if not torch.equal(one, other):
        raise SystemExit(f"{variant.name} does not give the logits of {folder.name}")


def write_tiny(out, folder, encoder, head):
    """Goldens of a tiny model: the final hidden states and logits of eight short sentences."""
    model = classifier(folder, head=head)
    chosen = short_sentences(encoder)
    texts = [sentences()[index] for index in chosen]
    hidden, logits = run(model, encoder, texts)
    worst = check_padding(model, encoder, texts, hidden, logits)
    tensors = {
        "sentences": torch.tensor(chosen, dtype=torch.int32),
        "logits": logits,
        "pairs.logits": run(model, encoder, pairs())[1],
        **{f"hidden.{index}": layers[-1] for index, layers in zip(chosen, hidden)},
        **{f"layers.{chosen[0]}.{depth}": state for depth, state in enumerate(hidden[0][:-1])},
        **head,
    }
    write_tensors(out / "forward.safetensors", tensors)
    return worst


@torch.no_grad()
def write_extremes(out, folder, head, max_length):
    """A sequence of one token and one of as many as there can be: their hidden states and logits."""
    model = classifier(folder, head=head)
    generator = torch.Generator().manual_seed(SEED)
    # Beyond the special ones.
    ids = torch.randint(5, model.config.vocab_size, (1 + max_length,), generator=generator)
    tensors = {"ids": ids.to(torch.int32), "type_ids": torch.zeros_like(ids, dtype=torch.int32)}
    tensors["offsets"] = torch.tensor([0, 1, 1 + max_length], dtype=torch.int32)
    logits = []
    for index, part in enumerate((ids[:1], ids[1:])):
        output = model(input_ids=part[None], output_hidden_states=True)
        tensors[f"hidden.{index}"] = output.hidden_states[-1][0]
        logits.append(output.logits[0])
    write_tensors(out / "extremes.safetensors", {**tensors, "logits": torch.stack(logits)})
