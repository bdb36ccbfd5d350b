#!/usr/bin/env bash
# Run everything that needs a GPU, on the machine that has one: six minutes. README.md says what follows from each number.
#
#   benchmarks/gpu/run.sh [--unpack] [--cpu] [--parts PART ...] ARCHIVE...
#
# ARCHIVE: the files that prepare.sh made. --unpack: only unpack them, where not all can be copied at once.
# --cpu: rehearse at a small scale without a GPU. --parts: only these parts (python -m benchmarks.gpu.run --list).
# WORK: where archives are unpacked and reports are kept (default: ./gpu_work). Parts that have a report there are not
# run again, so the same command goes on after an interruption.
# OUT: where results.tar.gz and summary.md go, also after an interruption (default: ./gpu_results).
# PYTHON: the interpreter that has torch (default: python3). BUDGET: seconds for all parts (default: 600).
set -u
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root="$(cd "$(dirname "$0")/../.." && pwd)"
python="${PYTHON:-python3}" work="${WORK:-gpu_work}" out="${OUT:-gpu_results}" budget="${BUDGET:-600}"
archives=() options=() unpack_only=
while [ $# -gt 0 ]; do
    case "$1" in
        --unpack) unpack_only=1 ;;
        --cpu) options+=(--cpu) ;;
        --parts) options+=(--parts); while [ $# -gt 1 ] && [ ! -e "$2" ]; do options+=("$2"); shift; done ;;
        -*) usage ;;
        *) archives+=("$1") ;;
    esac
    shift
done
mkdir -p "$work/site" "$work/sets" "$work/reports" "$out"
work="$(cd "$work" && pwd)" out="$(cd "$out" && pwd)"
for archive in ${archives[@]+"${archives[@]}"}; do
    case "$archive" in
        *sets*.tar) tar xf "$archive" -C "$work/sets" || exit 2 ;;
        *.tar.xz) tar xJf "$archive" --ignore-zeros -C "$work/site" || exit 2 ;;
        *) echo "$archive: not an archive of prepare.sh" >&2; exit 2 ;;
    esac
done
[ -z "$unpack_only" ] || exit 0
[ -n "$(ls "$work/sets")" ] || { echo "no sets in $work/sets: name the archive sets.tar" >&2; exit 2; }

export PYTHONPATH="$root:$work/site${PYTHONPATH:+:$PYTHONPATH}" OMP_WAIT_POLICY=passive
run=("$python" -m benchmarks.gpu.run "$work/sets" --out "$work/reports" ${options[@]+"${options[@]}"})
pack() {
    "${run[@]}" --summary > "$work/summary.log" 2>&1 || cat "$work/summary.log" >&2
    cp "$work/reports/summary.md" "$out/" && tar czf "$out/results.tar.gz" -C "$work" --exclude=sets reports
    cat "$out/summary.md"
}
child=
trap pack EXIT
trap '[ -z "$child" ] || kill "$child"; exit 130' INT TERM
began=$SECONDS code=1
for _ in {1..20}; do # more than there are parts
    left=$((budget - (SECONDS - began)))
    "${run[@]}" --budget "$left" >> "$work/reports/run.log" 2>&1 &
    child=$!
    wait "$child"
    code=$? child=
    # 3: a part exceeded its limit. From 128 on: a signal, most likely a crash. Its part has a report by now.
    [ "$code" -eq 3 ] || [ "$code" -ge 128 ] || break
    echo "a part ended with exit code $code; going on with the next" >&2
done
tail -n 3 "$work/reports/run.log" >&2
exit "$code"
