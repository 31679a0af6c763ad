//! Whole-system tests: the deterministic simulator, and real processes with a real mount.

pub mod debian;
pub mod guide;
pub mod lossy_disk;
pub mod names;
pub mod processes;
pub mod real;
pub mod registers;
pub mod simulator;
