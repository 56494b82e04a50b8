#!/usr/bin/env bash
# Builds and tries this tree in a bare Debian 12 root: a machine that already has everything hides
# a package that `./dev setup` forgot. Uses the committed state (git clone), nothing of the host's
# tools, and cleans up after itself.
#
# usage: sudo tests/bare_root.sh [--keep] [COMMAND]
#   --keep    leave the root where it is and print where
#   COMMAND   what to run in the clone instead of the usual: build, unit tests, a job of two ranks
#
# Environment: BARE_ROOT_SUITE (bookworm, or Ubuntu's noble), BARE_ROOT_MIRROR, and the usual
# http_proxy variables.
set -euo pipefail
source_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
suite="${BARE_ROOT_SUITE:-bookworm}"
options=(--variant=minbase)
script=()
if [[ "$suite" == noble ]]; then
  mirror="${BARE_ROOT_MIRROR:-http://archive.ubuntu.com/ubuntu}"
  options+=(--components=main,universe)
  # Debian's debootstrap does not know the newest name; all of Ubuntu's use this script.
  script=(gutsy)
  if [[ ! -f /usr/share/keyrings/ubuntu-archive-keyring.gpg ]]; then
    echo "note: no Ubuntu keyring here; the archive's signature is not checked"
    options+=(--no-check-gpg)
  fi
else
  mirror="${BARE_ROOT_MIRROR:-http://deb.debian.org/debian}"
fi
keep=0
if [[ "${1:-}" == --keep ]]; then
  keep=1
  shift
fi
usual='./dev build && ./dev setup && ctest --preset release -L "^unit$" -j "$(nproc)" &&
  build/release/bin/regroup run -n 2 -- build/release/bin/example_01_hello'
command="${1:-$usual}"

if (($(id -u) != 0)); then
  echo "SKIPPED: a bare root needs root (debootstrap, chroot, mount)"
  exit 0
fi
if ! command -v debootstrap >/dev/null; then
  echo "SKIPPED: no debootstrap here; apt-get install debootstrap"
  exit 0
fi

bare="$(mktemp -d "${TMPDIR:-/tmp}/bare-root.XXXXXX")"
chmod 755 "$bare"  # apt drops its rights to read below it
clean_up() {
  local mount
  # Deepest first: each of these may be mounted or not, depending on how far we came.
  for mount in dev/shm dev proc sys; do
    if mountpoint -q "$bare/$mount"; then umount "$bare/$mount"; fi
  done
  if ((keep)); then
    echo "kept: $bare"
  else
    rm -rf --one-file-system "$bare"
  fi
}
trap clean_up EXIT

echo "== debootstrap $suite into $bare"
debootstrap "${options[@]}" "$suite" "$bare" "$mirror" "${script[@]}" >"$bare.log" 2>&1 || {
  tail -20 "$bare.log"
  exit 1
}
rm -f "$bare.log"
cp /etc/resolv.conf "$bare/etc/resolv.conf"
# The host's way to its mirror (a proxy, a clock that is off), without its sources and hooks.
for setting in /etc/apt/apt.conf.d/*proxy* /etc/apt/apt.conf.d/*registry*; do
  if [[ -f "$setting" ]]; then cp "$setting" "$bare/etc/apt/apt.conf.d/"; fi
done
# Fresh file systems of the kernel's, nothing bound from the host.
mount -t proc proc "$bare/proc"
mount -t sysfs -o ro sysfs "$bare/sys"
mount -t tmpfs tmpfs "$bare/dev"
for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
  read -r name major minor <<<"$device"
  mknod -m 666 "$bare/dev/$name" c "$major" "$minor"
done
mkdir -p "$bare/dev/shm"
mount -t tmpfs tmpfs "$bare/dev/shm"
ln -s /proc/self/fd "$bare/dev/fd"

echo "== clone and run"
git clone -q "$source_dir" "$bare/regroup"
run_inside() {
  chroot "$bare" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    bash -c "cd /regroup && $command" </dev/null
}
began=$SECONDS
run_inside
echo "ok: bare $suite, $((SECONDS - began)) s"
