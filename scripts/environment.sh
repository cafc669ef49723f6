#!/usr/bin/env bash
# Makes the Python environment of this checkout and links it as .venv; quick when it is there already.
#
#   scripts/environment.sh         everything the tests need
#   scripts/environment.sh simd    the same with pillow-simd (built for AVX2) in place of Pillow, linked as .venv-simd
#
# What is not on PyPI as a wheel needs Debian packages: they are installed when this runs as root, and named otherwise.
# Without them all but the loaders ffcv and roi works; repeat the command when they are there.
#
# Environments are kept in $HEADRACE_ENVIRONMENTS (default ~/.cache/headrace/environments), named by the hash of what
# they hold, so that clones share them and changed dependencies get a new one. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-base}
store=${HEADRACE_ENVIRONMENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/headrace/environments}
pillow_simd="pillow-simd==12.1.1.post0"

fail() { echo "error: $*" >&2; exit 1; }

for link in .venv .venv-simd; do
    if [ -e "$link" ] && [ ! -L "$link" ]; then fail "$link is not a link that this script made: move it away"; fi
done

python=
for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "Headrace needs Python 3.11 or 3.12 with venv (Debian: python3-venv); PYTHON=... names one"

requirements=$("$python" - <<'PY'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["dali"] + extras["onnx"] + extras["dev"]
print("\n".join(line for line in wanted if not line.startswith("headrace[")))
PY
)
ffcv=$("$python" -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ffcv"])')
# The base interpreter, not the virtual environment that may be active, decides.
interpreter=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
hash=$(printf '%s\n' "$interpreter" "$requirements" "$ffcv" "$pillow_simd" | sha256sum | cut -c1-16)
base=$store/$hash

# A virtual environment knows its own path, so it is made in place; the marker at the end says that it is whole.
make_base() {
    if [ -e "$base/.complete" ]; then return; fi
    echo "Making the environment in $base (once; several gigabytes with CUDA libraries)"
    rm -rf "$base"
    "$python" -m venv "$base"
    echo "$requirements" > "$base/requirements.txt"
    "$base/bin/python" -m pip install --quiet --progress-bar off --disable-pip-version-check -r "$base/requirements.txt"
    touch "$base/.complete"
}

has_libraries() {
    command -v g++ >/dev/null && command -v jpegtran >/dev/null && command -v pkg-config >/dev/null &&
        pkg-config --exists opencv4 libturbojpeg
}

# libjpeg-turbo for the loader roi, jpegtran for packing without loss, and what FFCV is built with.
install_libraries() {
    if has_libraries; then return; fi
    local packages="g++ pkg-config libturbojpeg0 libjpeg-turbo-progs libturbojpeg0-dev libopencv-dev"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing $packages"
        export DEBIAN_FRONTEND=noninteractive
        if apt-get update -qq && apt-get install -y -qq $packages >/dev/null; then return; fi
    fi
    echo "For the loaders roi and ffcv, now or later: sudo apt-get install $packages" >&2
}

# Built from source, so a failure is no reason to stop. The constraints keep it from moving what pyproject.toml pins.
add_ffcv() {
    if [ -e "$base/.ffcv" ] || ! has_libraries; then return; fi
    echo "Building FFCV in $base"
    "$base/bin/python" -m pip freeze --disable-pip-version-check > "$base/constraints.txt"
    if "$base/bin/python" -m pip install --quiet --progress-bar off --disable-pip-version-check \
        -c "$base/constraints.txt" $ffcv; then
        touch "$base/.ffcv"
    else
        echo "FFCV could not be built (see above): all but the loader ffcv works" >&2
    fi
}

# A thin layer over the base environment: its own site-packages come first, the base's follow through a .pth file.
make_simd() {
    local layer=$store/$hash-simd
    if [ ! -e "$layer/.complete" ]; then
        grep -q avx2 /proc/cpuinfo || fail "pillow-simd is built for AVX2, which this processor lacks"
        local probe='#include <stdio.h>
            #include <jpeglib.h>
            #include <zlib.h>
            #include <webp/encode.h>'
        if ! { command -v cc >/dev/null && echo "$probe" | cc -E - >/dev/null 2>&1; }; then
            local packages="gcc libjpeg-dev zlib1g-dev libwebp-dev"
            if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
                apt-get update -qq && apt-get install -y -qq $packages >/dev/null
            else
                fail "pillow-simd needs a compiler and headers: sudo apt-get install $packages"
            fi
        fi
        echo "Building pillow-simd for AVX2 in $layer"
        rm -rf "$layer"
        "$python" -m venv "$layer"
        CC="cc -mavx2" "$layer/bin/python" -m pip install --quiet --progress-bar off --disable-pip-version-check \
            --no-cache-dir --no-deps --no-binary pillow-simd -C webp=enable "$pillow_simd"
        local site='import sysconfig; print(sysconfig.get_path("purelib"))'
        "$base/bin/python" -c "$site" > "$("$layer/bin/python" -c "$site")/base.pth"
        touch "$layer/.complete"
    fi
    ln -sfn "$layer" .venv-simd
}

mkdir -p "$store"
exec 9> "$store/$hash.lock"
flock 9
install_libraries
make_base
add_ffcv
if [ "$kind" = simd ]; then make_simd; fi
ln -sfn "$base" .venv
