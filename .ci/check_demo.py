"""Hold a demo's summary against the figures that the project promises."""

import json
import sys
from pathlib import Path

summary = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
models, ensembles, serving = summary["models"], summary["ensembles"], summary["serving"]
chosen = summary["search"]["chosen"]

checks = {
    "teacher's test accuracy >= 0.97": models["teacher"]["accuracy"] >= 0.97,
    "at least 12 trials": summary["search"]["trials"] >= 12,
    "a chosen variant whose promise holds": chosen is not None and chosen["verdict"]["holds"],
    "it is measurably faster or smaller": chosen is not None
    and (chosen["speedup"]["ci"][0] > 1 or chosen["bytes"] < models["teacher"]["bytes"]),
    "three ensembles": {figures["kind"] for figures in ensembles.values()}
    == {"parallel", "sequential", "weighted_mix"},
    "every ensemble within 0.005 of its best member": all(
        figures["accuracy"] >= max(figures["members"].values()) - 0.005 for figures in ensembles.values()
    ),
    "every ensemble served without an error": set(serving) == set(ensembles)
    and all(figures["errors"] == 0 and figures["requests"] > 0 for figures in serving.values()),
}
for name, met in checks.items():
    print(f"{'met' if met else 'NOT MET'}: {name}")
print(f"{sum(checks.values())} passed, {len(checks) - sum(checks.values())} failed")
sys.exit(0 if all(checks.values()) else 1)
