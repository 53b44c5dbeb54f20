#!/usr/bin/env bash
# The worker with the libtorch of PyTorch. It is linked to the CPU part, which does not ask for CUDA's by itself.
export LD_LIBRARY_PATH="$SLUICE_TORCH_LIB${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_PRELOAD="libtorch_cuda.so"
exec "$(dirname "$0")/../lib/sluice-worker" "$@"
