"""What PyTorch alone reaches with the package of a model, by batch size: alone.py PACKAGE cpu|cuda SECONDS ROWS...

Prints a list of {"rows": rows of a batch, "rate": rows per second, "p50_ms": ..., "p99_ms": ...}. Each batch goes from pinned memory to the
device, through the model, and back; CUDA graphs are off.
"""

import json
import re
import sys
import time

import torch

package, device, seconds, sizes = sys.argv[1], sys.argv[2], float(sys.argv[3]), [int(rows) for rows in sys.argv[4:]]
torch.set_num_threads(1)
with open(f"{package}/model.toml", encoding="utf-8") as file:
    datatype, shape = re.search(r'inputs = .*?datatype = "(\w+)", shape = (\[.*?\])', file.read()).groups()
KINDS = {"UINT8": torch.uint8, "INT64": torch.int64, "FP32": torch.float32}
model = torch.jit.load(f"{package}/model.pt", map_location=device).eval()
torch._C._jit_set_profiling_executor(False)
measured = []
with torch.inference_mode():
    for rows in sizes:
        batch = torch.zeros([rows] + json.loads(shape)[1:], dtype=KINDS[datatype])
        if device == "cuda":
            batch = batch.pin_memory()

        def run():
            return model(batch.to(device, non_blocking=True)).cpu()

        for _ in range(3):
            run()
        times, began = [], time.perf_counter()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        took = time.perf_counter() - began
        times.sort()
        measured.append({
            "rows": rows, "rate": rows * len(times) / took,
            "p50_ms": 1000 * times[len(times) // 2], "p99_ms": 1000 * times[int((len(times) - 1) * 0.99)],
        })
print(json.dumps(measured))
