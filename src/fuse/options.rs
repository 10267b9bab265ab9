//! What a mount is allowed to do.

use std::thread;

/// Name of the mount's source in `/proc/mounts`. There is no subtype, so the type is plain `fuse`,
/// which is what test suites and backup tools know.
pub const SOURCE: &str = "guestlens";

/// Options of a mount. Always read-only, without device nodes and set-uid programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountOptions {
    /// Let other users in. The kernel then checks the guest's permission bits; without it only the
    /// mount's owner gets in, and nothing is checked.
    pub allow_other: bool,
    /// Do not run programs from the mount.
    pub no_exec: bool,
}

impl MountOptions {
    /// Worker threads: requests block on image I/O, so more than there are cores.
    pub fn threads() -> usize {
        let cores = thread::available_parallelism().map_or(2, std::num::NonZero::get);
        cores.saturating_mul(2).clamp(4, 16)
    }
}
