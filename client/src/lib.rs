//! The file system client: library, chunk map cache, FUSE mount.
