//! Contents of the synthetic files.
