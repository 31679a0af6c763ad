//! The commands, one file each.

pub mod advise;
pub mod attributes;
pub mod auth;
pub mod check;
pub mod check_flush;
pub mod clone;
pub mod configure;
pub mod discover;
pub mod doctor;
pub mod explain;
pub mod license;
pub mod local;
pub mod make;
pub mod nbd;
pub mod remove;
pub mod report;
pub mod services;
pub mod stat;
pub mod top;
pub mod trace;
