#!/usr/bin/env bash
# Checks and times the losses on a machine that has a GPU, Python with torch and triton, and perhaps no network.
#
#   OUT=folder bash benchmarks/gpu.sh                    # five minutes at most; logs and JSON lines in the folder
#   OUT=folder DEVICE=cpu bash benchmarks/gpu.sh         # a dry run, small
#
# Wheels of what the project imports are taken from WHEELS (.whl) where that folder exists. Every part has a limit of its
# own and writes each row when it is done, so that a run that is cut leaves what it had. The most valuable comes first.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:?name a folder for the results} DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3} WHEELS=${WHEELS:-.whl}
PARTS=${PARTS:-loss checks profile more}
mkdir -p "$OUT"
begun=$SECONDS
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/inductor}
if [ -d "$WHEELS" ]; then
    site=${TMPDIR:-/tmp}/site
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl >"$OUT/pip.log" 2>&1
    PYTHONPATH=$PYTHONPATH:$site
fi

part() { # name, seconds, command
    local name=$1 limit=$2 rc
    shift 2
    echo "== $name, $((SECONDS - begun)) s after the start"
    timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    rc=$?
    grep -aE "^(# |FAIL|[0-9]+ of [0-9]+ passed)" "$OUT/$name.log"
    [ $rc -eq 0 ] || { echo "   ended with $rc"; tail -n 4 "$OUT/$name.log"; }
}

if [ "$DEVICE" = cuda ]; then
    size=(--preset h100 --seconds 0.5 --top-k 4096)
    rows=(cross-entropy "sft compiled" "gold counted compiled" "uld counted compiled" "cdm text-like" "TRL ULD" "TRL GOLD"
        "gold compiled" "uld compiled" cdm "fkd compiled")
    more=("cdm text-like theta=0" "gold counted" "uld counted" sft gold uld mined one_to_one "full sort" "gold top_k compiled"
        "uld top_k compiled" "dual(fkd, cdm)")
else
    size=(--preset h100 --device cpu --tokens 64 --student-size 3000 --teacher-size 2500 --seconds 0.01)
    rows=(cross-entropy sft "gold counted" "uld counted" "cdm text-like" "TRL ULD" "TRL GOLD")
    more=("cdm text-like theta=0" gold uld)
fi
for name in $PARTS; do
    case $name in
    loss) part loss 140 "$PYTHON" -u benchmarks/loss.py "${size[@]}" --parts methods --out "$OUT/loss.json" --rows "${rows[@]}" ;;
    checks) part checks 75 "$PYTHON" -u benchmarks/gpu_checks.py --device "$DEVICE" --out "$OUT/checks.json" ;;
    profile) part profile 40 "$PYTHON" -u benchmarks/loss.py "${size[@]}" --parts methods --out "$OUT/profile.json" --profile \
        --rows "${rows[@]:1:4}" ;;
    more) part more 60 "$PYTHON" -u benchmarks/loss.py "${size[@]}" --parts methods --out "$OUT/more.json" --rows "${more[@]}" ;;
    esac
done
echo "== done, $((SECONDS - begun)) s"
