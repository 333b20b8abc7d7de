#!/bin/bash
# Process 1 of an emulated machine: storage, SSH, an engine. It reads FLEET_DRIVER and FLEET_NAME from /etc/fleet.env.
#
# Debian's own init would take most of the time that starting takes under emulation, and nothing here needs it.
set -Eeu
umask 022
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
trap 'echo "init.sh failed at: $BASH_COMMAND"; sync; busybox poweroff -f' ERR
. /etc/fleet.env

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666,mode=620,gid=5 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/fleet /run/lock /run/sshd /var/lib/docker
echo "$FLEET_NAME" >/proc/sys/kernel/hostname

# SSH gets ready while the storage does.
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
# sshd refuses an account whose password is locked with "!"; "*" is no password either, but not locked.
sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
/usr/sbin/sshd -D -e >/run/fleet/sshd.log 2>&1 </dev/null &

modprobe loop
case $FLEET_DRIVER in
devicemapper)
    # No udev here: dmsetup and the engine make the nodes below /dev/mapper themselves.
    modprobe dm-thin-pool
    mount -t ext4 /dev/vdb /var/lib/docker
    ;;
zfs)
    modprobe zfs
    # On a file, since zpool waits for udev when it gets a whole disk. Somebody else's data lies in the same pool, as it may on a real host.
    mkdir -p /srv/disk
    mount -t ext4 /dev/vdb /srv/disk
    truncate -s 4G /srv/disk/tank
    zpool create -m none tank /srv/disk/tank
    zfs create -o mountpoint=/srv/other tank/other
    head -c 5000000 /dev/urandom >/srv/other/data
    zfs create -o mountpoint=/var/lib/docker tank/docker
    ;;
esac

dockerd >/run/fleet/engine.log 2>&1 </dev/null &
echo $! >/run/fleet/engine.pid
# Bash takes every process that lost its parent off the process table while it waits, as an init must.
while :; do
    sleep 3600 &
    wait $! || :
done
