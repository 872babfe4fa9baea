"""Hold a demo's summary against the figures that the project promises."""

import json
import sys
from pathlib import Path

summary = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
models, ensembles, serving = summary["models"], summary["ensembles"], summary["serving"]
chosen = summary["search"]["chosen"]

# What must hold on any machine, however noisy: else something is broken.
required = {
    "teacher's test accuracy >= 0.97": models["teacher"]["accuracy"] >= 0.97,
    "at least 12 trials": summary["search"]["trials"] >= 12,
    "a variant of the front is measurably faster or smaller than the teacher": any(
        point["speedup"]["ci"][0] > 1 or point["bytes"] < models["teacher"]["bytes"]
        for point in summary["search"]["front"]
    ),
    "a chosen variant whose promise holds, or the reason why none": chosen["verdict"]["holds"]
    if chosen
    else summary["search"]["reason"].startswith("none qualifies"),
    "three ensembles": {figures["kind"] for figures in ensembles.values()}
    == {"parallel", "sequential", "weighted_mix"},
    "no ensemble 0.02 below its best member": all(
        figures["accuracy"] >= max(figures["members"].values()) - 0.02 for figures in ensembles.values()
    ),
    "every ensemble served without an error": set(serving) == set(ensembles)
    and all(figures["errors"] == 0 and figures["requests"] > 0 for figures in serving.values()),
}
# The demo's goals. Which variant is chosen depends on measured latencies: a noisy machine may miss them.
goals = {
    "a chosen variant whose promise holds": chosen is not None,
    "every ensemble within 0.005 of its best member": all(
        figures["accuracy"] >= max(figures["members"].values()) - 0.005 for figures in ensembles.values()
    ),
}
for name, met in (required | goals).items():
    print(f"{'met' if met else 'NOT MET'}: {name}")
print(f"{sum(required.values())} passed, {len(required) - sum(required.values())} failed")
sys.exit(0 if all(required.values()) else 1)
