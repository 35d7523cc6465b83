#!/usr/bin/env bash
# libiio and its tools for the tests, without root: where the system has none, the distribution's own
# packages are unpacked into FOLDER/lib and FOLDER/bin. Usage: tests/get_libiio.sh FOLDER
set -euo pipefail
folder=$1
packages="libiio0 libiio-utils"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libiio\.so\.0' && command -v iio_info >/dev/null; then
  exit 0
fi

give_up() {
  echo "pairzero: $1 The tests talk to real clients and need libiio 0.24 or later, below 1:" >&2
  echo "    sudo apt-get install $packages" >&2
  exit 1
}

command -v apt-get >/dev/null && command -v dpkg >/dev/null || give_up "there is no apt-get here."
options=()
if ! apt-get -s install --no-install-recommends $packages >/dev/null 2>&1; then
  # No lists, or stale ones, and no right to renew them: keep lists of our own.
  state="$folder/apt"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  options=(-o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache"
    -o "Debug::NoLocking=true" -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update -qq || give_up "the package lists cannot be fetched."
fi
missing=$(apt-get "${options[@]}" -s install --no-install-recommends $packages |
  awk '$1 == "Inst" { print $2 }') || give_up "the packages are not known here."

download=$(mktemp -d "$folder/download.XXXXXX")
trap 'rm -rf "$download"' EXIT
(cd "$download" && apt-get "${options[@]}" -qq download $missing 2>/dev/null) ||
  give_up "the packages cannot be fetched."
for package in "$download"/*.deb; do dpkg -x "$package" "$download/root"; done
mkdir -p "$folder/lib" "$folder/bin"
find "$download/root" -name '*.so*' -exec cp -P {} "$folder/lib/" \;
find "$download/root" -path '*/bin/iio_*' -type f -exec cp {} "$folder/bin/" \;
