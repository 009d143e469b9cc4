"""Which files of a repository `datasets` takes for which split. Run by itself, with `datasets` installed beside the others:

    python tests/oracle/layouts.py

Writes `tests/fixtures/layouts.json`, and the manifest anew.
"""

import tempfile
from pathlib import Path

import datasets
from datasets.data_files import DataFilesPatternsDict, get_data_patterns, sanitize_patterns

import golden
from common import FIXTURES, write_json

EXTENSIONS = [".parquet", ".csv", ".tsv", ".jsonl"]

# Files, and what a README says of them, if anything.
LAYOUTS = [
    (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001-0f.parquet", "train.csv"], None),
    (["data/train_sft-00000-of-00002.parquet", "data/train_sft-00001-of-00002.parquet"], None),
    (["data/a-b-00000-of-00001.parquet".replace("a-b", "a_b"), "other.parquet"], None),
    (["train.csv", "dev.csv", "test.csv", "README.md"], None),
    (["train/a.parquet", "train/b.parquet", "val/a.parquet", "extra.parquet"], None),
    (["my train/1.csv", "x-testing/2.csv", "evaluation 3/4.csv"], None),
    (["a/train-1.jsonl", "b/train_2.jsonl", "b/validation.jsonl"], None),
    (["training.csv", "valid_1.csv", "eval.csv", "strain.csv", "trains.csv"], None),
    (["a.parquet", "b/c.parquet", ".hidden/d.parquet", "__special__/e.parquet"], None),
    (["data/train.parquet", "data/dev.parquet"], None),
    (["test.csv"], None),
    (["a/x.csv", "a/b/y.csv", "z.csv"], "a/*.csv"),
    (["a/x.csv", "a/b/y.csv", "z.csv"], ["a/**", "z.csv"]),
    (["a/x.csv", "a/b/y.csv", "z.csv"], "**/*.csv"),
    (["p/train-0.csv", "p/train-1.csv", "q.csv"], [{"split": "train", "path": "p/train-*"}, {"split": "test", "path": ["q.csv"]}]),
    ([".h/a.csv", "b.csv"], [{"split": "train", "path": ".h/*"}]),
    (["__s/a.csv", "b.csv"], [{"split": "train", "path": ["__s/*", "*.csv"]}]),
    (["a1.csv", "a2.csv", "ab.csv", "c.csv"], "a[0-9].csv"),
    (["a1.csv", "ab.csv", "abc.csv"], "a?.csv"),
]


def splits(files, data_files):
    with tempfile.TemporaryDirectory() as base:
        base = str(Path(base).resolve())
        for file in files:
            path = Path(base) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        patterns = sanitize_patterns(data_files) if data_files is not None else get_data_patterns(base)
        found = DataFilesPatternsDict.from_patterns(patterns, allowed_extensions=EXTENSIONS).resolve(base)
        return {str(split): sorted(set(str(Path(p).relative_to(base)) for p in paths)) for split, paths in found.items()}


def main():
    layouts = [{"files": files, "data_files": given, "splits": splits(files, given)} for files, given in LAYOUTS]
    write_json(FIXTURES / "layouts.json", layouts)
    print(f"{len(layouts)} layouts, datasets {datasets.__version__}")
    golden.write_manifest(FIXTURES, None, {})


if __name__ == "__main__":
    main()
