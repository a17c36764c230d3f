#!/bin/sh
# The image's installation: Dockerfile runs this, and so does deploy/rehearse.py where there is no container engine.
#
#   deploy/install.sh cpu|gpu PREFIX [PYTHON]
#
# Builds the wheel of the source tree around this file and installs it, with the service and its pinned needs, into a new
# virtual environment at PREFIX. Ends with an error if torch, or a package that does not fit another, got in.
set -eu

if [ $# -lt 2 ]; then
    echo "deploy/install.sh: found $# arguments, expected cpu or gpu and a directory: deploy/install.sh cpu|gpu PREFIX [PYTHON]" >&2
    exit 2
fi
variant=$1
prefix=$2
python=${3:-python3}

cd "$(dirname "$0")/.."
case $variant in
    cpu) extra=serve; constraints="constraints.txt" ;;
    gpu) extra=gpu; constraints="constraints.txt deploy/constraints-gpu.txt" ;;
    *) echo "deploy/install.sh: found variant '$variant', expected cpu or gpu" >&2; exit 2 ;;
esac
if [ -e "$prefix" ]; then
    echo "deploy/install.sh: $prefix exists; name a directory that does not" >&2
    exit 2
fi
# Read by every pip below, the one that populates the isolated build included.
PIP_CONSTRAINT=$constraints
PIP_NO_INPUT=1
export PIP_CONSTRAINT PIP_NO_INPUT

"$python" -m venv "$prefix"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$prefix/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
for wheel in "$wheels"/quantformer-*.whl; do
    "$prefix/bin/python" -m pip install --quiet "$wheel[$extra]"
done
"$prefix/bin/python" -m pip check
"$prefix/bin/python" - <<'CHECK'
import importlib.util

found = [name for name in ("torch", "onnx", "triton") if importlib.util.find_spec(name)]
if found:
    raise SystemExit(f"the served environment holds {', '.join(found)}; expected none of it: see which extra brings it")
CHECK
# Nothing is installed into the finished image.
"$prefix/bin/python" -m pip uninstall --quiet --yes setuptools pip
