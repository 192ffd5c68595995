//! What the virtual machine is made of, as data. Its digest names the image: whoever changes a word here gets a new one.

use sha2::{Digest, Sha256};

/// The release of Debian.
pub const SUITE: &str = "bookworm";

/// What stands on top of debootstrap's `minbase`: an init with user sessions, a kernel with BTF and BPF LSM, and what the tests execute.
pub const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "dbus",
    "dbus-user-session",
    "udev",
    "iproute2",
    "procps",
    "kmod",
    "initramfs-tools",
    "linux-image-cloud-amd64",
    "python3",
];

/// The ordinary user of the tests, with a user manager that runs from the start.
pub const USER: &str = "apex";

/// Where the second disk is mounted.
pub const PAYLOAD: &str = "/opt/apex";
/// The disk for swap.
pub const SWAP_DEVICE: &str = "/dev/vdc";

/// What the kernel is told. The order of the security modules matters to none of them; `bpf` is what Debian leaves off. An emulated processor can miss that the kernel
/// patched its own code back and take the same breakpoint for ever: two minutes in one place end the machine, and do not wait for its limit.
pub const KERNEL_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet loglevel=5 panic=-1 watchdog_thresh=60 softlockup_panic=1 lsm=landlock,lockdown,yama,bpf";

/// Size of the file system; the file is sparse, and what is written while the machine runs is thrown away.
pub const IMAGE_SIZE: &str = "2G";

/// A machine that lives for minutes needs no upkeep, and nobody logs in.
pub const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-tmpfiles-clean.timer",
];

/// Files that are written into the tree, by path.
pub const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "apex-vm\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 apex-vm\n::1 localhost\n"),
    ("etc/fstab", "/dev/vda / ext4 noinit_itable 0 0\n"),
    ("etc/initramfs-tools/conf.d/apex", "MODULES=list\nCOMPRESS=gzip\nBUSYBOX=n\nFSTYPE=ext4\n"),
    ("etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\n"),
    // What `loginctl enable-linger` leaves behind.
    ("var/lib/systemd/linger/apex", ""),
    ("etc/systemd/system/apex-tests.service", SERVICE),
];

/// Console on the first serial line, the tests' output on the second.
const SERVICE: &str = "\
[Unit]
Description=The tests of Apex
Wants=user@1000.service dbus.service
After=user@1000.service dbus.service systemd-logind.service systemd-user-sessions.service

[Service]
Type=oneshot
TasksMax=infinity
ExecStartPre=/bin/mkdir -p /opt/apex
ExecStartPre=/bin/mount -o noinit_itable /dev/vdb /opt/apex
ExecStart=/opt/apex/bin/xtask vm-guest
StandardInput=null
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
ExecStopPost=/bin/systemctl poweroff --force --no-block

[Install]
WantedBy=multi-user.target
";

/// Commands that run in the tree once the files are there.
pub const COMMANDS: &[&[&str]] = &[
    &["useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", USER],
    &["systemctl", "enable", "apex-tests.service"],
    &["update-initramfs", "-u"],
    &["apt-get", "clean"],
];

/// Digest of everything above.
pub fn digest() -> String {
    let mut hash = Sha256::new();
    let mut word = |word: &str| {
        hash.update(word.as_bytes());
        hash.update([0]);
    };
    word(SUITE);
    word(IMAGE_SIZE);
    PACKAGES.iter().chain(MASKED).for_each(|name| word(name));
    FILES.iter().for_each(|(path, text)| {
        word(path);
        word(text);
    });
    COMMANDS.iter().copied().flatten().for_each(|argument| word(argument));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
