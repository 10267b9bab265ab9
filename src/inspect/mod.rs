//! Facts about a guest, each with the file it came from.
