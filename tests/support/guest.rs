//! A small whole guest: GPT, EFI system partition, ext4 root with an fstab, a /srv of its own, as
//! a qcow2 with an internal snapshot. Made without root and without mounting anything.

use std::path::{Path, PathBuf};

use super::shell;

/// UUID of the root filesystem.
pub const ROOT_UUID: &str = "11111111-2222-4333-8444-555555555555";

/// Makes `guest.qcow2` in `dir`. Its internal snapshot is called `before`.
pub fn make(dir: &Path) -> PathBuf {
    shell(
        dir,
        &format!(
            r#"
mkdir -p root/etc/network root/usr/bin root/usr/lib root/boot/efi root/srv root/home/user root/var/log
ln -s usr/bin root/bin; ln -s usr/lib root/lib
cat > root/etc/os-release <<'X'
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
X
echo 12.5 > root/etc/debian_version; echo lens > root/etc/hostname; echo new! > root/etc/motd
printf '127.0.0.1 localhost\n' > root/etc/hosts
cat > root/etc/fstab <<'X'
UUID={ROOT_UUID} / ext4 defaults 0 1
this line is nothing
UUID=ABCD-1234 /boot/efi vfat umask=0077 0 1
LABEL=srv /srv ext4 defaults 0 2
tmpfs /tmp tmpfs defaults 0 0
X
printf 'auto eth0\niface eth0 inet static\n  address 192.0.2.10/24\n  gateway 192.0.2.1\n' > root/etc/network/interfaces
ln -s /etc/hostname root/home/user/absolute; ln -s ../../etc/hostname root/home/user/relative
seq 1 20000 > root/home/user/numbers; ln root/home/user/numbers root/home/user/hard
truncate -s 3M root/home/user/sparse; printf end | dd of=root/home/user/sparse bs=1 seek=2000000 conv=notrunc 2>/dev/null
chmod 4755 root/home/user/hard
mkdir srv; echo data > srv/data

truncate -s 40M disk
sgdisk -n 1:2048:+4M -t 1:ef00 -c 1:EFI -n 2:0:+24M -t 2:8300 -c 2:root -n 3:0:+8M -c 3:srv disk >/dev/null
mkfs.fat -F 12 -i ABCD1234 -n ESP --offset 2048 disk 4096 >/dev/null 2>&1
mke2fs -q -F -t ext4 -b 1024 -U {ROOT_UUID} -L root -d root -E offset=$((10240*512)) disk 24M
mke2fs -q -F -t ext4 -b 1024 -L srv -d srv -E offset=$((59392*512)) disk 8M
qemu-img convert -f raw -O qcow2 disk guest.qcow2
qemu-img snapshot -c before guest.qcow2
"#
        ),
    );
    dir.join("guest.qcow2")
}
