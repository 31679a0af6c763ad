//! The administrator's command: pstorage.
