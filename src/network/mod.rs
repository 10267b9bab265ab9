//! The guest's network configuration in one common model. Pure functions, no I/O.
