#!/usr/bin/env bash
# Whether the package works with the oldest and the newest transformers that pyproject.toml allows. Each release gets an
# environment .venv-transformers-RELEASE that looks into .venv for everything else: what is downloaded is transformers, and
# what of its requirements .venv is too old for; never PyTorch. Environments are kept, so a second run asks the package
# index for the newest release's number and downloads nothing.
#   bash scripts/test_versions.sh                 the oldest and the newest
#   bash scripts/test_versions.sh 5.20.0 5.23.0   these
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=.venv/bin/python
if [ ! -x "$base" ]; then
    echo "error: there is no .venv; run scripts/setup.sh first" >&2
    exit 2
fi
pip=("$base" -m pip --disable-pip-version-check)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# What a release could change: attention and its hooks, a family with its whole export, its proof and both backends, the
# tower that is written out anew beside Hugging Face's own, the reference layer by layer. Seconds each, a minute together.
tests=(
    tests/anchor/test_hugging_face_attention.py
    tests/anchor/test_hugging_face_cache.py
    tests/anchor/test_hugging_face_cuda.py
    tests/models/*/test_*_vision.py
    tests/models/*/test_*_classes.py
    tests/models/test_toy_family.py
    tests/proof/test_streamed_reference.py
)

wanted() { # pyproject.toml's requirement
    "$base" -c '
import tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
(found,) = [line for line in extras["export"] if line.startswith("transformers")]
print(found)'
}

unreachable() { # what pip says of it
    echo "$1" >&2
    echo "error: transformers could not be had from the package index, which this check needs; above is what pip says" >&2
    exit 2
}

newest() { # of what a requirement allows, by the index
    if ! "${pip[@]}" install -vv --retries 1 --dry-run --no-deps --ignore-installed --report "$logs/report" "$1" >"$logs/pip" 2>&1
    then
        unreachable "$(grep -E 'Could not fetch|ERROR' "$logs/pip" || tail -n 5 "$logs/pip")"
    fi
    # pip goes on without an index that does not answer, and takes the newest of whatever else it was told to look through.
    local silent
    silent=$(grep 'Could not fetch URL' "$logs/pip" | grep -v '404 Client Error' || true)
    if [ -n "$silent" ] || ! grep -q 'Fetched page' "$logs/pip"; then
        unreachable "${silent:-pip asked no index}"
    fi
    "$base" -c 'import json, sys; print(json.load(open(sys.argv[1]))["install"][0]["metadata"]["version"])' "$logs/report"
}

make() { # an environment for a release, unless there is one
    local folder=.venv-transformers-$1
    if [ "$("$folder/bin/python" -c 'import importlib.metadata as m; print(m.version("transformers"))' 2>/dev/null)" = "$1" ]
    then
        return
    fi
    echo "making $folder" >&2
    rm -rf "$folder"
    "$base" -m venv --without-pip "$folder"
    local packages own
    packages=$("$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$packages" >"$own/base.pth"
    "${pip[@]}" --python "$folder/bin/python" install --quiet "transformers==$1" >"$logs/pip" 2>&1 \
        || { rm -rf "$folder"; unreachable "$(cat "$logs/pip")"; }
}

run() {
    # Threads of two processes on the same cores would only wait for each other.
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH=$PWD ".venv-transformers-$1/bin/python" -m pytest \
        --quiet --no-header -p no:cacheprovider -p no:xdist -p no:warnings "${tests[@]}" >"$logs/$1" 2>&1
}

releases=("$@")
if [ ${#releases[@]} -eq 0 ]; then
    requirement=$(wanted)
    oldest=$(sed -nE 's/^transformers>=([0-9.]+).*/\1/p' <<<"$requirement")
    [[ $oldest == *.*.* ]] || oldest=$oldest.0
    latest=$(newest "$requirement")
    releases=("$oldest" "$latest")
    [ "$oldest" != "$latest" ] || releases=("$oldest")
fi
for release in "${releases[@]}"; do
    make "$release"
done
started=()
for release in "${releases[@]}"; do
    run "$release" &
    started+=($!)
done
failed=0
for number in "${!releases[@]}"; do
    release=${releases[$number]}
    if wait "${started[$number]}"; then
        echo "transformers $release: $(tail -n 1 "$logs/$release")"
    else
        failed=1
        cat "$logs/$release"
        echo "transformers $release: FAILED"
    fi
done
exit $failed
