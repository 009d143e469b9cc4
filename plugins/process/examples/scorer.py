"""A scorer for the plugin `process`: the mean norm of each module's output since the last reallocation.

    [scorer]
    plugin = "process"
    command = ["python3", "plugins/process/examples/scorer.py"]
    parameters = { signal = "activation_l2" }
"""
import base64, json, sys

signal, sums, counts = None, [], []

def answer(call):
    global signal, sums, counts
    match call["call"]:
        case "make":
            signal = call["parameters"].get("signal", "activation_l2")
            sums, counts = [0.0] * len(call["modules"]), [0] * len(call["modules"])
        case "needs":
            return {"needs": {"signals": [signal]}}
        case "observe":
            for module, value in enumerate(call[f"signals.{signal}"]):
                if value is not None:  # There was nothing to measure, as of an inactive module's gradient.
                    sums[module], counts[module] = sums[module] + value, counts[module] + 1
        case "scores":
            return {"scores": [s / c if c else 0.0 for s, c in zip(sums, counts)]}
        case "reallocated":
            sums, counts = [0.0] * len(sums), [0] * len(counts)
        case "save":
            return {"state": {"base64": base64.b64encode(json.dumps([sums, counts]).encode()).decode()}}
        case "load":
            sums, counts = json.loads(base64.b64decode(call["state"]["base64"]))
        case _:
            return None
    return {}

for line in sys.stdin:
    try:
        found = answer(json.loads(line))
        print(json.dumps({"unknown": True} if found is None else {"ok": True} | found), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
