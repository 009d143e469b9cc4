"""The data: read once, put into batches once, and written down so that both sides see the same.

A workload is a folder with `train.csv` (and `dev.csv`), whose rows stand in the order in which they are
used, and `batches.json` (and `dev.json`) with the same rows tokenised. dynalora reads the first with
`order = "sequential"`, the peer the second.
"""

import csv
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from environment import Missing

SEED = 42
# Batches that are sorted by length together, as in Transformers' sampler for `group_by_length`.
MEGABATCH = 50


@dataclass(frozen=True)
class Columns:
    """A column is a name from the header, or, if it is a number, a position in a file without one."""

    text: str
    label: str
    pair: str | None = None


# The folders whose layout is known, by their names.
TASKS = {"cola": Columns(text="3", label="1"), "sst2": Columns(text="sentence", label="label")}


@dataclass(frozen=True)
class Example:
    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class Source:
    train: Path
    dev: Path
    columns: Columns


def of_task(folder: Path) -> Source:
    columns = TASKS.get(folder.resolve().name)
    if columns is None:
        raise Missing(
            f"--task-folder: {folder} is not called {' or '.join(TASKS)}; give --train, --dev and the columns instead"
        )
    return Source(folder / "train.tsv", folder / "dev.tsv", columns)


def read(path: Path, columns: Columns) -> list[Example]:
    """The examples of a CSV, TSV or JSON-lines file."""
    if not path.is_file():
        raise Missing(f"{path} is not there; --task-folder or --train and --dev name the data")
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in file if line.strip()]
        elif path.suffix == ".csv":
            rows = with_header(list(csv.reader(file)), columns)
        else:
            # In a TSV a quote is an ordinary character, and a line is a row.
            rows = with_header([line.rstrip("\r\n").split("\t") for line in file], columns)
    try:
        examples = [
            Example(row[columns.text], row[columns.pair] if columns.pair else None, str(row[columns.label]))
            for row in rows
        ]
    except KeyError as error:
        raise Missing(f"{path} has no column {error}; --text-column, --pair-column and --label-column name them")
    if not examples:
        raise Missing(f"{path} is empty")
    return examples


def with_header(rows: list[list[str]], columns: Columns) -> list[dict[str, str]]:
    header = [str(position) for position in range(len(rows[0]))] if rows else []
    if rows and not columns.text.isdigit():
        header, rows = rows[0], rows[1:]
    return [dict(zip(header, row)) for row in rows if row]


Encode = Callable[[list[Example], int], list[tuple[list[int], list[int]]]]


def encoder(tokenizer: Path) -> Encode:
    """A function from examples to their ids and type ids, special tokens included, without padding."""
    # Not before the private environment is entered.
    from tokenizers import Tokenizer

    opened = Tokenizer.from_file(str(tokenizer))
    opened.no_padding()

    def encode(examples: list[Example], max_length: int) -> list[tuple[list[int], list[int]]]:
        opened.enable_truncation(max_length, strategy="longest_first")
        inputs = [example.text if example.pair is None else (example.text, example.pair) for example in examples]
        return [(encoding.ids, encoding.type_ids) for encoding in opened.encode_batch(inputs)]

    return encode


@dataclass(frozen=True)
class Workload:
    """Batches on disk, and what of them can be checked afterwards."""

    folder: Path
    labels: list[str]
    pairs: bool
    batch_size: int
    max_length: int
    # Tokens of each batch.
    tokens: list[int]
    dev_examples: int
    # What is learnt: classes of texts, the next token, or classes of images.
    kind: str = "classes"

    @property
    def examples(self) -> int:
        return self.batch_size * len(self.tokens)


def write(
    folder: Path,
    encode: Encode,
    labels: list[str],
    batches: list[list[Example]],
    max_length: int,
    dev: list[Example],
) -> Workload:
    folder.mkdir(parents=True)
    in_order = [example for batch in batches for example in batch]
    encoded = iter(tokenised(encode, labels, in_order, max_length))
    grouped = [[next(encoded) for _ in batch] for batch in batches]
    for name, examples, rows in (
        ("train", in_order, grouped),
        ("dev", dev, tokenised(encode, labels, dev, max_length)),
    ):
        if examples:
            write_csv(folder / f"{name}.csv", examples)
            (folder / f"{'batches' if name == 'train' else name}.json").write_text(json.dumps(rows))
    return Workload(
        folder,
        labels,
        pairs=in_order[0].pair is not None,
        batch_size=len(batches[0]),
        max_length=max_length,
        tokens=[sum(len(row["ids"]) for row in batch) for batch in grouped],
        dev_examples=len(dev),
    )


def tokenised(encode: Encode, labels: list[str], examples: list[Example], max_length: int) -> list[dict]:
    index = {label: position for position, label in enumerate(labels)}
    return [
        {"ids": ids, "types": types, "label": index[example.label]}
        for example, (ids, types) in zip(examples, encode(examples, max_length))
    ]


def write_csv(path: Path, examples: list[Example]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "pair", "label"])
        writer.writerows([example.text, example.pair or "", example.label] for example in examples)


def sample(examples: list[Example], rows: int, batch_size: int) -> list[Example]:
    """That many examples in random order, or all there are, in whole batches."""
    rows = min(rows, len(examples)) // batch_size * batch_size
    if rows == 0:
        raise Missing(f"--rows: less than one batch of {batch_size} examples")
    return random.Random(SEED).sample(examples, rows)


def in_batches(examples: list[Example], batch_size: int) -> list[list[Example]]:
    return [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]


def length_grouped(
    encode: Encode, examples: list[Example], batch_size: int, max_length: int
) -> list[list[Example]]:
    """Batches of similar lengths: sorted within megabatches, then the batches shuffled."""
    lengths = [len(ids) for ids, _ in encode(examples, max_length)]
    order = list(range(len(examples)))
    batches = []
    for start in range(0, len(order), MEGABATCH * batch_size):
        mega = sorted(order[start : start + MEGABATCH * batch_size], key=lambda index: -lengths[index])
        batches += in_batches([examples[index] for index in mega], batch_size)
    random.Random(SEED).shuffle(batches)
    return batches


def dense(
    encode: Encode, examples: list[Example], batches: int, batch_size: int, length: int
) -> list[list[Example]]:
    """Batches in which every text has exactly `length` tokens: texts strung together, to be cut there."""
    pieces = [" ".join(filter(None, (example.text, example.pair))) for example in examples]
    # Twice the longest that can be needed at a token a word, so that the cut is what decides.
    result, at = [], 0
    for number in range(batches * batch_size):
        words: list[str] = []
        while len(words) < 2 * length:
            words += pieces[at % len(pieces)].split()
            at += 1
        result.append(Example(" ".join(words), None, examples[number % len(examples)].label))
    if any(len(ids) != length for ids, _ in encode(result, length)):
        raise Missing(f"the texts cannot be strung together to {length} tokens each")
    return in_batches(result, batch_size)


def language(encode: Encode, examples: list[Example], batches: int, batch_size: int, length: int) -> list[list[Example]]:
    """Batches of documents of exactly `length` tokens each, which nothing is cut off from."""
    (short,) = encode([Example("the", None, "")], length)
    special = len(short[0]) - 1
    result = []
    for batch in dense(encode, examples, batches, batch_size, length):
        for example in batch:
            words, kept = example.text.split(), []
            # As many words as surely fit, and then words of one token.
            room = length - special
            for word in words:
                (ids, _), = encode([Example(word, None, "")], length)
                if len(ids) - special > room:
                    break
                kept.append(word)
                room -= len(ids) - special
            result.append(Example(" ".join(kept + ["the"] * room), None, example.label))
    if any(len(ids) != length for ids, _ in encode(result, 2 * length)):
        raise Missing(f"the texts cannot be made of {length} tokens each")
    return in_batches(result, batch_size)


def write_images(folder: Path, batches: int, batch_size: int, side: int, tokens: int) -> Workload:
    """Random images of two classes, in turn, as folders of files; each is so many tokens to the model."""
    folder.mkdir(parents=True)
    random_bytes = random.Random(SEED)
    count = batches * batch_size
    # The file of a square of 24 bits a pixel, whose rows need no padding.
    size = 54 + 3 * side * side
    header = b"BM" + struct.pack("<IIIIiiHHIIiiII", size, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    for number in range(count):
        place = folder / "train" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:04}.bmp").write_bytes(header + random_bytes.randbytes(3 * side * side))
    rows = in_batches([{"label": number % 2} for number in range(count)], batch_size)
    (folder / "batches.json").write_text(json.dumps(rows))
    return Workload(folder, ["0", "1"], False, batch_size, tokens, [tokens * batch_size] * batches, 0, "images")
