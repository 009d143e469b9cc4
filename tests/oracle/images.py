"""Golden values of the tiny image model: its images, hidden states, logits and a training with PEFT's LoRA."""

from dataclasses import dataclass

import torch

import training
from common import SEED, draw_head, image_classifier, write_tensors
from forward import PADDING_TOLERANCE

IMAGES = 12
LABELS = 3
BATCH = 4
# The images whose whole hidden state is kept.
WHOLE = range(4)
# Every linear of the layers, by the names that the modules have since Transformers 5. The checkpoint, and every
# release before, calls them query, key, value, attention.output.dense, intermediate.dense, output.dense.
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def draw_images(size=16):
    """Images of random bytes, made what the processor makes of them: from -1 to 1."""
    generator = torch.Generator().manual_seed(SEED)
    values = torch.randint(0, 256, (IMAGES, 3, size, size), generator=generator)
    return (values / 255 - 0.5) / 0.5


@dataclass
class ImageSetup(training.Setup):
    pixels: torch.Tensor = None
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
        """All of them: the one that stands for the image, and its patches."""
        patches = inputs["pixel_values"][0, 0].numel() // 16
        return torch.ones(len(inputs["pixel_values"]), 1 + patches, dtype=torch.int64)


@torch.no_grad()
def write_forward(out, folder, head, pixels):
    model = image_classifier(folder, LABELS, head)
    outputs = [model(image[None], output_hidden_states=True) for image in pixels]
    last = [model.vit(image[None]).last_hidden_state[0] for image in pixels]
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
    return worst


def write(folder, name, **settings):
    golden = folder / "golden"
    pixels = draw_images()
    head = draw_head(folder, LABELS, scale=0.2, make=image_classifier)
    write_tensors(golden / "pixels.safetensors", {"pixels": pixels})
    worst = write_forward(golden, folder, head, pixels)
    setup = ImageSetup(
        folder, None, head, name, targets=LINEARS, labels=LABELS, batch_size=BATCH, pixels=pixels, **settings
    )
    training.write_tiny(setup, golden / "all-linear", list(range(IMAGES)))
    return worst
