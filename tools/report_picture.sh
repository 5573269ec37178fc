#!/bin/sh
# docs/report.png: the first screen of a report of pylm in four versions. Minutes; needs Chromium.
set -eu
run=".venv/bin/pennyweight"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$run" plan pylm --budget 'ppl<=0.6%' --schemes W4A16_g128,W8A16_g128,W16A16 --samples 16 \
    --max-tokens 6000 --rounds 3 -q -o "$work/plan.toml"
"$run" quantize pylm --recipe "$work/plan.toml" -q -o "$work/mixed"
for scheme in W3A16_g32 W4A16_g128 W8A16; do
    "$run" quantize pylm --scheme "$scheme" -q -o "$work/$scheme"
done
for made in W3A16_g32 W4A16_g128 mixed W8A16; do
    "$run" eval "$work/$made" --against pylm --max-tokens 30000 --document-tokens 1000 \
        --records "$work/records.sqlite"
done
"$run" report "$work/W3A16_g32" "$work/W4A16_g128" "$work/mixed" "$work/W8A16" \
    --records "$work/records.sqlite" --plan "$work/plan.toml" -o "$work/report.html"
chromium --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars \
    --user-data-dir="$work/profile" --window-size=1100,1840 --virtual-time-budget=20000 \
    --screenshot=docs/report.png "file://$work/report.html"
