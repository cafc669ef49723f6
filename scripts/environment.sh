#!/usr/bin/env bash
# Makes the Python environment of this checkout and links it as .venv; quick when it is there already.
#
#   scripts/environment.sh         everything the tests need
#   scripts/environment.sh simd    the same with pillow-simd (built for AVX2) in place of Pillow, linked as .venv-simd
#
# Environments are kept in $HEADRACE_ENVIRONMENTS (default ~/.cache/headrace/environments), named by the hash of what
# defines them, so that clones share them and a changed pyproject.toml gets a new one. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-base}
python=${PYTHON:-python3}
store=${HEADRACE_ENVIRONMENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/headrace/environments}
pillow_simd="pillow-simd==12.1.1.post0"

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    { echo "error: Headrace needs Python 3.11 or 3.12; set PYTHON=/path/to/python3.11" >&2; exit 1; }

hash=$({ "$python" -c 'import sys; print(sys.version, sys.prefix)'; cat pyproject.toml scripts/environment.sh; } | sha256sum | cut -c1-16)
base=$store/$hash

# Builds in a temporary place and renames, so that an interrupted installation is never taken for a whole one. A
# virtual environment knows its own path, hence the two-step marker instead of a renamed folder.
make_base() {
    [ -e "$base/.complete" ] && return
    echo "Making the environment in $base (once; several gigabytes with CUDA libraries)"
    rm -rf "$base"
    "$python" -m venv "$base"
    "$python" - > "$base/requirements.txt" <<'PY'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["dali"] + extras["onnx"] + extras["dev"]
print("\n".join(line for line in wanted if not line.startswith("headrace[")))
PY
    "$base/bin/python" -m pip install --quiet --progress-bar off --disable-pip-version-check -r "$base/requirements.txt"
    touch "$base/.complete"
}

# A thin layer over the base environment: its own site-packages come first, the base's follow through a .pth file.
make_simd() {
    local layer=$store/$hash-simd
    if [ ! -e "$layer/.complete" ]; then
        echo "Building pillow-simd for AVX2 in $layer"
        if ! echo '#include <jpeglib.h>' | cc -include stdio.h -E - >/dev/null 2>&1; then
            if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
                apt-get update -qq && apt-get install -y -qq libjpeg-dev zlib1g-dev >/dev/null
            else
                echo "error: pillow-simd needs the headers of libjpeg: sudo apt-get install libjpeg-dev zlib1g-dev" >&2
                exit 1
            fi
        fi
        rm -rf "$layer"
        "$python" -m venv "$layer"
        CC="cc -mavx2" "$layer/bin/python" -m pip install --quiet --progress-bar off --disable-pip-version-check \
            --no-deps --no-binary pillow-simd "$pillow_simd"
        "$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
            > "$("$layer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
        touch "$layer/.complete"
    fi
    ln -sfn "$layer" .venv-simd
}

mkdir -p "$store"
exec 9> "$store/$hash.lock"
flock 9
make_base
if [ "$kind" = simd ]; then make_simd; fi
ln -sfn "$base" .venv
