#!/usr/bin/env bash
# Checks on GPUs, in minutes, what was developed without one: mixed precision, several GPUs against
# one, a stop and resume on several, and the paper's config (20 steps; needs the Hub or its cache).
#
#   scripts/gpu_smoke.sh [FOLDER]      results go below FOLDER (default outputs/gpu_smoke)
#   ON_CPU=1 scripts/gpu_smoke.sh      two processes on the CPU, to try the script itself
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${1:-outputs/gpu_smoke}
if [ -n "${ON_CPU:-}" ]; then
    GPUS=2 FIRST_GPU=
    export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
else
    FIRST_GPU=0
    GPUS=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    if [ "$GPUS" -eq 0 ]; then
        echo "no GPU that torch can use; ON_CPU=1 tries the script itself" >&2
        exit 2
    fi
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi
rm -rf "$OUT"
mkdir -p "$OUT"
"$PYTHON" -c 'import torch, transformers, sentence_transformers as s, accelerate
print("torch", torch.__version__, "transformers", transformers.__version__,
      "sentence-transformers", s.__version__, "accelerate", accelerate.__version__)'

# 512 pairs, so that two processes with dropout off must do what one does.
"$PYTHON" - "$OUT/pairs.jsonl" <<'PAIRS'
import json, sys
words = "river market engine teacher garden letter winter signal".split()
rows = [(f"The {a} is near the {b} number {i}.", f"Close to {b} {i} there is a {a}.")
        for a in words for b in words for i in range(8)]
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.writelines(json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in rows)
PAIRS

failed=0
check() { # NAME COMMAND...: runs the command, its output goes to a file
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$OUT/$name.txt" 2>&1; then
        echo "ok      $name ($((SECONDS - start)) s)"
    else
        echo "FAILED  $name ($((SECONDS - start)) s): $OUT/$name.txt"
        grep '^error: ' "$OUT/$name.txt" || tail -n 5 "$OUT/$name.txt"
        failed=1
    fi
}
launch=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" train.py)
one() { CUDA_VISIBLE_DEVICES=$FIRST_GPU "$PYTHON" train.py "$@"; }
many() { "${launch[@]}" "$@"; }
stop_and_resume() { # the launcher is told to stop once the log has lines, then started again
    "${launch[@]}" "$@" "output=$OUT/resumed" &
    local launcher=$!
    for _ in $(seq 600); do
        [ "$(wc -l <"$OUT/resumed/log.jsonl" 2>/dev/null || echo 0)" -gt 2 ] && break
        sleep 0.2
    done
    kill -TERM "$launcher"
    wait "$launcher" || true
    many "$@" "output=$OUT/resumed" | tee /dev/stderr | grep 'resuming from'
}
same_losses() { # RUN RUN TOLERANCE
    "$PYTHON" - "$@" <<'COMPARE'
import json, sys
from pathlib import Path
first, second = ([json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
                 for run in sys.argv[1:3])
losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (first, second)]
apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
print(f"{len(losses[0])} losses, at most {apart:.2e} apart, allowed {sys.argv[3]}")
sys.exit(apart > float(sys.argv[3]))
COMPARE
}

batch=$((16 * GPUS))
tiny=(quickstart "data.train=$OUT/pairs.jsonl" data.form=pairs "training.batch_size=$batch"
    training.log_every=1 training.precision=float32 evaluation.every=20 evaluation.dev=pairs
    evaluation.tasks=pairs 'evaluation.raw_poolings=[]')
small=("${tiny[@]}" training.steps=20)
check checkpointed one "${small[@]}" training.activation_checkpointing=true \
    encoder.dropout=0 "output=$OUT/checkpointed"
check bfloat16 one "${small[@]}" training.precision=bfloat16 "output=$OUT/bfloat16"
[ -n "${ON_CPU:-}" ] ||
    check float16 one "${small[@]}" training.precision=float16 "output=$OUT/float16"
check one_process one "${small[@]}" encoder.dropout=0 "output=$OUT/one"
check checkpointed_as_one same_losses "$OUT/one" "$OUT/checkpointed" 2e-3
if [ "$GPUS" -gt 1 ]; then
    check several_processes many "${small[@]}" encoder.dropout=0 "output=$OUT/several"
    check several_as_one same_losses "$OUT/one" "$OUT/several" 2e-3
    check several_cached many "${small[@]}" encoder.dropout=0 training.mini_batch_size=8 \
        "output=$OUT/cached"
    check cached_as_one same_losses "$OUT/one" "$OUT/cached" 2e-3
    for cached in null 8; do
        check "sharded_$cached" many "${small[@]}" encoder.dropout=0 training.sharding=full \
            "training.mini_batch_size=$cached" "output=$OUT/sharded_$cached"
        check "sharded_${cached}_as_one" same_losses "$OUT/one" "$OUT/sharded_$cached" 2e-3
    done
    check several_bfloat16 many "${small[@]}" training.precision=bfloat16 "output=$OUT/several16"
    check stop_and_resume stop_and_resume "${tiny[@]}" training.steps=60
else
    echo "skipped several GPUs: there is one"
fi
if [ -z "${ON_CPU:-}" ]; then
    paper=(unsup_bert_base training.steps=20 evaluation.every=20 evaluation.dev=pairs
        evaluation.tasks=pairs 'evaluation.raw_poolings=[]' evaluation.data=null)
    check paper_config one "${paper[@]}" "output=$OUT/paper"
    [ "$GPUS" -eq 1 ] || check paper_config_several many "${paper[@]}" "output=$OUT/paper_several"
fi
[ "$failed" -eq 0 ] && echo "all is well; logs and models are in $OUT"
exit "$failed"
