#!/usr/bin/env bash
# Checks and times the losses on a machine that has a GPU, Python with torch and triton, and perhaps no network.
#
#   OUT=folder bash benchmarks/gpu.sh                    # six minutes at most; four files come into the folder
#   OUT=folder DEVICE=cpu bash benchmarks/gpu.sh         # a dry run, small
#
# Wheels of what the project imports are taken from WHEELS (.whl) where that folder exists. Every part has a limit of its
# own and writes each row when it is done, so that a run that is cut leaves what it had. The most valuable comes first.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:?name a folder for the results} DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3} WHEELS=${WHEELS:-.whl}
PARTS=${PARTS:-loss checks more}  # or answers, which takes about a minute and a half, and steps
mkdir -p "$OUT"
work=$(mktemp -d)
begun=$SECONDS
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$work/inductor} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$work/triton}
if [ -d "$WHEELS" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl >"$work/pip.log" 2>&1 ||
        tail -n 3 "$work/pip.log"
    PYTHONPATH=$PYTHONPATH:$work/site
fi

part() { # name, seconds, command; four files hold what all parts say: log.txt, rows.jsonl, profile.txt, checks.jsonl
    local name=$1 limit=$2 rc
    shift 2
    echo "== $name, $((SECONDS - begun)) s after the start" | tee -a "$OUT/log.txt"
    timeout -k 5 "$limit" "$@" >"$work/$name.log" 2>&1
    rc=$?
    grep -av "^pass" "$work/$name.log" >>"$OUT/log.txt"
    grep -aE "^(# |FAIL|[0-9]+ of [0-9]+ passed)|without|error" "$work/$name.log" | head -n 60
    [ -s "$work/$name.jsonl" ] && cat "$work/$name.jsonl" >>"$OUT/$([ "$name" = checks ] && echo checks || echo rows).jsonl"
    [ -s "$work/$name.txt" ] && cat "$work/$name.txt" >>"$OUT/profile.txt"
    [ $rc -eq 0 ] || { echo "   ended with $rc"; tail -n 4 "$work/$name.log"; }
}

if [ "$DEVICE" = cuda ]; then
    size=(--preset h100 --seconds 0.3 --top-k 4096)
    rows=(cross-entropy sft "gold counted" "uld counted" "cdm text-like" "TRL ULD" "TRL GOLD" gold uld cdm
        fkd rkd mined one_to_one)
    more=("cdm text-like theta=0" "fkd without kernels" "mined without kernels" "uld top_k" "gold top_k" "sft without kernels"
        "cdm text-like without kernels" "dual(fkd, cdm)" "full sort")
else
    size=(--preset h100 --device cpu --tokens 64 --student-size 3000 --teacher-size 2500 --seconds 0.01)
    rows=(cross-entropy sft "gold counted" "uld counted" "cdm text-like" "TRL ULD" "TRL GOLD")
    more=("cdm text-like theta=0" gold uld)
fi
loss() { part "$1" "$2" "$PYTHON" -u benchmarks/loss.py "${size[@]}" --parts methods --out "$work/$1.json" "${@:3}"; }
for name in $PARTS; do
    case $name in
    loss) loss loss 150 --profile --rows "${rows[@]}" ;;
    checks) part checks 120 "$PYTHON" -u benchmarks/gpu_checks.py --device "$DEVICE" --out "$work/checks.json" ;;
    answers)
        part answers 100 "$PYTHON" -u benchmarks/generation.py --preset h100 --device "$DEVICE" --out "$work/answers.json"
        ;;
    steps)
        part steps 150 "$PYTHON" -u benchmarks/step.py --preset h100 --device "$DEVICE" --out "$work/steps.json" --steps 16 \
            --ways SFT "GOLD, stored rows" "SFT, CUDA graphs" "GOLD, stored rows, CUDA graphs" "TRL GOLDTrainer" \
            "SFT, small student" "SFT, small student, CUDA graphs" "TRL SFTTrainer, small student" \
            "SFT, batch 1" "CDM, batch 1, stored rows"
        ;;
    more) loss more 80 --rows "${more[@]}" ;;
    esac
done
echo "== done, $((SECONDS - begun)) s" | tee -a "$OUT/log.txt"
