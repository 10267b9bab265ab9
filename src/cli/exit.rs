//! Exit statuses, the same for every verb.

/// What the exit status of the program means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done. Also when the reader of the output went away.
    Done = 0,
    /// It was not done; stderr says why.
    Failed = 1,
    /// The command line is wrong (clap's status for it).
    Usage = 2,
    /// A part was done; stderr names what was not.
    Partial = 3,
    /// It was done, and problems were found, as `info --check` or a checker reports them.
    Problems = 4,
}
