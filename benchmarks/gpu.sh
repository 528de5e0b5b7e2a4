#!/bin/bash
# Checks and measures the CUDA libraries on a machine with an NVIDIA GPU that need not have a network.
#
#   benchmarks/gpu.sh pack FOLDER [OPTION...]   here, without a GPU: builds what is to be carried there
#   benchmarks/gpu.sh run FOLDER [OPTION...]    there: checks every kernel, and measures
#
# `pack` needs nvcc and this package's Python environment, `run` a python3 with numpy; with torch it
# measures the card's matrix peak and the package `rwkv` too. --help lists options.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
test $# -ge 2 || usage
command=$1 folder=$2
shift 2
case $command in
pack)
    exec python3 "$here/gpu_pack.py" "$folder" "$@"
    ;;
run)
    # The machine may have no more of the project than the folder.
    inside=$(mktemp -d)
    trap 'rm -rf "$inside"' EXIT
    python3 -m tarfile -e "$folder/carried.tar.xz" "$inside"
    export PYTHONPATH="$inside/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    export TVM_USE_RUNTIME_LIB=1 LD_LIBRARY_PATH="$inside/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    python3 "$inside/gpu_run.py" "$inside" "$@"
    ;;
*)
    usage
    ;;
esac
