//! QEMU-compatible byte-range locks on host files.
