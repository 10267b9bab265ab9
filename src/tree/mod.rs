//! The namespace a user sees.
