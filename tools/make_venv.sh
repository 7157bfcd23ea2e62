#!/bin/sh
# make_venv.sh VENV PYTHON EXTRA: make the virtual environment if it is missing, then install the package into it.
# PYTHON may be empty: then the first interpreter on the path that is new enough is taken.
set -eu

venv=$1
wanted=$2
extra=$3

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

explain() {
    echo "error: $1" >&2
    echo "Python 3.11 or newer with the venv module is needed (on Debian and Ubuntu: apt install python3-venv)." >&2
    echo "To name the interpreter: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
}

find_python() {
    if [ -n "$wanted" ]; then
        command -v "$wanted" >/dev/null || explain "PYTHON=$wanted is not there."
        usable "$wanted" || explain "PYTHON=$wanted is $("$wanted" --version 2>&1 || true); it cannot be used."
        echo "$wanted"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    explain "none of the interpreters on the path can be used; python3 is $(python3 --version 2>&1 || true)."
}

if ! usable "$venv/bin/python"; then
    python=$(find_python)
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

echo "Installing compressm[$extra] into $venv; the first time this fetches PyTorch and can take a few minutes"
volume="--quiet --quiet"
if [ -t 1 ]; then
    volume="" # a person sees the downloads' progress
fi
# shellcheck disable=SC2086 # no option at all where volume is empty
"$venv/bin/python" -m pip install --disable-pip-version-check $volume \
    --constraint constraints.txt --editable ".[$extra]"
