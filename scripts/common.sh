# shellcheck shell=bash disable=SC2034
# Shared by the scripts beside it: says, installs what is missing, finds Rust. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

# That nobody reads it any more is no reason to end.
say() { printf '==> %s\n' "$*" >&2 || true; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "this needs root and there is no sudo: $*"
    fi
}

apt_lists_are_fresh=

apt_update() {
    if [ -z "$apt_lists_are_fresh" ]; then
        as_root apt-get update -q >&2 || fail "apt-get update failed"
        apt_lists_are_fresh=yes
    fi
}

# Installs Debian or Ubuntu packages by name.
apt_install() {
    have apt-get || fail "please install with your package manager what Debian calls: $*"
    say "installing with apt: $*"
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2 ||
        fail "apt could not install: $*"
}

# Installs Debian or Ubuntu packages none of whose services is to run, now or after a restart of the machine. Whoever installs
# packages asks policy-rc.d whether services may start; where the machine has none, there is one for the time of this.
apt_install_stopped() (
    policy=/usr/sbin/policy-rc.d
    if ! [ -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null || exit
        as_root chmod 755 "$policy" || exit
    fi
    apt_install "$@"
    if have systemctl; then as_root systemctl disable "$@" >/dev/null 2>&1 || true; fi
)

# Whether version $1 is at least version $2.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# Whether the distribution has package $1.
apt_has() {
    have apt-get || return
    apt_update
    [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]
}

can_compile_c() { printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null; }

# Leaves a cargo of at least the version that Cargo.toml asks for on the PATH, and a C compiler.
ensure_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    # The distributions' own Rust is mostly too old; their rustup, where there is one, brings a current one.
    if ! have cargo && ! have rustup && apt_has rustup; then
        apt_install rustup ca-certificates
    fi
    if have rustup && ! { have cargo && cargo --version >/dev/null 2>&1; }; then
        say "installing the stable Rust toolchain with rustup"
        rustup default stable >&2
    fi
    have cargo || fail "Rust $wanted or newer is needed: install rustup (https://rustup.rs), then run this again"
    found=$(cd "$root" && cargo --version | awk '{print $2}')
    if ! at_least "$found" "$wanted"; then
        have rustup || fail "Rust $wanted or newer is needed, this is $found: install rustup (https://rustup.rs), then run this again"
        say "Rust $found is too old, installing the stable toolchain with rustup"
        rustup toolchain install stable --profile minimal >&2
        export RUSTUP_TOOLCHAIN=stable
    fi
    can_compile_c || apt_install gcc libc6-dev
}

# Whether there is a protoc that finds the types which come with it: Debian has them in a package of their own.
can_compile_proto() {
    local dir result=0
    have protoc || return
    dir=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\nimport "google/protobuf/struct.proto";\n' >"$dir/try.proto"
    protoc -I "$dir" --descriptor_set_out=/dev/null "$dir/try.proto" >/dev/null 2>&1 || result=1
    rm -rf "$dir"
    return "$result"
}

# Leaves what the build needs beside Rust: the etcd client's build script calls protoc.
ensure_protoc() {
    can_compile_proto || apt_install protobuf-compiler libprotobuf-dev
    can_compile_proto || fail "protoc does not find google/protobuf/descriptor.proto: install protobuf's own .proto files beside it"
}

# Leaves etcd and etcdctl on the PATH. Debian's package may start a service of its own on port 2379: nothing here uses or
# disturbs it.
ensure_etcd() {
    if have etcd && have etcdctl; then return; fi
    if apt_has etcd-server; then apt_install etcd-server etcd-client; else apt_install etcd; fi
    have etcd && have etcdctl || fail "etcd and etcdctl are needed: https://github.com/etcd-io/etcd/releases"
}

# Builds berth and leaves its path in $berth: the release build if $1 is --release, else the one that is ready soonest.
build_berth() {
    local profile=quick
    if [ "${1:-}" = --release ]; then profile=release; fi
    ensure_rust
    ensure_protoc
    if [ "$profile" = quick ]; then
        say "building to try, not optimised (--release: what runs in production; takes longer)"
    else
        say "building the release (the first time takes some minutes)"
    fi
    cargo build --profile "$profile" --locked --manifest-path "$root/Cargo.toml" --bin berth || fail "the build failed, see above"
    berth=$target/$profile/berth
}
