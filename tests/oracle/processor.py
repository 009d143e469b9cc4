"""Image files of every kind that is read, and what Transformers' image processors make of them.

    python tests/oracle/processor.py [--files | --check | --compare]

Writes `tests/fixtures/images`: `golden.safetensors` and `processors/*.json`, from the files that are there; with
`--files` these anew first, and with `datasets` installed a Parquet file of some. With `--check` nothing is written, and
every value must be the same. With `--compare` it is told how far the processors that use torchvision are from those that
use Pillow.

Each file is given to the processor by its path: Transformers turns it as its EXIF orientation says and converts it to
RGB. In `golden.safetensors`, with the files in the order of their names:

| key | shape, type | |
| --- | --- | --- |
| `PROCESSOR.pixels` | `[files, 3, height, width]` u8 | resized and cropped |
| `PROCESSOR.values` | `[2, 3, height, width]` f32 | the first two, rescaled and normalised |
"""

import argparse
import struct
import zlib

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from common import FIXTURES, SEED

IMAGES = FIXTURES / "images"
GOLDEN = IMAGES / "golden.safetensors"
ORIENTATION = 274
KEPT = 2

PROCESSORS = {
    "vit": ("ViT", {"size": {"height": 16, "width": 16}}),
    "oblong": ("ViT", {"size": {"height": 21, "width": 12}, "resample": 3, "do_rescale": False}),
    "lanczos": ("ViT", {"size": {"height": 7, "width": 13}, "resample": 1, "do_normalize": False}),
    "box": ("ViT", {"size": {"height": 7, "width": 13}, "resample": 4}),
    "hamming": ("ViT", {"size": {"height": 7, "width": 13}, "resample": 5}),
    "nearest": ("ViT", {"size": {"height": 7, "width": 13}, "resample": 0}),
    "deit": ("DeiT", {"size": {"height": 26, "width": 26}, "crop_size": {"height": 16, "width": 19}}),
    "clip": ("CLIP", {"size": {"shortest_edge": 15}, "crop_size": {"height": 15, "width": 15}}),
    # Of images that are smaller than what is cut from them, too.
    "cropped": ("DeiT", {"do_resize": False, "crop_size": {"height": 18, "width": 15}}),
}


def processor(name, backend="Pil"):
    kind, settings = PROCESSORS[name]
    return getattr(transformers, f"{kind}ImageProcessor{backend}")(**settings)


def scene(width, height, noise):
    """Coloured waves, and `noise` on them."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + y / 11), np.cos(x / 5 - y / 9), np.sin(x * y / 97)]
    values = 128 + 100 * np.stack(waves, -1)
    values += np.random.default_rng(SEED).normal(0, noise, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def write_png16(path, channels):
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""
    colour = {2: 4, 3: 2, 4: 6}[channels]
    values = np.random.default_rng(SEED).integers(0, 1 << 16, (9, 14, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", 14, 9, 16, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def write_files(folder):
    folder.mkdir(parents=True, exist_ok=True)
    save = lambda image, name, **settings: image.save(folder / name, **settings)
    rough, smooth = scene(37, 53, 20), scene(60, 40, 3)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], -1)), "a-ramp.png")
    save(rough, "b-rough.png")
    save(scene(90, 11, 40), "wide.png")
    save(scene(3, 2, 0), "few.png")
    save(scene(1, 1, 0), "single.png")
    save(rough.convert("L"), "grey.png")
    save(rough.convert("1"), "bits-1.png")
    few = rough.quantize(4)
    save(few, "palette-2.png", bits=2)
    save(rough.quantize(60), "palette-8.png")
    save(rough.quantize(60), "palette-transparent.png", transparency=3)
    alpha = Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (40, 60), dtype=np.uint8))
    clear = smooth.copy()
    clear.putalpha(alpha)
    small = clear.crop((0, 0, 30, 20))
    save(small, "alpha.png")
    save(small.convert("LA"), "grey-alpha.png")
    save(small.convert("RGB"), "plain.png", exif=turned(8))
    save(small, "alpha.webp", lossless=True, exact=True)
    save(smooth, "lossy.webp", quality=80, exif=turned(3))
    save(small.convert("RGB"), "plain.bmp")
    save(small.convert("RGB").quantize(16), "palette.bmp")
    for channels in (2, 3, 4):
        write_png16(folder / f"bits-16-{channels}.png", channels)
    save(smooth, "whole-chroma.jpg", quality=90, subsampling=0)
    save(smooth, "half-chroma.jpg", quality=90, subsampling=1)
    save(smooth, "quarter-chroma.jpg", quality=90, subsampling=2)
    save(smooth, "progressive.jpg", quality=90, progressive=True)
    save(smooth.convert("L"), "grey.jpg", quality=90)
    save(smooth.convert("CMYK"), "cmyk.jpg", quality=90)
    for orientation in (2, 4, 5, 6, 7):
        save(smooth, f"turned-{orientation}.jpg", quality=90, subsampling=0, exif=turned(orientation))


def write_parquet(path, folder):
    """Three images with names of classes, as `datasets` writes them."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    # With their bytes: of files, `to_parquet` writes the paths alone.
    names = ["alpha.png", "turned-6.jpg", "plain.bmp"]
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    features = Features({"image": Picture(), "label": ClassLabel(names=["zebra", "cat", "emu"])})
    data = Dataset.from_dict({"image": images, "label": [2, 0, 2]}, features=features)
    data.to_parquet(path)


def files():
    return sorted((IMAGES / "files").iterdir())


def golden():
    paths = [str(path) for path in files()]
    tensors = {}
    for name in PROCESSORS:
        made = processor(name)
        pixels = [made(path, do_rescale=False, do_normalize=False)["pixel_values"][0] for path in paths]
        values = [made(path)["pixel_values"][0] for path in paths[:KEPT]]
        tensors[f"{name}.pixels"] = torch.from_numpy(np.ascontiguousarray(np.stack(pixels), dtype=np.uint8))
        tensors[f"{name}.values"] = torch.from_numpy(np.ascontiguousarray(np.stack(values), dtype=np.float32))
    return tensors


def check():
    before, now = load_file(GOLDEN), golden()
    wrong = [key for key in sorted(before.keys() | now.keys()) if not torch.equal(before[key], now[key])]
    if wrong:
        raise SystemExit("other values: " + ", ".join(wrong))


def compare():
    """Of the pixels in which both backends decode alike: those of the files that are not JPEGs."""
    chosen = [path for path in files() if path.suffix != ".jpg"]
    for name, (_, settings) in PROCESSORS.items():
        if settings.get("resample") in (Image.Resampling.BOX, Image.Resampling.HAMMING):
            # torchvision has no such filter.
            continue
        both = []
        for backend in ("Pil", ""):
            made = processor(name, backend)
            # `datasets` hands over images as Pillow has loaded them.
            images = [transformers.image_utils.load_image(str(path)) for path in chosen]
            both.append([np.asarray(made(i, do_rescale=False, do_normalize=False)["pixel_values"][0], int) for i in images])
        difference = np.abs(np.stack(both[0]) - np.stack(both[1]))
        print(f"{name}: {np.mean(difference > 0):.2%} differ, by {difference.max()} of 255 at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("files", "check", "compare"):
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.compare:
        return compare()
    if arguments.files:
        write_files(IMAGES / "files")
        try:
            write_parquet(IMAGES / "datasets.parquet", IMAGES / "files")
        except ModuleNotFoundError as missing:
            print(f"{missing}: the Parquet file stays as it is")
    (IMAGES / "processors").mkdir(exist_ok=True)
    for name in PROCESSORS:
        (IMAGES / "processors" / f"{name}.json").write_text(processor(name).to_json_string())
    save_file(golden(), GOLDEN)


if __name__ == "__main__":
    main()
