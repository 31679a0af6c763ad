//! The administrator's guide as a script: its commands, and what they are said to print.

mod compare;
mod text;

pub use compare::compare;
pub use text::{Block, Kind, Options, Step, chapters, read};
