#!/bin/bash
# What runs inside a host, as its process 1. keeper.py starts it in new namespaces with everything it needs in FLEET_* variables.
#
#   init.sh build   makes the host's root (overlay on a tmpfs), its data filesystem, and goes over to them
#   init.sh main    the host's init: starts sshd and the engine, then waits for words on /run/fleet/control
#
# Nothing is undone here: all mounts, and the loop device, belong to this mount namespace and vanish with process 1.
set -Eeu
umask 022
trap 'echo "init.sh failed at: $BASH_COMMAND" >&2' ERR

build() {
    local work=$FLEET_DIR/$FLEET_NAME root

    mount -t tmpfs -o "size=$FLEET_ROOT_SIZE,mode=755" fleet "$work"
    mkdir "$work/upper" "$work/work" "$work/root"
    root=$work/root

    # What the lower root has of its own there (homes, keys, the engine's configuration) must not be seen: a character device 0:0 in
    # the upper folder is overlayfs's mark for "not there", and a folder made over it afterwards starts empty.
    local hidden=(.dockerenv root home tmp var/tmp var/lib/docker var/lib/containerd etc/docker etc/containerd etc/ssh etc/sudoers.d etc/environment
        etc/hosts etc/hostname etc/machine-id run)
    local name
    for name in "${hidden[@]}"; do
        mkdir -p "$work/upper/$(dirname "$name")"
        mknod "$work/upper/$name" c 0 0
    done
    # Folders made for that hide nothing of what is below them, but they do bring their own mode and owner along.
    for name in var var/lib etc; do chmod --reference="$FLEET_LOWER/$name" "$work/upper/$name"; done
    mount -t overlay -o "lowerdir=$FLEET_LOWER,upperdir=$work/upper,workdir=$work/work" overlay "$root"
    mkdir -p "$root"/{home,etc/docker,etc/ssh,etc/sudoers.d,run,proc,sys,dev,var/lib,.old}
    mkdir -m 700 "$root/root"
    mkdir -m 1777 "$root/tmp" "$root/var/tmp"

    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount_sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    mount -t tmpfs -o size=256M,mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o size=256M,mode=755 tmpfs "$root/run"
    [ "$FLEET_TMP_ON_DISK" = 1 ] || mount -t tmpfs -o size=256M,mode=1777 tmpfs "$root/tmp"
    mount_disk "$root$FLEET_DATA_ROOT" "$FLEET_FILESYSTEM" "$FLEET_DATA_SIZE" "$FLEET_DIR/$FLEET_NAME.img"
    local where what size number=0
    while IFS=' ' read -r where what size; do
        [ -n "$where" ] || continue
        number=$((number + 1))
        mount_disk "$root$where" "$what" "$size" "$FLEET_DIR/$FLEET_NAME.$number.img"
    done <<<"$FLEET_DISKS"
    while IFS=' ' read -r where what; do
        [ -n "$where" ] || continue
        mkdir -p "$root$what" "$(dirname "$root$where")"
        ln -s "$what" "$root$where"
    done <<<"$FLEET_LINKS"

    mkdir -m 700 "$root/run/fleet"
    mkdir -p "$root/run/sshd" "$root/run/lock"
    cp "$FLEET_INIT" "$root/run/fleet/init.sh"
    cp -r "$work.etc/." "$root/etc/"

    cd "$root"
    pivot_root . .old
    exec /bin/bash /run/fleet/init.sh main
}

# A sysfs of this network namespace, and the control groups as seen from this host's own group, which keeper.py made.
mount_sys() {
    mount -t sysfs -o nosuid,nodev,noexec sysfs "$1"
    local where type options tmpfs=
    while IFS=' ' read -r where type options; do
        [ -n "$where" ] || continue
        if [ "$where" != /sys/fs/cgroup ] && [ -z "$tmpfs" ]; then
            mount -t tmpfs -o size=1M,mode=755 tmpfs "$1/fs/cgroup"
            tmpfs=1
        fi
        where=$1${where#/sys}
        [ -d "$where" ] || mkdir -p "$where"
        mount -t "$type" ${options:+-o "$options"} "$type" "$where"
    done <<<"$FLEET_CGROUPS"
}

# Make a filesystem and mount it: folder, type, bytes, and the file that it is in.
mount_disk() {
    local image=$4
    mkdir -p "$1"
    case $2 in
    tmpfs)
        mount -t tmpfs -o "size=$3,mode=710" tmpfs "$1"
        return
        ;;
    esac
    truncate -s "$3" "$image"
    case $2 in
    # noinit_itable: no kernel thread that goes on writing to the filesystem for minutes, beside what a test measures
    ext4) mkfs.ext4 -q -F -m 0 -E nodiscard "$image" && mount -t ext4 -o loop,noinit_itable "$image" "$1" && rm -rf "$1/lost+found" ;;
    xfs) mkfs.xfs -q -f -K -m reflink=1 "$image" && mount -t xfs -o loop "$image" "$1" ;;
    btrfs) mkfs.btrfs -q -f -K "$image" && mount -t btrfs -o loop "$image" "$1" ;;
    esac
    # The loop device is freed with its mount (mount sets autoclear), the image with the loop device: nothing can stay behind.
    rm "$image"
    chmod 710 "$1"
}

start_engine() {
    rm -f /run/docker.pid
    setsid /bin/bash -c 'exec dockerd --config-file /etc/docker/daemon.json' 3<&- >>/run/fleet/engine.log 2>&1 </dev/null &
    echo $! >/run/fleet/engine.pid
}

main() {
    umount -l /.old
    rmdir /.old
    cd /
    echo "$FLEET_NAME" >/proc/sys/kernel/hostname
    # sshd and su refuse an account whose password is locked with "!"; "*" is no password either, but not locked.
    sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
    ip link set lo up
    if [ "$FLEET_SSH" = 1 ]; then
        id ops >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --password '*' ops
        chmod 440 /etc/sudoers.d/*
        "$(command -v sshd || echo /usr/sbin/sshd)" -D -e >/run/fleet/sshd.log 2>&1 </dev/null &
    fi
    [ -p /run/fleet/control ] || mkfifo -m 600 /run/fleet/control
    exec 3<>/run/fleet/control
    [ "$FLEET_ENGINE" = 1 ] && start_engine
    echo "$FLEET_TOKEN" >/run/fleet/ready
    # Bash takes every process that lost its parent off the process table while it waits here, as an init must.
    local word
    while read -r word <&3; do
        case $word in
        start) start_engine ;;
        esac
    done
}

"$1"
