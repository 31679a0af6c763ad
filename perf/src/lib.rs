//! Measuring: `pcs-bench` (the administrator's tool) and the programs behind every published figure.
//!
//! [`measure`] times operations; [`drive`], [`cluster`] and [`net`] put load on disks, clusters and networks, all
//! through the product's own runtime; [`report`], [`text`], [`html`] and [`svg`] show what came out.

pub mod cluster;
pub mod copy;
pub mod cpu;
pub mod device;
pub mod disk;
pub mod drive;
pub mod engine;
pub mod fio;
pub mod html;
pub mod journal;
pub mod layers;
pub mod measure;
pub mod names;
pub mod net;
pub mod path;
pub mod progress;
pub mod report;
pub mod scratch;
pub mod svg;
pub mod text;
pub mod turns;
pub mod worker;
