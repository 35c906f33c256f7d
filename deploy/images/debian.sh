# Sourced by the image scripts: a minimal Debian root file system, made by debootstrap, to become a Docker image.
#
# The packages come from the mirror that this machine's apt already uses (or from $2 of the calling script), so
# nothing is pulled from an image registry. Needs root, debootstrap and Docker.

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 2; }

require_tools() {
    [ "$(id -u)" -eq 0 ] || die "debootstrap needs root: run as root or through sudo"
    command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
    command -v docker >/dev/null || die "docker is missing: apt-get install docker.io"
    docker info >/dev/null 2>&1 || die "no Docker daemon answers: start dockerd"
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Print the mirror of Debian's main archive that apt is set up with.
debian_mirror() {
    apt-get indextargets --format '$(LABEL) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "main" { print $3; exit }'
}

# make_root SUITE MIRROR: sets ROOT to a fresh root file system that goes away when the script ends.
make_root() {
    [ -n "$2" ] || die "apt knows no Debian mirror (run apt-get update), and none was given as second argument"
    ROOT=$(mktemp -d /var/tmp/comitia-image.XXXXXX)
    trap remove_root EXIT
    say "debootstrap $1 into $ROOT"
    debootstrap --variant=minbase --include=ca-certificates --force-check-gpg "$1" "$ROOT" "$2" >"$ROOT.log" ||
        { tail -n 20 "$ROOT.log" >&2; die "debootstrap failed"; }
    cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d" # no service starts inside the chroot
    chmod 755 "$ROOT/usr/sbin/policy-rc.d"
}

remove_root() {
    mount | awk -v root="$ROOT/" 'index($3, root) == 1 { print $3 }' | sort -r | xargs -r -n 1 umount
    rm -rf --one-file-system "$ROOT" "$ROOT.log"
}

# install_packages NAME…: into ROOT, without documentation and package lists.
install_packages() {
    say "install $*"
    chroot "$ROOT" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 sh -eu -c '
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "$@"
        apt-get clean
        rm -rf /var/lib/apt/lists/* /usr/share/man/* /usr/share/locale/* /usr/sbin/policy-rc.d
    ' sh "$@" >>"$ROOT.log" 2>&1 || { tail -n 20 "$ROOT.log" >&2; die "installing $* failed"; }
}

# import_root IMAGE CHANGE…: every CHANGE is a Dockerfile instruction.
import_root() {
    local image=$1 changes=()
    shift
    for change in "$@"; do changes+=(--change "$change"); done
    tar --create --one-file-system --numeric-owner --directory "$ROOT" \
        --exclude './proc/*' --exclude './sys/*' --exclude './dev/*' --exclude './tmp/*' . |
        docker import "${changes[@]}" - "$image" >/dev/null
    say "made $image"
}
