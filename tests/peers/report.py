"""From samples to the table."""

import statistics

from measurements import Sample
from rows import Row

# One sample of each measurement per repeat, or why there is none.
Samples = dict[str, list[Sample] | str]
SCALES = {"bytes": (1e-6, "MB"), "FLOP/s": (1e-9, "GFLOP/s")}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(row: Row, samples: Samples, level: str) -> dict:
    """A row's entry in peers.json."""
    for name in row.measurements():
        if isinstance(samples[name], str):
            return {"unavailable": samples[name], "what": row.what}

    def values(key: str) -> list[float]:
        name, _, value = key.partition(".")
        return [sample[value] for sample in samples[name]]

    ours = values(row.ours)
    result: dict = {}
    if row.against:
        against = [max(found) for found in zip(*map(values, row.against))]
        # A ratio within each repeat: its two sides were measured one right after the other.
        result = spread([row.combine(one, other) for one, other in zip(ours, against)])
        result |= {"ours": spread(ours), "against": spread(against), "unit": row.unit}
    else:
        result = spread(ours) | {"unit": row.unit}
    if row.bar is not None and row.bar.at(level) is not None:
        result |= {"bar": f"{row.bar.sign} {row.bar.at(level):g}", "met": row.bar.met(level, result["median"])}
    return result | {"what": row.what}


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def scaled(value: float, unit: str) -> str:
    factor, name = SCALES.get(unit, (1, unit))
    return f"{number(value * factor)} {name}"


def cells(name: str, entry: dict) -> list[str]:
    if "unavailable" in entry:
        return [name, "not available", "", "", "", ""]
    ratio = f"{number(entry['median'])} ({number(entry['min'])}–{number(entry['max'])})"
    both = [scaled(entry[side]["median"], entry["unit"]) if side in entry else "" for side in ("ours", "against")]
    met = {True: "yes", False: "no", None: ""}[entry.get("met")]
    return [name, ratio, *both, entry.get("bar", ""), met]


HEADER = ["row", "median (min–max)", "ours", "against", "bar", "met"]


def table(entries: dict[str, dict]) -> str:
    lines = [HEADER, *(cells(name, entry) for name, entry in entries.items())]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    reasons = [f"{name}: {entry['unavailable']}" for name, entry in entries.items() if "unavailable" in entry]
    return "\n".join([text, *reasons])


def markdown(entries: dict[str, dict], machine: dict) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(cells(f"`{name}`", entry) for name, entry in entries.items())]
    what = [f"- `{name}`: {entry['what']}" for name, entry in entries.items()]
    reasons = [
        f"- `{name}` is not available: {entry['unavailable']}"
        for name, entry in entries.items()
        if "unavailable" in entry
    ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    on = "{cpu}, {level}, {threads} threads, {repeats} repeats".format(**machine)
    return "\n".join(
        [
            f"{on}; {versions}.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            *what,
            *reasons,
            "",
        ]
    )
