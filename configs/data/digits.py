"""scikit-learn's digits, 1,797 real images of 8 by 8, as a folder of PNGs per class.

    pip install scikit-learn pillow
    python configs/data/digits.py DIR

Writes `DIR/train/3/0042.png` and so on, and `DIR/validation`: a fifth of every class, always the same one. The number is
the image's place in the data set. Nothing is downloaded: scikit-learn brings the images along.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 0
BRIGHTEST = 16

if len(sys.argv) != 2:
    sys.exit(__doc__)
digits = load_digits()
train, validation = train_test_split(
    range(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=SEED
)
for split, indices in (("train", train), ("validation", validation)):
    for index in indices:
        folder = Path(sys.argv[1], split, str(digits.target[index]))
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[index] * 255 / BRIGHTEST).round().astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:04}.png")
