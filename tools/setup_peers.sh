#!/bin/sh
# Build .venv-peers/NAME for each peer named, or for all: the tools that our benchmarks compare with.
# The stamp holds what was asked for: run again, this returns at once.
#
# One environment per peer, because their pins exclude each other.
set -eu
cd "$(dirname "$0")/.."

requirement_of() {
    case $1 in
        llmcompressor) echo "llmcompressor==0.14.0.1" ;;
        *)
            echo "unknown peer: $1 (known: llmcompressor)" >&2
            return 1
            ;;
    esac
}

build() {
    requirement=$(requirement_of "$1")
    venv=.venv-peers/$1
    stamp=$venv/.ready
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$requirement" ]; then
        return
    fi
    echo "building $venv ($requirement): about a minute and 1.5 GB" >&2
    rm -rf "$venv"
    "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$venv"
    for each in torch "$requirement"; do # constraints.txt says which torch
        "$venv/bin/pip" install -q --disable-pip-version-check -c constraints.txt "$each"
    done
    "$venv/bin/python" -c "import $1"
    echo "$requirement" >"$stamp"
}

[ $# -gt 0 ] || set -- llmcompressor
for name in "$@"; do
    build "$name"
done
