//! pcs-bench and the benchmarks behind every published figure.
