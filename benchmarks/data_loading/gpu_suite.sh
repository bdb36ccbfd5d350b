#!/usr/bin/env bash
# Run everything about the data path that needs a GPU, in under eight minutes; gpu_suite.py has the measurements.
#
#   benchmarks/data_loading/gpu_suite.sh VIDEOS [--cpu]
#
# Each part is a separate process that writes PART.json and PART.log to $OUT (default: ./gpu_results). If it fails,
# crashes or hangs, its file says so and the next part starts. --cpu: a dry run of the same code at a small scale.
# PYTHON: interpreter with rhofast. BUDGET: seconds for all parts (default: 470). PARTS: only these parts.
set -u
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root="$(cd "$(dirname "$0")/../.." && pwd)"
suite=(-m benchmarks.data_loading.gpu_suite)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"
out="${OUT:-gpu_results}"
budget="${BUDGET:-470}"
mkdir -p "$out"
export OMP_WAIT_POLICY=passive
began=$SECONDS
for part in ${PARTS:-$("$python" "${suite[@]}" --list)}; do
    name="${part%%:*}" most="${part##*:}"
    [ "$most" != "$part" ] || most=120
    left=$((budget - (SECONDS - began)))
    [ "$left" -lt "$most" ] && most="$left"
    rm -f "$out/$name.json"
    if [ "$most" -lt 10 ]; then
        why="no time left"
    else
        echo "== $name (at most $most s)" >&2
        timeout --kill-after=5 "$most" "$python" "${suite[@]}" "$name" "$@" --out "$out" > "$out/$name.log" 2>&1
        why="exit code $? (124, 137: it took longer than $most s; 134, 139: it crashed)"
    fi
    [ -f "$out/$name.json" ] ||
        printf '{"part": "%s", "ok": false, "error": "%s", "lines": [], "results": {}}\n' "$name" "$why" > "$out/$name.json"
done
"$python" "${suite[@]}" summary "$@" --out "$out"
