//! What a daemon tells Prometheus: the figures, their text, and where it is given out.
//!
//! A daemon fills a [`Figures`] whenever somebody asks; nothing is kept here between two questions.

mod figures;
mod histogram;
mod options;
mod server;

pub use figures::{Figures, Labels};
pub use histogram::Histogram;
pub use options::{MetricsError, Options};
pub use server::{Door, Source, asking};
