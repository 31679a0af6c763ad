//! What answers of the MDS of a moment ago have told beside what was asked: the kernel asks for a directory's attributes again after
//! every name that a program makes or removes there, and for the capabilities of every file that it is about to write to. A program that
//! makes many files needs two questions less for each.
//!
//! Invariants:
//! - what is kept holds no longer than [`LIFE`]: so much later are changes of other hosts seen;
//! - any other change by this client ends it, so that a program sees what it has done.

use crate::error::{ClientError, Result};
use shards::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::mds_api::{FileAttr, MdsReply, MdsRequest};
use wire::{FileId, Status};

/// Together with the second that the kernel keeps attributes, no more than that second counts ([`crate::fuse`] takes it off).
pub const LIFE: Duration = Duration::from_millis(50);
/// What the kernel wants to know of a file before its first write.
const ASKED_BEFORE_WRITING: &str = "security.capability";
const MOST: usize = 1024;

#[derive(Default)]
pub struct Recent {
    directories: BTreeMap<FileId, (FileAttr, Timestamp)>,
    /// Files that were not there before: they have no extended attributes.
    new: BTreeMap<FileId, Timestamp>,
}

impl Recent {
    /// The answer to a request that needs no question.
    pub fn answer(&self, request: &MdsRequest, now: Timestamp) -> Option<Result<MdsReply>> {
        match request {
            MdsRequest::GetAttr { file } => {
                self.directory(*file, now).map(|attr| Ok(MdsReply::Attr(attr.clone())))
            }
            MdsRequest::GetXattr { file, name }
                if name == ASKED_BEFORE_WRITING && self.is_new(*file, now) =>
            {
                Some(Err(ClientError::refused(Status::NoAttribute, name.as_str())))
            }
            _ => None,
        }
    }

    /// A directory in which this client has just made or removed a name.
    fn directory(&self, file: FileId, now: Timestamp) -> Option<&FileAttr> {
        let (attr, since) = self.directories.get(&file)?;
        (now.since(*since) < LIFE).then_some(attr)
    }

    /// Whether this client has just made the file.
    fn is_new(&self, file: FileId, now: Timestamp) -> bool {
        self.new.get(&file).is_some_and(|since| now.since(*since) < LIFE)
    }

    pub fn learn(&mut self, request: &MdsRequest, answer: &Result<MdsReply>, now: Timestamp) {
        match (request, answer) {
            (_, Ok(MdsReply::Created { attr, directory: Some(directory), .. })) => {
                self.changed(directory, now);
                self.new.insert(attr.file, now);
            }
            (_, Ok(MdsReply::Removed(directory))) => self.changed(directory, now),
            (
                MdsRequest::Create { .. }
                | MdsRequest::Unlink { .. }
                | MdsRequest::Rename { .. }
                | MdsRequest::Clone { .. }
                | MdsRequest::SetAttr { .. }
                | MdsRequest::SetXattr { .. }
                | MdsRequest::RemoveXattr { .. }
                | MdsRequest::SetPolicy { .. },
                _,
            ) => self.forget(),
            _ => {}
        }
        if self.directories.len() + self.new.len() > MOST {
            self.directories.retain(|_, (_, since)| now.since(*since) < LIFE);
            self.new.retain(|_, since| now.since(*since) < LIFE);
        }
    }

    fn changed(&mut self, directory: &FileAttr, now: Timestamp) {
        // An answer that comes again after a change of the master may be older than what is known.
        let is_older = |(known, _): &(FileAttr, Timestamp)| known.ctime_ns > directory.ctime_ns;
        if self.directories.get(&directory.file).is_some_and(is_older) {
            self.directories.remove(&directory.file);
        } else {
            self.directories.insert(directory.file, (directory.clone(), now));
        }
    }

    fn forget(&mut self) {
        self.directories.clear();
        self.new.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ClientId;
    use wire::mds_api::FileKind;

    fn attr(file: u64, ctime_ns: i64) -> FileAttr {
        FileAttr { ctime_ns, ..FileAttr::unknown(FileId(file), FileKind::Directory) }
    }

    fn unlink() -> MdsRequest {
        MdsRequest::Unlink { client: ClientId(0), parent: FileId(1), name: "n".into(), directory: false }
    }

    #[test]
    fn what_was_told_is_known_for_a_moment_and_until_something_else_changes() {
        let mut recent = Recent::default();
        let at = |ms: u64| Timestamp(0).after(Duration::from_millis(ms));
        let created = MdsReply::Created {
            attr: attr(2, 5),
            lease: None,
            first: None,
            directory: Some(Box::new(attr(1, 5))),
        };
        recent.learn(&unlink(), &Ok(created), at(0));
        assert!(recent.is_new(FileId(2), at(49)) && recent.directory(FileId(1), at(49)).is_some());
        assert!(!recent.is_new(FileId(2), at(50)) && recent.directory(FileId(1), at(50)).is_none());
        assert!(!recent.is_new(FileId(1), at(1)) && recent.directory(FileId(2), at(1)).is_none());

        recent.learn(&unlink(), &Ok(MdsReply::Removed(Box::new(attr(1, 6)))), at(60));
        assert_eq!(recent.directory(FileId(1), at(61)).map(|a| a.ctime_ns), Some(6));
        recent.learn(&unlink(), &Ok(MdsReply::Removed(Box::new(attr(1, 5)))), at(62));
        assert!(recent.directory(FileId(1), at(62)).is_none(), "not what was before");

        recent.learn(&unlink(), &Ok(MdsReply::Removed(Box::new(attr(1, 7)))), at(70));
        recent.learn(&MdsRequest::GetAttr { file: FileId(1) }, &Ok(MdsReply::Attr(attr(1, 7))), at(71));
        assert!(recent.directory(FileId(1), at(72)).is_some(), "a question changes nothing");
        recent.learn(&unlink(), &Err(crate::ClientError::Invalid("")), at(73));
        assert!(recent.directory(FileId(1), at(73)).is_none(), "who knows what happened");
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut recent = Recent::default();
        for n in 0..10_000 {
            let now = Timestamp(0).after(Duration::from_millis(n));
            recent.learn(&unlink(), &Ok(MdsReply::Removed(Box::new(attr(n, 0)))), now);
        }
        assert!(recent.directories.len() <= MOST);
    }
}
