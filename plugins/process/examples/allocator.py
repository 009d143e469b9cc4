"""An allocator for the plugin `process`: the best modules by score, of those that have not just been active.

    [allocator]
    plugin = "process"
    command = ["python3", "plugins/process/examples/allocator.py"]
    parameters = { k = 4, pause = 50 }
"""
import json, sys

k, pause = 1, 0

def answer(call):
    global k, pause
    match call["call"]:
        case "make":
            k, pause = call["parameters"]["k"], call["parameters"].get("pause", 0)
            if not 1 <= k <= len(call["modules"]):
                raise ValueError(f"k is {k}, but there are {len(call['modules'])} modules")
        case "allocate":
            scores, last = call["scores"], call["ledger.last_chosen"]
            # None: it was never chosen. `not` sorts those that may come before those that pause.
            rests = lambda m: last[m] is not None and call["step"] - last[m] <= pause
            order = sorted(range(len(scores)), key=lambda m: (rests(m), -scores[m]))
            chosen = set(order[:k])
            return {"active": [module in chosen for module in range(len(scores))]}
        case _:
            return None
    return {}

for line in sys.stdin:
    try:
        found = answer(json.loads(line))
        print(json.dumps({"unknown": True} if found is None else {"ok": True} | found), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
