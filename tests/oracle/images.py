"""Golden values of the tiny image model: its images, hidden states, logits and a training with PEFT's LoRA."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig

import training
from common import SEED, body_prefix, draw_head, image_classifier, write_tensors
from forward import PADDING_TOLERANCE

IMAGES = 12
LABELS = 3
BATCH = 4
# The images whose whole hidden state is kept.
WHOLE = range(4)
# Every linear of the layers, by the names that the modules have since Transformers 5. The checkpoint, and every
# release before, calls them query, key, value, attention.output.dense, intermediate.dense, output.dense.
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2"]


def draw_images(folder):
    """Images of random bytes in the model's size, made what the processor makes of them: from -1 to 1."""
    config = AutoConfig.from_pretrained(folder)
    size = getattr(config, "vision_config", config).image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    generator = torch.Generator().manual_seed(SEED)
    values = torch.randint(0, 256, (IMAGES, 3, height, width), generator=generator)
    return (values / 255 - 0.5) / 0.5


@dataclass
class ImageSetup(training.Setup):
    pixels: torch.Tensor = None
    tokens: int = 0
    examples: str = "images"

    def model(self):
        return image_classifier(self.folder, self.labels, self.head)

    def task_type(self):
        # PEFT has none for images.
        return None

    def targets_of_examples(self):
        return [index % self.labels for index in range(len(self.pixels))]

    def encode(self, batch):
        labels = torch.tensor([index % self.labels for index in batch])
        return {"pixel_values": self.pixels[batch], "labels": labels}

    def alone(self, index):
        return {"pixel_values": self.pixels[index : index + 1]}

    def real_tokens(self, inputs):
        """All of them: those in front, and the patches."""
        return torch.ones(len(inputs["pixel_values"]), self.tokens, dtype=torch.int64)


@torch.no_grad()
def write_forward(out, folder, head, pixels):
    model = image_classifier(folder, LABELS, head)
    outputs = [model(image[None], output_hidden_states=True) for image in pixels]
    body = getattr(model, body_prefix(model).removesuffix("."))
    last = [body(image[None]).last_hidden_state[0] for image in pixels]
    logits = torch.stack([output.logits[0] for output in outputs])
    worst = (model(pixels).logits - logits).abs().max().item()
    if worst > PADDING_TOLERANCE:
        raise SystemExit(f"a batch of images differs from single images by {worst:.2e}")
    tensors = {
        "logits": logits,
        **{f"hidden.{index}": last[index] for index in WHOLE},
        **{f"layers.0.{depth}": state[0] for depth, state in enumerate(outputs[0].hidden_states)},
        **head,
    }
    write_tensors(out / "forward.safetensors", tensors)
    return worst, len(last[0])


def write(folder, name, **settings):
    golden = folder / "golden"
    pixels = draw_images(folder)
    head = draw_head(folder, LABELS, scale=0.2, make=image_classifier)
    write_tensors(golden / "pixels.safetensors", {"pixels": pixels})
    worst, tokens = write_forward(golden, folder, head, pixels)
    sizes = {"labels": LABELS, "batch_size": BATCH, "tokens": tokens}
    setup = ImageSetup(folder, None, head, name, targets=LINEARS, pixels=pixels, **sizes, **settings)
    training.write_tiny(setup, golden / "all-linear", list(range(IMAGES)))
    return worst
