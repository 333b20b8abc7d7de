#!/bin/bash
# Makes what an emulated machine boots from: root.sh KIND FOLDER MIRROR [FOLDER-OF-PLAIN]
#
#   plain   Debian 12 with its engine 20.10, the last that has devicemapper
#   zfs     plain, and zfs's modules, which are built here for the machine's kernel: the larger part of the time
#
# FOLDER gets root.img (ext4), vmlinuz, busybox and modules/ (those that the root is reached with, in the order of loading).
# images.py runs it in a mount namespace of its own: what is mounted here ends with it.
set -Eeuo pipefail
trap 'echo "root.sh failed at: $BASH_COMMAND" >&2' ERR
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
# No initrd of Debian's: see initrd.py.
export INITRD=No
kind=$1 folder=$2 mirror=$3 plain=${4:-}
packages=linux-image-amd64,docker.io,busybox-static,kmod,iproute2,python3,dmsetup,thin-provisioning-tools,openssh-server

mount_image() {
    mkdir -p "$root"
    mount -t ext4 -o loop,noatime "$folder/root.img" "$root"
}

# Without what a machine never reads: apt's lists and archives, documentation, translations.
slim() {
    local name
    for name in var/lib/apt/lists var/cache/apt usr/share/doc usr/share/man usr/share/locale usr/share/info; do
        rm -rf "${root:?}/$name"
        mkdir -p "$root/$name"
    done
}

make_plain() {
    truncate -s 6G "$folder/root.img"
    mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1 "$folder/root.img"
    mount_image
    debootstrap --variant=minbase --components=main,contrib --include="$packages" bookworm "$root" "$mirror"
    slim

    local kernel module number=100
    kernel=$(ls "$root/lib/modules")
    cp "$root/boot/vmlinuz-$kernel" "$folder/vmlinuz"
    cp "$root/bin/busybox" "$folder/busybox"
    mkdir "$folder/modules"
    # ext4 asks for crc32c by the name of the algorithm, which no list of dependencies has.
    for module in virtio_pci virtio_blk crc32c_generic ext4 virtio_net; do
        chroot "$root" modprobe -S "$kernel" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        cp "$root/$module" "$folder/modules/$((number++))-${module##*/}"
    done
}

make_zfs() {
    cp --sparse=always "$plain/root.img" "$folder/root.img"
    cp -r "$plain/vmlinuz" "$plain/busybox" "$plain/modules" "$folder/"
    mount_image
    chroot "$root" apt-get -q=2 update
    # The headers have to be that very kernel's, and a mirror does not keep those of older ones.
    if ! chroot "$root" apt-cache show "linux-headers-$(ls "$root/lib/modules")" >/dev/null; then
        umount "$root"
        rm -rf "${folder:?}"/*
        make_plain
        chroot "$root" apt-get -q=2 update
    fi
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    # No service is started in here.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    local kernel
    kernel=$(ls "$root/lib/modules")
    chroot "$root" apt-get -q=2 -y --no-install-recommends install "linux-headers-$kernel" dkms build-essential zfs-dkms zfsutils-linux
    chroot "$root" dkms status -k "$kernel" zfs | grep installed
    # What was needed to build them is two thirds of it all.
    cp -r "$root/lib/modules/$kernel/updates/dkms" "$root/built"
    chroot "$root" apt-get -q=2 -y purge --auto-remove "linux-headers-$kernel" dkms build-essential zfs-dkms
    mkdir -p "$root/lib/modules/$kernel/updates"
    rm -rf "$root/lib/modules/$kernel/updates/dkms"
    mv "$root/built" "$root/lib/modules/$kernel/updates/dkms"
    chroot "$root" depmod "$kernel"
    umount -l "$root/dev" "$root/proc"
    slim
}

root=$folder/root
"make_$kind"
# What was written and removed again is no part of the file.
fstrim "$root"
umount "$root"
rmdir "$root"
