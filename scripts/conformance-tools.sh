#!/usr/bin/env bash
# Installs the two conformance tools into target/tools/bin, at the versions the expectations are written for.
set -euo pipefail
cd "$(dirname "$0")/.."
root="${CARGO_TARGET_DIR:-target}/tools"

install_tool() {
    local name="$1" version="$2"
    if [[ "$("$root/bin/$name" --version 2>/dev/null)" == "$name $version" ]]; then return 0; fi
    printf 'tools: installing %s %s into %s\n' "$name" "$version" "$root"
    # A target directory of its own keeps the flags of our builds out, and is given back afterwards. They wait for the system
    # mostly: not to optimise them saves more than it costs.
    CARGO_TARGET_DIR="$root/build" cargo install --quiet --debug --locked --force --version "$version" --root "$root" "$name" </dev/null
    rm -rf "$root/build"
}

install_tool pjdfstest 0.2.2
install_tool fsx 0.3.2
