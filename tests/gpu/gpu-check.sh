#!/usr/bin/env bash
# Checks Sluice on this machine's GPU: right, fast, shared, broken, elastic; without one, what of it can be checked on the CPU.
# Needs Linux on x86-64, python3 with PyTorch of the version in VERSION, and for a GPU its driver. No network, no root, nothing is installed.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: gpu-check.sh [--report FILE] [--small] [--only STEP,...]

Runs all steps and writes FILE.md and FILE.json [default: gpu-report]. Takes under eight minutes.
  --small   networks of fewer layers, measured for a moment: seconds a step, and figures that say nothing of the device; so without a GPU
  --only    these steps, such as digits,speed
PYTHON=... names another python3.
TEXT
}

report=gpu-report
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --report) report=${2:?--report needs a value}; shift 2 ;;
    --only) options+=(--only "${2:?--only needs a value}"); shift 2 ;;
    --small) options+=(--small); shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "\`$1\` is not an option" >&2; usage >&2; exit 2 ;;
  esac
done

# PyTorch warns of a missing NumPy, which nothing here needs.
export PYTHONWARNINGS=ignore::UserWarning
kit=$(cd "$(dirname "$0")" && pwd)
python=$(command -v "${PYTHON:-python3}") || { echo "there is no python3: set PYTHON" >&2; exit 1; }
wanted=$(cat "$kit/VERSION")
found=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])') || {
  echo "\`$python\` has no PyTorch that can be imported: this kit needs $wanted" >&2
  exit 1
}
if [ "$found" != "$wanted" ]; then
  echo "\`$python\` has PyTorch $found, and this kit was built for $wanted: build one with \`cargo xtask gpu-kit --pytorch $found\`" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
tar -xzf "$kit/kit.tar.gz" -C "$work"
SLUICE_TORCH_LIB=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
export SLUICE_TORCH_LIB SLUICE_ROOT="$work" NATS_SERVER="$work/bin/nats-server" SLUICE_TEST_BINARIES_BUILT=1 TMPDIR="$work"
"$work/bin/sluice-gpu-check" --kit "$work" --python "$python" --report "$report" "${options[@]}"
