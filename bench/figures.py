"""What the benchmarks share: how a figure is told, and on what machine it was taken."""
import json
import os
import platform
import sys
import time

results = []


def note(text):
    print(text, file=sys.stderr, flush=True)


def record(section, name, value, unit, **more):
    """One figure: goes to the table and to the file of results."""
    results.append({"section": section, "name": name, "value": value, "unit": unit, **more})
    extra = "  ".join(f"{k}={v}" for k, v in more.items())
    print(f"  {name:<58} {value:>12} {unit:<8} {extra}", flush=True)


def machine():
    model = "unknown"
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = int(open("/proc/meminfo").readline().split()[1]) // (1 << 20)
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": memory, "kernel": platform.release(),
            "date": time.strftime("%Y-%m-%d")}


def write(path):
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    print(f"written: {path.relative_to(path.parent.parent)}")
