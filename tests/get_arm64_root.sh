#!/usr/bin/env bash
# A root of aarch64 in which the device's side runs under qemu-user: no chroot, no binfmt, no rights.
# Usage: tests/get_arm64_root.sh FOLDER; then FOLDER/run -m edge_runtime.cli selftest
set -euo pipefail
folder=$1
source=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# onnxruntime 1.32 dies in the emulator while it reads the host's processor; 1.26 does not.
wheels="numpy==2.4.6 msgspec==0.23.0 tokenizers==0.22.2 safetensors==0.8.0 onnxruntime==1.26.0
  protobuf==7.36.2 flatbuffers==25.12.19 packaging==26.4"
packages="libc6 libgcc-s1 libstdc++6 libgomp1 python3.11-minimal libpython3.11-minimal
  libpython3.11-stdlib libssl3 zlib1g libffi8 libexpat1 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1
  libtirpc3 libnsl2 libreadline8 libtinfo6 libncursesw6 libcrypt1"

give_up() {
  echo "pairzero: $1 A whole device on aarch64 is not tested." >&2
  exit 1
}
for program in qemu-aarch64-static aarch64-linux-gnu-gcc apt-get dpkg; do
  command -v "$program" >/dev/null ||
    give_up "$program is missing: sudo apt-get install qemu-user-static gcc-aarch64-linux-gnu."
done

if [ ! -x "$folder/usr/bin/python3.11" ]; then
  # Lists of its own, of the other architecture alone: the system's stay as they are.
  state="$folder/apt"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$folder/deb"
  touch "$state/status"
  options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64
    -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
    -o Debug::NoLocking=true -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update -qq 2>/dev/null || give_up "the package lists cannot be fetched."
  # One call: its start is most of its time.
  (cd "$folder/deb" && apt-get "${options[@]}" -qq download $packages 2>/dev/null) ||
    give_up "the packages cannot be fetched; they are those of Debian 12."
  for package in "$folder"/deb/*.deb; do dpkg -x "$package" "$folder"; done
  rm -rf "$folder/deb" "$state"
fi

if [ ! -d "$folder/site/onnxruntime" ]; then
  rm -rf "$folder/wheels" "$folder/site"
  tags=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux2014 manylinux_2_17; do
    tags+=(--platform "${tag}_aarch64")
  done
  "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none "${tags[@]}" \
    -d "$folder/wheels" $wheels || give_up "the wheels cannot be fetched."
  for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder/site"; done
  rm -rf "$folder/wheels"
fi

# Our own files are those of this checkout, the kernel compiled for the stable ABI.
rm -rf "$folder/ours"
mkdir -p "$folder/ours"
cp -r "$source/edge_runtime" "$source/radio" "$folder/ours/"
find "$folder/ours" -name '*.so' -delete
kernel="$folder/ours/edge_runtime/kernel"
include=$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_path("include"))')
aarch64-linux-gnu-gcc -O3 -std=gnu11 -ffp-contract=off -Wno-psabi -fPIC -shared \
  -DPy_LIMITED_API=0x030B0000 "-I$include" "$kernel/core.c" "$kernel/module.c" \
  -o "$kernel/_native.abi3.so"
cat >"$folder/run" <<EOF
#!/bin/sh
# python3.11 of this root; whatever hangs in the emulator ends.
export PYTHONPATH="\${OURS:-$folder/ours}:$folder/site" PYTHONHOME="$folder/usr"
# What lies in the folder where it is started is not taken for our files (PYTHONSAFEPATH).
export PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
exec timeout "\${LIMIT_S:-240}" qemu-aarch64-static -cpu cortex-a76 -L "$folder" "$folder/usr/bin/python3.11" "\$@"
EOF
chmod +x "$folder/run"
