"""scikit-learn's digits, 1,797 real images of 8 by 8, and a small vision transformer that knows half of them.

    pip install scikit-learn pillow torch transformers
    python configs/data/digits.py DIR

Writes the digits from 5 to 9 as folders of PNGs per class, `DIR/images/train/7/0042.png` and so on, and in
`DIR/images/validation` a fifth of every class, always the same one; the number is the image's place in the data set.
`DIR/vit` is a vision transformer of 6 layers, 0.3 M parameters, trained here on the digits from 0 to 4, as a folder of
Transformers': what the recipes fine-tune. Nothing is downloaded, scikit-learn brings the images along; it takes a minute.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

SEED = 0
BRIGHTEST = 16
KNOWN = 5
STEPS, BATCH, RATE = 1500, 64, 1e-3


def images_of(digits):
    """8-bit values, `[images, 8, 8]`."""
    return (digits.images * 255 / BRIGHTEST).round().astype("uint8")


def write_images(folder, images, classes):
    indices = [index for index, digit in enumerate(classes) if digit >= KNOWN]
    train, validation = train_test_split(
        indices, test_size=0.2, stratify=[classes[index] for index in indices], random_state=SEED
    )
    for split, members in (("train", train), ("validation", validation)):
        for index in members:
            place = folder / split / str(classes[index])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(place / f"{index:04}.png")


def write_model(folder, images, classes):
    """Shifted by up to a pixel, so that it learns shapes rather than images by heart."""
    # Its products are so small that threads would wait for each other.
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    config = ViTConfig(
        image_size=8, patch_size=2, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=256,
        num_labels=KNOWN,
    )
    model = ViTForImageClassification(config)
    known = torch.tensor(classes) < KNOWN
    pixels = torch.tensor(images)[known, None].repeat(1, 3, 1, 1) / 255 * 2 - 1
    labels = torch.tensor(classes)[known]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    model.train()
    for step in range(STEPS):
        chosen = torch.randint(len(labels), (BATCH,))
        shift = torch.randint(-1, 2, (2,)).tolist()
        out = model(pixel_values=pixels[chosen].roll(shift, (2, 3)), labels=labels[chosen])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
    print(f"pretraining ends at a loss of {out.loss.item():.4f}")
    model.vit.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder, digits = Path(sys.argv[1]), load_digits()
    images, classes = images_of(digits), digits.target.tolist()
    write_images(folder / "images", images, classes)
    write_model(folder / "vit", images, classes)


if __name__ == "__main__":
    main()
