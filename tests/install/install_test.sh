#!/usr/bin/env bash
# Installs a build tree into an empty folder and uses it as a stranger would.
# usage: install_test.sh SOURCE BUILD CASE
set -euo pipefail
source_dir="$1" build_dir="$2" what="$3"
scratch="$(mktemp -d)"
consumer="$(mktemp -d "$build_dir.consumer.XXXXXX")"
trap 'rm -rf "$scratch" "$consumer"' EXIT
prefix="$scratch/prefix"

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

configure() {
  local launcher=()
  command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  cmake -S "$source_dir/tests/install/consumer" -B "$consumer" -G Ninja \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo "${launcher[@]}" "$@"
}

# Runs the consumer alone and, where the command is at hand, as a job of two ranks.
run_consumer() {
  local regroup="$1" output
  output="$("$consumer/consumer")" || fail "a job of one rank"
  [[ "$output" == "size 1 sum 1" ]] || fail "a job of one rank printed: $output"
  output="$("$regroup" run -n 2 --log-dir "$scratch/runs" -- "$consumer/consumer")" ||
    fail "a job of two ranks"
  [[ "$(grep -c 'size 2 sum 3' <<<"$output")" == 2 ]] || fail "a job of two ranks printed: $output"
}

install_tree() { cmake --install "$build_dir" --prefix "$prefix" >"$scratch/install.log"; }

case "$what" in
  find_package)
    install_tree
    configure -DCMAKE_PREFIX_PATH="$prefix"
    cmake --build "$consumer"
    run_consumer "$prefix/bin/regroup"
    ;;
  wrong_version)
    install_tree
    if configure -DCMAKE_PREFIX_PATH="$prefix" -DREGROUP_VERSION_WANTED=0.2 \
      >"$scratch/log" 2>&1; then
      fail "version 0.2 was found although this is another one"
    fi
    grep -q 'version: 0.1' "$scratch/log" ||
      fail "the refusal does not name the version: $(cat "$scratch/log")"
    ;;
  subdirectory)
    # Compiles the whole library again; whether that works does not depend on its speed.
    configure -DREGROUP_SOURCE="$source_dir" -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O0
    cmake --build "$consumer" -j 2 --target consumer
    run_consumer "$build_dir/bin/regroup"
    ;;
  symbols)
    # Only the API leaves the library: a program may use another fmt, and internals may change.
    # What the standard library's own headers export is the same in every program.
    install_tree
    library="$(find "$prefix" -name 'libregroup.so' | head -1)"
    [[ -n "$library" ]] || fail "no libregroup.so was installed"
    foreign="$(nm -D --defined-only --demangle "$library" | cut -d' ' -f3- |
      grep -vE '^(vtable for |typeinfo (name )?for |guard variable for )?(regroup|std)::' || true)"
    [[ -z "$foreign" ]] || fail "exported, but not our API: $foreign"
    modules='engine|base|control|membership|metrics|collective|spi|state|shm'
    inside="$(nm -D --defined-only --demangle "$library" | cut -d' ' -f3- |
      grep -E "^regroup::($modules)::" || true)"
    [[ -z "$inside" ]] || fail "exported, but internal: $inside"
    ;;
  headers)
    # Each installed header compiles alone, with nothing but the installation.
    install_tree
    find "$prefix/include" -name '*.hpp' | sort >"$scratch/headers"
    [[ -s "$scratch/headers" ]] || fail "no header was installed"
    while read -r header; do
      "${CXX:-c++}" -std=c++20 -Wall -Wextra -Werror -fsyntax-only -I "$prefix/include" -x c++ - \
        <<<"#include <${header#"$prefix/include/"}>"
    done <"$scratch/headers"
    ;;
  *) fail "no case $what" ;;
esac
echo "ok: $what"
