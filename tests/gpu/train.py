"""Stands for a training that has a device to itself: train.py cpu|cuda SECONDS

Takes half of the device's memory (of a GPU's; 64 MiB otherwise), computes for so long, and says what it saw.
"""

import sys
import time

import torch

device, seconds = sys.argv[1], float(sys.argv[2])
size = 64 << 20
if device == "cuda":
    free, total = torch.cuda.mem_get_info()
    print(f"free {free >> 20} of {total >> 20} MiB", flush=True)
    size = total // 2
held = torch.ones(size, dtype=torch.uint8, device=device)
until, weights = time.time() + seconds, torch.rand(512, 512, device=device)
while time.time() < until:
    weights = torch.tanh(weights @ weights)
print(f"trained with {held.numel() >> 20} MiB: {float(weights.sum()):.1f}", flush=True)
