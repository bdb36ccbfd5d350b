#!/usr/bin/env bash
# Pack what a GPU machine lacks: Python packages and shard sets, in archives of at most 56 MiB.
#
#   benchmarks/gpu/prepare.sh --has LIST [--python 3.12] [--arch 90] [--cpu] VIDEOS...
#
# VIDEOS: files or folders; twelve videos of ten seconds are enough. LIST: the output of
# `python3 -m pip list --format=freeze` on the GPU machine. Without --has no packages are packed: the machine has all.
# --cpu: small sets, for a rehearsal of run.sh --cpu. OUT: where the archives go (default: ./gpu_archives).
# PYTHON: an interpreter with rhofast (default: python3).
set -eu
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root="$(cd "$(dirname "$0")/../.." && pwd)"
python="${PYTHON:-python3}" out="${OUT:-gpu_archives}"
has='' packages=() sets=() videos=()
while [ $# -gt 0 ]; do
    case "$1" in
        --has) [ $# -gt 1 ] || usage; has="$2"; shift ;;
        --python|--arch) [ $# -gt 1 ] || usage; packages+=("$1" "$2"); shift ;;
        --cpu|--more) sets+=("$1") ;;
        -*) usage ;;
        *) videos+=("$1") ;;
    esac
    shift
done
[ "${#videos[@]}" -gt 0 ] || usage
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$python" -m benchmarks.gpu.sets "${videos[@]}" --out "$scratch" ${sets[@]+"${sets[@]}"}
tar cf "$out/sets.tar" -C "$scratch" .
[ "$(stat -c %s "$out/sets.tar")" -le $((56 << 20)) ] || { echo "$out/sets.tar: more than 56 MiB; name fewer videos" >&2; exit 1; }
[ -z "$has" ] || "$python" -m benchmarks.gpu.packages "$out" --has "$has" ${packages[@]+"${packages[@]}"}
ls -l "$out"
echo "there: benchmarks/gpu/run.sh $out/*.tar*"
