"""What seqeval says of random taggings: `tests/fixtures/chunks.json`.

    python tests/oracle/chunks.py

Taggings by several schemes, most of them wrong by their own: chunks that begin with I- behind nothing or another type,
E- without anything before. A tag is written as a letter, `a` for the first name of its scheme.
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

FIXTURE = Path(__file__).parent.parent / "fixtures" / "chunks.json"
SEED = 20240
CASES = 1200
SCHEMES = [
    ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"],
    ["B-LOC", "B-MISC", "I-LOC", "I-MISC", "O"],
    ["O", "I-NP", "I-VP", "B-NP"],
    ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"],
    # No scheme's: parts of speech, letters alone, types with hyphens, a letter outside ASCII.
    ["NOUN", "VERB", "ADJ", "O", "."],
    ["O", "B", "I", "E", "S"],
    ["O", "B-a-b", "I-a-b", "I-a", "Bx", "Ω-a", "O-a", ".-b"],
]


def main():
    warnings.simplefilter("ignore")
    draw = random.Random(SEED)
    cases = []
    for number in range(CASES):
        scheme = number % len(SCHEMES)
        names = SCHEMES[scheme]
        lengths = [draw.randint(1, 8) for _ in range(draw.randint(1, 3))]
        expected = [[draw.randrange(len(names)) for _ in range(length)] for length in lengths]
        # Mostly right.
        guess = lambda tag: draw.randrange(len(names)) if draw.random() < 0.25 else tag
        predicted = [[guess(tag) for tag in sentence] for sentence in expected]
        named = [[[names[tag] for tag in sentence] for sentence in tags] for tags in (expected, predicted)]
        scores = [score(*named) for score in (f1_score, precision_score, recall_score, accuracy_score)]
        letters = [" ".join("".join(chr(97 + tag) for tag in s) for s in tags) for tags in (expected, predicted)]
        cases.append([scheme, *letters, *(round(float(score), 12) for score in scores)])
    lines = ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in cases)
    schemes = json.dumps(SCHEMES, ensure_ascii=False)
    FIXTURE.write_text(f'{{\n "schemes": {schemes},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
