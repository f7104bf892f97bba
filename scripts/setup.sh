#!/usr/bin/env bash
# Makes a machine ready to build, run and test kagami. Does nothing, quietly, when nothing is missing.
# As root it installs with apt and opens /dev/fuse; as an ordinary user it only says what to ask an administrator for,
# and fails only when kagami could not mount at all.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'setup: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
have_postgres() { have postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

# One line each: the package, and the test that it is there.
missing_packages() {
    have cc || echo gcc libc6-dev
    have fusermount3 || echo fuse3
    have fio || echo fio
    have getfattr || echo attr
    have setfacl || echo acl
    have sqlite3 || echo sqlite3
    [[ -x /usr/bin/python3 ]] || echo python3
    have ip || echo iproute2
    have nft || echo nftables
    have git || echo git
    have rsync || echo rsync
    have ps || echo procps
    { have setpriv && have unshare && have flock; } || echo util-linux
    have_postgres || echo postgresql
}

# Servers and clients that some of root's tests start: where a package is not to be had, those say that they are left out.
missing_servers() {
    have etcd || echo etcd-server
    have ganesha.nfsd || echo nfs-ganesha
    compgen -G '/usr/lib/*/ganesha/libfsalvfs.so' >/dev/null || echo nfs-ganesha-vfs
    have nfs-cp || echo libnfs-utils
    have smbd || echo samba
    have smbclient || echo smbclient
}

# The tests start servers of their own: a package shall not start its one, now or at the next boot.
install_stopped() {
    local policy=/usr/sbin/policy-rc.d ours=""
    if [[ ! -e $policy ]]; then
        ours=$policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$ours"
        chmod +x "$ours"
    fi
    local status=0
    apt-get -qq install -y --no-install-recommends "$@" </dev/null >/dev/null || status=$?
    [[ -z $ours ]] || rm -f "$ours"
    return "$status"
}

disable_servers() {
    local p s
    have systemctl || return 0
    for p in "$@"; do
        case $p in
            etcd-server) s=etcd ;;
            nfs-ganesha) s=nfs-ganesha ;;
            samba) s="smbd nmbd samba-ad-dc" ;;
            *) continue ;;
        esac
        systemctl disable --quiet $s 2>/dev/null || true
    done
}

install_packages() {
    have apt-get || { say "no apt-get here; please install by hand: $*"; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    say "installing $*"
    apt-get -qq update </dev/null >/dev/null
    if [[ " $* " == *" postgresql "* ]]; then
        # The tests start servers of their own; the package shall not make and start one on the default port.
        apt-get -qq install -y --no-install-recommends postgresql-common </dev/null >/dev/null
        sed -i 's/^#\? *create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    apt-get -qq install -y --no-install-recommends "$@" </dev/null >/dev/null
}

install_servers() {
    have apt-get || { say "no apt-get here; some tests need: $*"; return 0; }
    export DEBIAN_FRONTEND=noninteractive
    say "installing $*"
    apt-get -qq update </dev/null >/dev/null || true
    local p
    install_stopped "$@" || for p in "$@"; do
        install_stopped "$p" || say "$p cannot be installed: the tests that need it are left out"
    done
    disable_servers "$@"
}

fuse_device_usable() { [[ -c /dev/fuse && -r /dev/fuse && -w /dev/fuse ]]; }
fuse_device_open_to_all() { [[ -c /dev/fuse && $(stat -c %a /dev/fuse) == *666 ]]; }
allow_other_enabled() { grep -qsE '^[[:space:]]*user_allow_other[[:space:]]*$' /etc/fuse.conf; }

setup_as_root() {
    local packages
    read -r -a packages <<<"$(missing_packages | tr '\n' ' ')"
    if ((${#packages[@]})); then install_packages "${packages[@]}"; fi
    read -r -a packages <<<"$(missing_servers | tr '\n' ' ')"
    if ((${#packages[@]})); then install_servers "${packages[@]}"; fi
    [[ -c /dev/fuse ]] || modprobe fuse 2>/dev/null || true
    [[ -c /dev/fuse ]] || mknod /dev/fuse c 10 229 2>/dev/null || true
    if ! fuse_device_open_to_all && [[ -c /dev/fuse ]]; then
        say "opening /dev/fuse to ordinary users (mode 0666)"
        chmod 0666 /dev/fuse
    fi
    if ! allow_other_enabled; then
        say "enabling user_allow_other in /etc/fuse.conf"
        echo user_allow_other >>/etc/fuse.conf
    fi
}

advise_as_user() {
    local packages advice=()
    packages="$(missing_packages | tr '\n' ' ')"
    [[ -z ${packages// /} ]] || advice+=("apt-get install -y --no-install-recommends ${packages% }")
    [[ -c /dev/fuse ]] || advice+=("modprobe fuse")
    fuse_device_usable || advice+=("chmod 0666 /dev/fuse")
    allow_other_enabled || advice+=("echo user_allow_other >> /etc/fuse.conf    # only for mounts shared with other users")
    ((${#advice[@]})) || return 0
    say "not root; for the whole of kagami ask an administrator to run:"
    printf '    %s\n' "${advice[@]}"
}

if [[ $(id -u) == 0 ]]; then setup_as_root; else advise_as_user; fi

failed=0
have cargo || { say "no Rust toolchain: cargo is not in PATH (https://rustup.rs)"; failed=1; }
have cc || { say "no C compiler (cc): needed to link"; failed=1; }
have fusermount3 || { say "fusermount3 is missing (package fuse3): nothing can be mounted"; failed=1; }
fuse_device_usable || { say "/dev/fuse is missing or not readable and writable for $(id -un): nothing can be mounted"; failed=1; }
exit "$failed"
