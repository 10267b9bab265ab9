//! The guest's fstab: which filesystem goes where.
