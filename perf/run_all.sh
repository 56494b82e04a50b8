#!/usr/bin/env bash
# Takes the figures of docs/benchmarks.md, part by part, on a machine with nothing else to do.
#   perf/run_all.sh sweep    all_reduce beside MPI and Gloo, 8 B to 64 MiB, 2, 4 and 8 ranks
#   perf/run_all.sh noft     fault tolerance on beside compiled out
#   perf/run_all.sh kills    losses beside ULFM, 0.1 and 2 GiB resident
#   perf/run_all.sh tables   the Markdown of all that was measured, on standard output
#   perf/run_all.sh          all of it
# Raw JSON and each part's table land in build/perf. Set to change: LAUNCHES (5), TIME seconds a
# block (0.05), BLOCKS (5), RANKS ("2 4 8"), SIZES, KILLS (200), RESIDENT ("100M 2G"), KILL_PARTS
# (shrink,ulfm,spare), OUT (the folder), BIN (programs of another build). A launch that fails is
# left out; a run that is ended in the middle prints what it measured. The exit code is then 1, or
# 128 and the signal.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
bin="${BIN:-$root/build/release/bin}"
out="${OUT:-$root/build/perf}"
launches="${LAUNCHES:-5}"
read -ra ranks_list <<<"${RANKS:-2 4 8}"
read -ra resident_list <<<"${RESIDENT:-100M 2G}"
mkdir -p "$out"
child=""
table=""
code=0
exec 3>&1 4>&2  # where stop() writes, wherever the command that it ends did

build() {
  [[ -z "${BIN:-}" ]] || return 0
  ./dev build release regroup regroup-perf regroup-perf-noft >"$out/build.log" 2>&1 || {
    cat "$out/build.log" >&2
    exit 1
  }
}

# run_child COMMAND...: so that a signal is acted upon at once, and not when the command is done.
run_child() {
  local result=0
  "$@" &
  child=$!
  wait "$child" || result=$?
  child=""
  return "$result"
}

# stop NUMBER: ends what runs, prints what it measured.
stop() {
  trap '' INT TERM
  exec >&3 2>&4
  if [[ -n "$child" ]]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  printf '\nrun_all.sh: ended by signal %d; what was measured until then:\n' "$1" >&2
  [[ -z "$table" ]] || "$table" || true
  exit $((128 + $1))
}
trap 'stop 2' INT
trap 'stop 15' TERM

# measure NAME RANKS ARGUMENT...: one launch of regroup-perf; table to NAME.txt, JSON to NAME.json.
# It ends with 69 when somebody did not last with whom it was compared.
measure() {
  local name="$1" ranks="$2" result=0
  shift 2
  run_child "$bin/regroup" run -q -n "$ranks" --log-dir "$out/run" -- "$bin/regroup-perf" \
    all_reduce --inplace out --json "$out/$name.json" "$@" >"$out/$name.txt" 2>&1 || result=$?
  ((result != 0)) || return 0
  code=1
  printf 'run_all.sh: %s ended with %d\n' "$name" "$result" >&2
  if ((result == 69)); then
    grep 'left out' "$out/$name.txt" >&2 || true
  else
    cat "$out/$name.txt" >&2
  fi
}

# print_tables KIND: of the launches that have left something.
print_tables() {
  local files=("$out/$1".*.json)
  if [[ -e "${files[0]}" ]]; then
    python3 perf/tables.py "$1" "${files[@]}" | tee "$out/$1.md"
  else
    printf 'run_all.sh: no launch of %s has measured anything\n' "$1" >&2
  fi
}
table_sweep() { print_tables sweep; }
table_noft() { print_tables noft; }
table_kills() {
  cat "$out"/kills.*.md >"$out/kills.md" 2>/dev/null || true
  cat "$out/kills.md"
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
}

part_kills() {
  local resident spare_ranks result
  rm -f "$out"/kills.*.md
  for resident in "${resident_list[@]}"; do
    # Eight ranks of 2 GiB and their spares would not fit into 16 GiB.
    spare_ranks=8
    [[ "$resident" == *G ]] && spare_ranks=4
    result=0
    run_child python3 perf/kills.py --kills "${KILLS:-200}" --resident "$resident" \
      --bin-dir "$bin" --parts "${KILL_PARTS:-shrink,ulfm,spare}" \
      --spare-ranks "$spare_ranks" --json "$out/kills.$resident.json" \
      >"$out/kills.$resident.md" || result=$?
    echo >>"$out/kills.$resident.md"
    ((result == 0)) || code=1
  done
}

part_tables() {
  local part
  for part in sweep noft kills; do
    if [[ -f "$out/$part.md" ]]; then cat "$out/$part.md"; fi
  done
}

# timed PART: runs it, prints its tables and says how long it took.
timed() {
  local began=$SECONDS
  table="table_$1"
  "part_$1"
  "$table" || code=1
  table=""
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
exit "$code"
