//! The open files of one running node: its handles, and the checks the kernel would make.

use super::disk::{DiskOp, VirtualDisk, check_direct};
use super::faults::einval;
use crate::{Buf, BufMut, Durability, FileHandle, OpenHow};
use std::io;

/// A disk operation as the node asked for it: given to the disk, or refused at once by the checks.
pub(super) enum Asked {
    Ticket { ticket: u64, extra: std::time::Duration, bytes: u64 },
    Refused(io::Error),
}

#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// By handle: file number on the disk, how it was opened, path.
    files: Vec<(usize, OpenHow, String)>,
}

impl OpenFiles {
    pub fn open(&mut self, disk: &mut VirtualDisk, path: &str, how: OpenHow) -> io::Result<FileHandle> {
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(einval(format!("{path}: paths are relative to the node's directory")));
        }
        let file = disk.open(path, how)?;
        self.files.push((file, how, path.to_string()));
        Ok(FileHandle(self.files.len() as u32 - 1))
    }

    fn get(&self, file: FileHandle) -> &(usize, OpenHow, String) {
        self.files.get(file.0 as usize).expect("a handle given by open")
    }

    pub fn len(&self, disk: &VirtualDisk, file: FileHandle) -> u64 {
        disk.file_len(self.get(file).0)
    }

    pub fn read(&self, disk: &mut VirtualDisk, file: FileHandle, offset: u64, len: usize) -> Asked {
        let (file, how, path) = self.get(file);
        match check_direct(*how, offset, len, None, path) {
            Ok(()) => submit(disk, DiskOp::Read { file: *file, offset, len }, len as u64),
            Err(e) => Asked::Refused(e),
        }
    }

    pub fn write(
        &self,
        disk: &mut VirtualDisk,
        file: FileHandle,
        offset: u64,
        parts: Vec<Buf>,
        durability: Durability,
    ) -> Asked {
        let (file, how, path) = self.get(file);
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if how.read_only {
            return Asked::Refused(io::Error::from_raw_os_error(libc::EBADF));
        }
        match check_direct(*how, offset, len, Some(&parts), path) {
            Ok(()) => submit(disk, DiskOp::Write { file: *file, offset, parts, durability }, len as u64),
            Err(e) => Asked::Refused(e),
        }
    }

    pub fn sync(&self, disk: &mut VirtualDisk, file: FileHandle) -> Asked {
        submit(disk, DiskOp::Sync { file: self.get(file).0 }, 0)
    }

    pub fn punch(&self, disk: &mut VirtualDisk, file: FileHandle, offset: u64, len: u64) -> Asked {
        submit(disk, DiskOp::Punch { file: self.get(file).0, offset, len }, 0)
    }

    pub fn allocate(&self, disk: &mut VirtualDisk, file: FileHandle, len: u64) -> Asked {
        submit(disk, DiskOp::Allocate { file: self.get(file).0, len }, 0)
    }
}

pub(super) fn submit(disk: &mut VirtualDisk, op: DiskOp, bytes: u64) -> Asked {
    let (ticket, extra) = disk.submit(op);
    Asked::Ticket { ticket, extra, bytes }
}

/// A buffer as the pool of a real shard gives it: aligned and zeroed.
pub(super) fn pool_buffer(len: usize) -> BufMut {
    BufMut::zeroed(len)
}
