#!/bin/sh
# Build .venv-peers/NAME for each peer named, or for all: the tools that our benchmarks compare with.
# The stamp holds what was asked for: run again, this returns at once.
#
# One environment per peer, because their pins exclude each other.
set -eu
ALL="llmcompressor gptqmodel auto_round hqq neural_compressor llama_cpp"
cd "$(dirname "$0")/.."

requirement_of() {
    case $1 in
        llmcompressor) echo "llmcompressor==0.14.0.1" ;;
        gptqmodel) echo "gptqmodel==7.6.0" ;;
        auto_round) echo "auto-round==0.16.1" ;;
        hqq) echo "hqq==0.2.8.post1" ;;
        neural_compressor) echo "neural-compressor[pt]==3.10" ;;
        llama_cpp) echo "llama-cpp-python==0.3.36 gguf==0.19.0" ;;
        *)
            echo "unknown peer: $1 (known: $ALL)" >&2
            return 1
            ;;
    esac
}

# Their metadata leaves out what they import, or what reads a model.
also_needed_by() {
    case $1 in
        gptqmodel | auto_round | hqq | neural_compressor) echo "transformers==5.17.0 accelerate" ;;
        llama_cpp) echo "torch transformers==5.17.0 safetensors" ;;
    esac
}

# A source package that imports torch while it is built has to find this one.
build_flags_of() {
    case $1 in
        gptqmodel) echo "--no-build-isolation" ;;
    esac
}

build() {
    requirement=$(requirement_of "$1")
    venv=.venv-peers/$1
    stamp=$venv/.ready
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$requirement" ]; then
        return
    fi
    echo "building $venv ($requirement): a minute (llama_cpp: ten) and 1.5 GB" >&2
    rm -rf "$venv"
    "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$venv"
    pip="$venv/bin/pip install -q --disable-pip-version-check -c constraints.txt"
    $pip torch wheel setuptools # constraints.txt says which torch
    # shellcheck disable=SC2046,SC2086 # lists of words
    $pip $(build_flags_of "$1") $requirement $(also_needed_by "$1")
    # Built for CUDA: it cannot be imported beside a CPU build of torch, and transformers tries.
    "$venv/bin/pip" uninstall -q -y torchvision torchaudio 2>/dev/null || true
    "$venv/bin/python" -c "import $1"
    echo "$requirement" >"$stamp"
}

# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $ALL
for name in "$@"; do
    build "$name"
done
