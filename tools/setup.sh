#!/bin/sh
# Make .venv and install the package and its development tools into it.
# usage: sh tools/setup.sh PYTHON
set -eu

python=$1
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; found $("$python" --version)" >&2
    exit 1
}

# Debian packs the part of Python that makes environments apart.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq "python$version-venv"
    else
        echo "python$version-venv is needed: apt-get install python$version-venv" >&2
        exit 1
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
# The constraint pins torch to a release that is offered as a CPU build in more places than the newest.
.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
