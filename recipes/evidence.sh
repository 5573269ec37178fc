#!/bin/sh
# The whole evidence of one model on one page, OUT/report.html: what quantizing it takes, a sound
# version and a bad one, outliers of its activations, how much the calibration set matters, what the
# bad version loses where, and both measured on texts, on tasks and on what they write.
#
#   sh recipes/evidence.sh MODEL OUT [TRAIN VAL [SPLIT_AT]]
#
# TRAIN and VAL are texts to calibrate and to measure on (Python's standard library if not given),
# SPLIT_AT a regular expression that cuts them into documents. Settings are for models of a few
# million weights: about three minutes on one core. Of the environment:
#
#   TASKS         what `eval --tasks` takes: names or .jsonl files, with commas between; none if empty
#   ITEMS         of each task [100]
#   GOOD, BAD     the schemes of the two versions [W8A16, W3A16]
#   PENNYWEIGHT   the program [pennyweight]
#
# Interrupted, or run again with other TASKS, it goes on with what OUT holds.
set -eu

if [ $# -lt 2 ] || [ $# -eq 3 ] || [ $# -gt 5 ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model=$1 out=$2 train=${3:-stdlib} val=${4:-stdlib-heldout} expression=${5:-}
cut=${expression:+"split_at = '''$expression'''"}
good=${GOOD:-W8A16} bad=${BAD:-W3A16}
run=${PENNYWEIGHT:-pennyweight}
records=$out/records.sqlite
mkdir -p "$out"

say() { printf '\n== %s\n' "$*" >&2; }
split() { # of texts, where an expression was given: `split COMMAND...`
    if [ -n "$expression" ]; then "$@" --split-at "$expression"; else "$@"; fi
}
into() { # `into FILE COMMAND...`: the file is there when the command has succeeded, or not at all
    file=$1
    shift
    [ -s "$file" ] && return
    "$@" >"$file.part"
    mv "$file.part" "$file"
}

say "What it takes"
split "$run" check "$model" --scheme "$good" --calibrate "$train"

say "Two versions: $good and $bad"
for scheme in "$good" "$bad"; do
    [ -d "$out/$scheme" ] || split "$run" quantize "$model" --scheme "$scheme" \
        --calibrate "$train" --samples 32 --tokens 256 -q -o "$out/$scheme"
done

say "Outliers of the activations"
into "$out/profile.json" split "$run" profile "$model" --calibrate "$train" \
    --calibrate random-ascii --samples 16 --tokens 256 -q --json

say "Does the calibration set matter?"
cat >"$out/calibration.toml" <<END
model = '''$model'''
samples = [8]
tokens = 128
$cut

[sets]
text = '''$train'''
random-ascii = "random-ascii"

[methods.gptq]
rule = [{ scheme = "W4A16", quantizer = "gptq" }]

[methods.naive-w8a8]
rule = [{ scheme = "W8A8_static", quantizer = "rtn" }]

[evaluate]
data = ['''$val''']
$cut
max_tokens = 2000
document_tokens = 256
END
"$run" study calibration "$out/calibration.toml" --records "$records"

say "What $bad loses, and where"
into "$out/diagnosis.json" split "$run" diagnose "$model" "$out/$bad" --data "$val" \
    --max-tokens 3000 --records "$records" --json

for scheme in "$good" "$bad"; do
    say "$scheme on texts, tasks and prompts"
    split "$run" eval "$out/$scheme" --against "$model" --data "$val" --max-tokens 20000 \
        --document-tokens 512 --records "$records"
    [ -z "${TASKS:-}" ] || "$run" eval "$out/$scheme" --against "$model" --tasks "$TASKS" \
        --limit "${ITEMS:-100}" --records "$records"
    [ -s "$out/$scheme/samples.jsonl" ] || "$run" eval "$out/$scheme" --against "$model" \
        --similarity --prompts "$val" --limit 16 --new-tokens 48 \
        --samples "$out/$scheme/samples.jsonl" --records "$records"
done

say "The page"
"$run" report "$out/$good" "$out/$bad" --records "$records" --profile "$out/profile.json" \
    --diagnosis "$out/diagnosis.json" --samples "$out/$bad/samples.jsonl" -o "$out/report.html"
