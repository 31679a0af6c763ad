//! What answers of the MDS of a moment ago have told beside what was asked. The kernel looks for the name of a file that a program is about
//! to make, asks for the attributes of the directory again after it, and for the file's capabilities before its first write: a program that
//! makes many files needs three questions less for each.
//!
//! Invariants:
//! - what is kept holds no longer than [`LIFE`] after the MDS has said that it is so: so much later are changes of other hosts seen;
//! - any other change by this client ends it, so that a program sees what it has done;
//! - all names of a directory are known from when this client has made it, as long as each change of its names followed the one before
//!   (`ctime` grows with each). After [`LIFE`] its `ctime` is asked for, which tells whether they are still all.

use crate::error::{ClientError, Result};
use shards::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::mds_api::{ChangedDirectory, FileAttr, FileKind, MdsReply, MdsRequest};
use wire::{FileId, Status};

/// Together with the second that the kernel keeps attributes, no more than that second counts ([`crate::fuse`] takes it off).
pub const LIFE: Duration = Duration::from_millis(50);
/// What the kernel wants to know of a file before its first write.
const ASKED_BEFORE_WRITING: &str = "security.capability";
const MOST: usize = 1024;
/// Of all directories together: a few megabytes.
const MOST_NAMES: usize = 1 << 16;

#[derive(Default)]
pub struct Recent {
    directories: BTreeMap<FileId, Directory>,
    /// Of all directories.
    names: usize,
    /// Files that were not there before: they have no extended attributes.
    new: BTreeMap<FileId, Timestamp>,
}

/// A directory in which this client has made, removed or changed a name.
struct Directory {
    attr: FileAttr,
    /// When the MDS was asked that said so.
    told: Timestamp,
    /// When this client had last changed something else: what it asked before does not count.
    doubted: Timestamp,
    /// All of them.
    names: Option<BTreeSet<Box<str>>>,
}

impl Directory {
    fn new(attr: FileAttr, told: Timestamp, names: Option<BTreeSet<Box<str>>>) -> Directory {
        Directory { attr, told, doubted: Timestamp(0), names }
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        self.told >= self.doubted && now.since(self.told) < LIFE
    }
}

/// What is known of the answer to a request.
pub enum Known {
    Answer(Result<MdsReply>),
    /// The answer follows from whether this directory is as it was.
    IfUnchanged(FileId),
}

impl Recent {
    pub fn answer(&self, request: &MdsRequest, now: Timestamp) -> Option<Known> {
        match request {
            MdsRequest::GetAttr { file } => {
                let directory = self.directories.get(file).filter(|d| d.is_fresh(now))?;
                Some(Known::Answer(Ok(MdsReply::Attr(directory.attr.clone()))))
            }
            MdsRequest::Lookup { parent, name } => {
                let directory = self.directories.get(parent)?;
                let is_absent = !directory.names.as_ref()?.contains(name.as_str());
                let absent = || ClientError::refused(Status::NotFound, name.as_str());
                is_absent.then(|| match directory.is_fresh(now) {
                    true => Known::Answer(Err(absent())),
                    false => Known::IfUnchanged(*parent),
                })
            }
            MdsRequest::GetXattr { file, name }
                if name == ASKED_BEFORE_WRITING && self.is_new(*file, now) =>
            {
                Some(Known::Answer(Err(ClientError::refused(Status::NoAttribute, name.as_str()))))
            }
            _ => None,
        }
    }

    /// Whether this client has just made the file.
    fn is_new(&self, file: FileId, now: Timestamp) -> bool {
        self.new.get(&file).is_some_and(|since| now.since(*since) < LIFE)
    }

    /// The answer to a request that was sent at `asked` has come.
    pub fn learn(
        &mut self,
        request: &MdsRequest,
        answer: &Result<MdsReply>,
        asked: Timestamp,
        now: Timestamp,
    ) {
        match (request, answer) {
            (
                MdsRequest::Create { name, .. },
                Ok(MdsReply::Created { attr, directory: Some(directory), .. }),
            ) => {
                self.changed(directory, &[(name, true)], asked);
                match attr.kind {
                    FileKind::Directory => self.made(attr, asked),
                    _ => drop(self.new.insert(attr.file, asked)),
                }
            }
            (MdsRequest::Unlink { name, .. }, Ok(MdsReply::Removed(directory))) => {
                self.changed(directory, &[(name, false)], asked);
            }
            (MdsRequest::Rename { from_name, to_name, exchange, .. }, Ok(MdsReply::Renamed { from, to })) => {
                // A directory may have moved, or made room.
                let named = [Some(from), to.as_ref()].map(|d| d.map(|d| d.attr.file));
                let others = self.directories.iter_mut().filter(|(file, _)| !named.contains(&Some(**file)));
                others.for_each(|(_, d)| d.doubted = now);
                let (old, new) = ((from_name.as_str(), *exchange), (to_name.as_str(), true));
                match to {
                    None => self.changed(from, &[old, new], asked),
                    Some(to) => {
                        self.changed(from, &[old], asked);
                        self.changed(to, &[new], asked);
                    }
                }
            }
            (MdsRequest::GetAttr { file }, answer) => self.told(*file, answer, asked),
            (
                MdsRequest::Create { parent: file, .. }
                | MdsRequest::Unlink { parent: file, .. }
                | MdsRequest::SetAttr { file, .. }
                | MdsRequest::SetXattr { file, .. }
                | MdsRequest::RemoveXattr { file, .. },
                _,
            ) => self.doubt(*file, now),
            (MdsRequest::Rename { .. } | MdsRequest::Clone { .. } | MdsRequest::SetPolicy { .. }, _) => {
                self.directories.values_mut().for_each(|d| d.doubted = now);
                self.new.clear();
            }
            _ => {}
        }
        if self.directories.len() + self.new.len() > MOST {
            self.new.retain(|_, since| now.since(*since) < LIFE);
            let old = self.directories.extract_if(.., |_, d| !d.is_fresh(now));
            self.names -= old.filter_map(|(_, d)| d.names).map(|names| names.len()).sum::<usize>();
        }
    }

    /// An empty directory.
    fn made(&mut self, attr: &FileAttr, asked: Timestamp) {
        self.forget(attr.file);
        self.directories.insert(attr.file, Directory::new(attr.clone(), asked, Some(BTreeSet::new())));
    }

    /// The names that the change was about, and whether they are there now.
    fn changed(&mut self, change: &ChangedDirectory, about: &[(&str, bool)], asked: Timestamp) {
        let attr = change.attr.clone();
        match self.directories.get_mut(&attr.file) {
            Some(known) if known.attr.ctime_ns == change.ctime_was_ns => {
                (known.attr, known.told) = (attr, asked);
                let Some(names) = &mut known.names else { return };
                self.names -= names.len();
                for (name, is_there) in about {
                    if *is_there {
                        names.insert((*name).into());
                    } else {
                        names.remove(*name);
                    }
                }
                self.names += names.len();
                if self.names > MOST_NAMES {
                    self.names -= names.len();
                    known.names = None;
                }
            }
            // An answer that comes again after a change of the master may be older than what is known.
            Some(known) if known.attr.ctime_ns > attr.ctime_ns => self.forget(attr.file),
            _ => {
                self.forget(attr.file);
                self.directories.insert(attr.file, Directory::new(attr, asked, None));
            }
        }
    }

    fn told(&mut self, file: FileId, answer: &Result<MdsReply>, asked: Timestamp) {
        match (self.directories.get_mut(&file), answer) {
            (Some(known), Ok(MdsReply::Attr(attr))) if known.attr.ctime_ns == attr.ctime_ns => {
                known.told = known.told.max(asked);
            }
            _ => self.forget(file),
        }
    }

    /// Something about the file may be another now.
    fn doubt(&mut self, file: FileId, now: Timestamp) {
        self.new.remove(&file);
        if let Some(directory) = self.directories.get_mut(&file) {
            directory.doubted = now;
        }
    }

    fn forget(&mut self, directory: FileId) {
        let names = self.directories.remove(&directory).and_then(|d| d.names);
        self.names -= names.map_or(0, |names| names.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ClientId;
    use wire::mds_api::LeaseMode;

    const DIRECTORY: FileId = FileId(1);

    fn at(ms: u64) -> Timestamp {
        Timestamp(0).after(Duration::from_millis(ms))
    }

    fn attr(file: FileId, ctime_ns: i64) -> FileAttr {
        FileAttr { ctime_ns, ..FileAttr::unknown(file, FileKind::Directory) }
    }

    fn to(ctime_ns: i64) -> Box<ChangedDirectory> {
        Box::new(ChangedDirectory { attr: attr(DIRECTORY, ctime_ns), ctime_was_ns: ctime_ns - 1 })
    }

    fn unlink(name: &str) -> MdsRequest {
        MdsRequest::Unlink { client: ClientId(0), parent: DIRECTORY, name: name.into(), directory: false }
    }

    fn create(parent: FileId, name: &str, kind: FileKind) -> MdsRequest {
        MdsRequest::Create {
            client: ClientId(0),
            parent,
            name: name.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            symlink_target: String::new(),
            exclusive: false,
            open: kind == FileKind::File,
        }
    }

    fn created(file: FileId, kind: FileKind, directory: Option<Box<ChangedDirectory>>) -> Result<MdsReply> {
        let attr = FileAttr { ctime_ns: 5, ..FileAttr::unknown(file, kind) };
        Ok(MdsReply::Created { attr, lease: None, first: None, directory })
    }

    impl Recent {
        fn makes(&mut self, name: &str, file: u64, ctime_ns: i64, now: Timestamp) {
            let answer = created(FileId(file), FileKind::File, Some(to(ctime_ns)));
            self.learn(&create(DIRECTORY, name, FileKind::File), &answer, now, now);
        }

        fn removes(&mut self, name: &str, ctime_ns: i64, now: Timestamp) {
            self.learn(&unlink(name), &Ok(MdsReply::Removed(to(ctime_ns))), now, now);
        }

        fn hears(&mut self, ctime_ns: i64, now: Timestamp) {
            let answer = Ok(MdsReply::Attr(attr(DIRECTORY, ctime_ns)));
            self.learn(&MdsRequest::GetAttr { file: DIRECTORY }, &answer, now, now);
        }

        /// The directory's ctime, if that is known.
        fn ctime(&self, now: Timestamp) -> Option<i64> {
            match self.answer(&MdsRequest::GetAttr { file: DIRECTORY }, now)? {
                Known::Answer(Ok(MdsReply::Attr(attr))) => Some(attr.ctime_ns),
                _ => panic!("a directory has attributes"),
            }
        }

        /// How it is known that a name is not there.
        fn lacks(&self, name: &str, now: Timestamp) -> Option<&'static str> {
            match self.answer(&MdsRequest::Lookup { parent: DIRECTORY, name: name.into() }, now)? {
                Known::Answer(Err(e)) if e.status() == Some(Status::NotFound) => Some("for sure"),
                Known::IfUnchanged(DIRECTORY) => Some("if unchanged"),
                _ => panic!("nothing else is known of names"),
            }
        }
    }

    /// One whose directory was made by this client at 0 ms.
    fn with_directory() -> Recent {
        let mut recent = Recent::default();
        let mkdir = create(FileId(7), "d", FileKind::Directory);
        let above = ChangedDirectory { attr: attr(FileId(7), 5), ctime_was_ns: 4 };
        recent.learn(&mkdir, &created(DIRECTORY, FileKind::Directory, Some(Box::new(above))), at(0), at(0));
        recent
    }

    #[test]
    fn what_was_told_is_known_for_a_moment_and_until_something_else_changes() {
        let mut recent = Recent::default();
        recent.makes("a", 2, 5, at(0));
        assert!(recent.is_new(FileId(2), at(49)) && recent.ctime(at(49)) == Some(5));
        assert!(!recent.is_new(FileId(2), at(50)) && recent.ctime(at(50)).is_none());
        assert!(!recent.is_new(DIRECTORY, at(1)));

        recent.removes("a", 6, at(60));
        assert_eq!(recent.ctime(at(61)), Some(6));
        recent.removes("a", 5, at(62));
        assert_eq!(recent.ctime(at(62)), None, "not what was before");

        recent.removes("b", 7, at(70));
        recent.hears(7, at(71));
        assert_eq!(recent.ctime(at(72)), Some(7), "a question changes nothing");
        recent.learn(&unlink("c"), &Err(ClientError::Invalid("")), at(73), at(73));
        assert_eq!(recent.ctime(at(73)), None, "who knows what happened");
    }

    #[test]
    fn all_names_of_a_directory_that_was_made_here_are_known() {
        let mut recent = with_directory();
        assert_eq!(recent.lacks("a", at(0)), Some("for sure"));
        recent.makes("a", 2, 6, at(10));
        assert_eq!((recent.lacks("a", at(10)), recent.lacks("b", at(10))), (None, Some("for sure")));
        recent.makes("b", 3, 7, at(20));
        recent.removes("a", 8, at(30));
        assert_eq!((recent.lacks("a", at(79)), recent.lacks("b", at(79))), (Some("for sure"), None));

        assert_eq!((recent.lacks("a", at(80)), recent.lacks("b", at(80))), (Some("if unchanged"), None));
        recent.hears(8, at(90));
        assert_eq!(recent.lacks("a", at(90)), Some("for sure"));
        let chmod = MdsRequest::SetAttr { client: ClientId(0), file: DIRECTORY, change: Default::default() };
        recent.learn(&chmod, &Ok(MdsReply::Attr(attr(DIRECTORY, 9))), at(91), at(92));
        assert_eq!(recent.lacks("a", at(92)), Some("if unchanged"));
        recent.hears(8, at(91));
        assert_eq!(recent.lacks("a", at(93)), Some("if unchanged"), "it was asked before the change");
    }

    #[test]
    fn a_rename_tells_of_both_directories() {
        let rename = |to_parent, exchange| MdsRequest::Rename {
            client: ClientId(0),
            from_parent: DIRECTORY,
            from_name: "a".into(),
            to_parent,
            to_name: "b".into(),
            no_replace: false,
            exchange,
        };
        let mut recent = with_directory();
        recent.makes("a", 2, 6, at(10));
        let within = Ok(MdsReply::Renamed { from: to(7), to: None });
        recent.learn(&rename(DIRECTORY, false), &within, at(11), at(12));
        assert_eq!((recent.lacks("a", at(12)), recent.lacks("b", at(12))), (Some("for sure"), None));
        assert_eq!((recent.ctime(at(12)), recent.is_new(FileId(2), at(12))), (Some(7), true));

        let other = FileId(3);
        let mkdir = create(DIRECTORY, "d", FileKind::Directory);
        recent.learn(&mkdir, &created(other, FileKind::Directory, Some(to(8))), at(13), at(13));
        recent.makes("a", 4, 9, at(14));
        let moved = |from_ns, ctime_ns| {
            let into = ChangedDirectory { attr: attr(other, ctime_ns), ctime_was_ns: ctime_ns - 1 };
            Ok(MdsReply::Renamed { from: to(from_ns), to: Some(Box::new(into)) })
        };
        let lacks = |recent: &Recent, directory, name: &str| {
            let lookup = MdsRequest::Lookup { parent: directory, name: name.into() };
            recent.answer(&lookup, at(20)).is_some()
        };
        recent.learn(&rename(other, false), &moved(10, 6), at(15), at(16));
        assert!(lacks(&recent, DIRECTORY, "a") && !lacks(&recent, DIRECTORY, "b"));
        assert!(lacks(&recent, other, "a") && !lacks(&recent, other, "b"));
        recent.makes("a", 5, 11, at(17));
        recent.learn(&rename(other, true), &moved(12, 7), at(18), at(18));
        assert!(!lacks(&recent, DIRECTORY, "a") && !lacks(&recent, other, "b"), "both are there");
        recent.learn(&rename(other, false), &moved(13, 9), at(19), at(19));
        assert!(!lacks(&recent, other, "x"), "a change of it was missed");

        let unchanged = Ok(MdsReply::Done);
        recent.learn(&rename(DIRECTORY, false), &unchanged, at(20), at(20));
        assert_eq!(recent.lacks("x", at(20)), Some("if unchanged"));
    }

    #[test]
    fn names_are_forgotten_when_others_may_have_changed_them() {
        let others: [(&str, fn(&mut Recent)); 4] = [
            ("another ctime", |recent| recent.hears(8, at(60))),
            ("it is gone", |recent| {
                let gone = Err(ClientError::refused(Status::NotFound, ""));
                recent.learn(&MdsRequest::GetAttr { file: DIRECTORY }, &gone, at(60), at(60));
            }),
            ("a change between", |recent| recent.makes("b", 3, 8, at(60))),
            ("an older answer", |recent| recent.makes("b", 3, 5, at(60))),
        ];
        for (what, happens) in others {
            let mut recent = with_directory();
            recent.makes("a", 2, 6, at(10));
            assert_eq!(recent.lacks("b", at(11)), Some("for sure"));
            happens(&mut recent);
            assert_eq!((recent.lacks("c", at(61)), recent.names), (None, 0), "{what}");
        }
        // The answer to who opens a file that was there says nothing of the directory.
        let mut recent = with_directory();
        let there = created(FileId(2), FileKind::File, None);
        recent.learn(&create(DIRECTORY, "a", FileKind::File), &there, at(10), at(10));
        assert_eq!(recent.lacks("a", at(10)), Some("if unchanged"));
        let other = MdsRequest::Open {
            client: ClientId(0),
            file: FileId(2),
            mode: LeaseMode::Read,
            reclaim: wire::LeaseId(0),
        };
        recent.hears(5, at(20));
        recent.learn(&other, &Err(ClientError::Invalid("")), at(21), at(21));
        assert_eq!(recent.lacks("a", at(21)), Some("for sure"));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut recent = Recent::default();
        for n in 0..10_000 {
            let directory = ChangedDirectory { attr: attr(FileId(n), 0), ctime_was_ns: -1 };
            let mkdir = create(FileId(n), "d", FileKind::Directory);
            let answer = created(FileId(20_000 + n), FileKind::Directory, Some(Box::new(directory)));
            recent.learn(&mkdir, &answer, at(n), at(n));
            let names: usize = recent.directories.values().flat_map(|d| &d.names).map(BTreeSet::len).sum();
            assert_eq!(recent.names, names);
        }
        assert!(recent.directories.len() <= MOST);

        let mut recent = with_directory();
        for n in 0..2 * MOST_NAMES {
            recent.makes(&n.to_string(), 10 + n as u64, 6 + n as i64, at(n as u64 / 16));
            assert!(recent.names <= MOST_NAMES && recent.new.len() <= MOST);
        }
        assert_eq!((recent.lacks("a", at(2 * MOST_NAMES as u64 / 16)), recent.names), (None, 0));
    }
}
