#!/bin/busybox sh
# Process 1 until the machine's disk is there: goes over to it with what this one run adds (keys, configuration, init.sh).
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do
    /bin/busybox insmod "$module" || /bin/busybox echo "initrd: $module cannot be loaded"
done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || {
    /bin/busybox echo "initrd: no root"
    /bin/busybox poweroff -f
}
/bin/busybox cp -a /add/. /root/
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /bin/bash /init.sh
