//! What the benchmarks share: see `pcs-bench` (the administrator's tool) and the programs of decision 001.

pub mod load;
pub mod path;
