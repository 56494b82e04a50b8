#!/bin/sh
# Checks docs/spec/uniform.pml with Spin: the rules as built must hold, each weakened one must fail.
# usage: tests/sim/spin.sh [FOLDER FOR SCRATCH FILES]
# Exit code: 0 all as expected, 1 otherwise, 77 Spin is missing.
set -u

model=$(cd "$(dirname "$0")/../../docs/spec" && pwd)/uniform.pml
command -v spin >/dev/null 2>&1 || { echo "spin is not installed: apt install spin"; exit 77; }
scratch=${1:-}
if [ -z "$scratch" ]; then
  scratch=$(mktemp -d) || exit 1
  trap 'rm -rf "$scratch"' EXIT
fi
mkdir -p "$scratch" && cd "$scratch" || exit 1

broadcasts="-DN=3 -DOPS=4 -DK1=1 -DK2=1 -DK3=1 -DK4=1 -DANYFIRST -DCRASHES=1"
wrong=0

# check EXPECTED OPTIONS WHAT: EXPECTED is holds or fails.
check() {
  # shellcheck disable=SC2086  # the options are several words
  if ! { spin $2 -a "$model" >spin.log 2>&1 &&
         "${CC:-cc}" -O2 -w -DSAFETY -DNOREDUCE -DCOLLAPSE -o pan pan.c >cc.log 2>&1; }; then
    echo "BROKEN  $2: the model does not build (see spin.log, cc.log in $scratch)"; wrong=1; return
  fi
  # Without the watchdog a changed rule could make the state space unbounded.
  timeout 300 ./pan -E -m200000 >pan.log 2>&1
  states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' pan.log)
  if grep -q 'errors: 0$' pan.log; then seen=holds
  elif grep -q 'errors: [1-9]' pan.log; then seen=fails
  else seen="did not end"; fi
  # A search cut off by its depth limit has proved nothing.
  if [ "$seen" = holds ] && grep -q 'max search depth too small' pan.log; then
    seen="did not end"
  fi
  if [ "$seen" = "$1" ]; then verdict=ok; else verdict=WRONG; wrong=1; fi
  printf '%-6s %-5s %9s states  %s (%s)\n' "$verdict" "$seen" "${states:-?}" "$3" "$2"
}

check holds "-DN=3" "the rules as built, all_reduce"
check holds "$broadcasts" "the rules as built, broadcasts"
check fails "-DN=3 -DPREP=0" "prepared by a plain store"
check fails "-DN=3 -DBIND=0" "a call uses the epoch installed, not the one entered"
check fails "-DN=3 -DREUSE=1" "the next epoch gets this epoch's slots"
check fails "-DN=3 -DCUTWORD=0 -DREPORT=0" "the cut is published, words of the dead are not counted"
check fails "-DN=3 -DSTICKY=0 -DREPORT=0 -DCUTWORD=1" "a restarted recovery forgets what it told"
check fails "-DN=3 -DENGINE=2" "a rank wedges itself and tells nobody"
check fails "-DN=3 -DHAND=0 -DK1=2 -DANYFIRST" "handing over moves the word"
check fails "$broadcasts -DRETAIN=0" "a slot is reused at once"
check fails "$broadcasts -DLATE=0" "a late call in an old epoch gets RankLost at once"
exit $wrong
