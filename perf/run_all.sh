#!/usr/bin/env bash
# Takes the figures of docs/benchmarks.md, part by part, on a machine with nothing else to do.
#   perf/run_all.sh sweep    all_reduce beside MPI and Gloo, 8 B to 64 MiB, 2, 4 and 8 ranks
#   perf/run_all.sh noft     fault tolerance on beside compiled out
#   perf/run_all.sh kills    losses beside ULFM, 0.1 and 2 GiB resident
#   perf/run_all.sh tables   the Markdown of all that was measured, on standard output
#   perf/run_all.sh          all of it
# Raw JSON and each part's table land in build/perf. Set to change: LAUNCHES (5), TIME seconds a
# block (0.05), BLOCKS (5), RANKS ("2 4 8"), SIZES, KILLS (200), RESIDENT ("100M 2G").
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
bin="$root/build/release/bin"
out="${OUT:-$root/build/perf}"
launches="${LAUNCHES:-5}"
read -ra ranks_list <<<"${RANKS:-2 4 8}"
read -ra resident_list <<<"${RESIDENT:-100M 2G}"
mkdir -p "$out"

build() {
  ./dev build release regroup regroup-perf regroup-perf-noft >"$out/build.log" 2>&1 || {
    cat "$out/build.log" >&2
    exit 1
  }
}

# measure NAME RANKS ARGUMENT...: one launch of regroup-perf; table to NAME.txt, JSON to NAME.json.
measure() {
  local name="$1" ranks="$2"
  shift 2
  "$bin/regroup" run -q -n "$ranks" --log-dir "$out/run" -- "$bin/regroup-perf" all_reduce \
    --inplace out --json "$out/$name.json" "$@" >"$out/$name.txt" 2>&1 || {
    cat "$out/$name.txt" >&2
    return 1
  }
}

part_sweep() {
  local ranks launch
  rm -f "$out"/sweep.*.json
  for ranks in "${ranks_list[@]}"; do
    for ((launch = 1; launch <= launches; ++launch)); do
      measure "sweep.$ranks.$launch" "$ranks" --compare mpi,gloo --time "${TIME:-0.05}" \
        --blocks "${BLOCKS:-5}" --sizes "${SIZES:-8,64,512,4K,32K,256K,1M,4M,16M,64M}"
    done
  done
  python3 perf/tables.py sweep "$out"/sweep.*.json | tee "$out/sweep.md"
}

part_noft() {
  local ranks launch
  rm -f "$out"/noft.*.json
  for ranks in "${ranks_list[@]}"; do
    for ((launch = 1; launch <= launches; ++launch)); do
      measure "noft.$ranks.$launch" "$ranks" --compare noft,self --time "${TIME:-0.05}" \
        --blocks "${NOFT_BLOCKS:-15}" --sizes "${NOFT_SIZES:-8,1K,64K,1M,16M}"
    done
  done
  python3 perf/tables.py noft "$out"/noft.*.json | tee "$out/noft.md"
}

part_kills() {
  local resident spare_ranks
  : >"$out/kills.md"
  for resident in "${resident_list[@]}"; do
    # Eight ranks of 2 GiB and their spares would not fit into 16 GiB.
    spare_ranks=8
    [[ "$resident" == *G ]] && spare_ranks=4
    python3 perf/kills.py --kills "${KILLS:-200}" --resident "$resident" \
      --spare-ranks "$spare_ranks" --json "$out/kills.$resident.json" | tee -a "$out/kills.md"
    echo | tee -a "$out/kills.md"
  done
}

part_tables() {
  local part
  for part in sweep noft kills; do
    if [[ -f "$out/$part.md" ]]; then cat "$out/$part.md"; fi
  done
}

# timed PART: runs it and says how long it took.
timed() {
  local began=$SECONDS
  "part_$1"
  printf '\n== %s: %d s\n' "$1" $((SECONDS - began)) >&2
}

parts=("$@")
((${#parts[@]})) || parts=(sweep noft kills)
for part in "${parts[@]}"; do
  case "$part" in
    sweep | noft | kills)
      build
      timed "$part"
      ;;
    tables) part_tables ;;
    *)
      printf 'run_all.sh: no part %s; there are sweep, noft, kills and tables\n' "$part" >&2
      exit 64
      ;;
  esac
done
