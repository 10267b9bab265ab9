//! The kernel's side: requests forwarded to the tree, and nothing else.
