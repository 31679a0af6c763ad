//! Extended attributes: `user.*` are stored; the cluster's own attributes are shown and set as `user.pstorage.*`
//! (replicas, tier, failure-domain, chunk-size) but not listed, so that copying tools leave them alone.

use super::convert;
use crate::call::Call;
use crate::error::{ClientError, Result};
use fuser::{Errno, ReplyEmpty, ReplyXattr};
use shards::ring::Mailbox;
use wire::mds_api::{FileAttr, MdsReply, MdsRequest};
use wire::{ClientId, FileId};

const OWN: &str = "user.pstorage.";
const MAX_VALUE_BYTES: usize = 64 << 10;

/// What a name is about.
enum Name {
    Stored(String),
    Own(String),
    /// "Not supported" and not "not there": `ls -l` asks for a label and an access list of every file, and no more once it is told so.
    Unsupported,
}

fn classify(name: &std::ffi::OsStr) -> Name {
    match name.to_str() {
        Some(name) if name.starts_with(OWN) => Name::Own(name[OWN.len()..].to_string()),
        // A host's labels mean nothing to another.
        Some("security.selinux") => Name::Unsupported,
        Some(name) if ["user.", "trusted.", "security."].iter().any(|of| name.starts_with(of)) => {
            Name::Stored(name.to_string())
        }
        _ => Name::Unsupported,
    }
}

fn own_value(attr: &FileAttr, name: &str) -> Option<String> {
    let r = &attr.replicas;
    match name {
        "replicas" => Some(format!("{}:{}", r.normal, r.minimum)),
        "tier" => Some(r.tier.to_string()),
        "chunk-size" => Some(attr.chunk_bytes.to_string()),
        "failure-domain" => Some(r.domain.to_string()),
        _ => None,
    }
}

fn give(reply: ReplyXattr, size: u32, value: Result<Vec<u8>>) {
    match value {
        Err(error) => reply.error(convert::errno(&error)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

fn unexpected(reply: &MdsReply) -> ClientError {
    ClientError::Io { detail: format!("unexpected answer {reply:?}") }
}

pub fn get(mailbox: &Mailbox<Call>, file: FileId, name: &std::ffi::OsStr, size: u32, reply: ReplyXattr) {
    match classify(name) {
        Name::Unsupported => reply.error(Errno::EOPNOTSUPP),
        Name::Own(name) => mailbox.send(Call::GetAttr {
            file,
            done: Box::new(move |attr| match attr.map(|a| own_value(&a, &name)) {
                Ok(Some(value)) => give(reply, size, Ok(value.into_bytes())),
                Ok(None) => reply.error(Errno::ENODATA),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        }),
        Name::Stored(name) => mailbox.send(Call::Mds {
            request: MdsRequest::GetXattr { file, name },
            done: Box::new(move |answer| {
                let value = answer.and_then(|a| match a {
                    MdsReply::Xattr { value } => Ok(value),
                    other => Err(unexpected(&other)),
                });
                give(reply, size, value);
            }),
        }),
    }
}

pub fn list(mailbox: &Mailbox<Call>, file: FileId, size: u32, reply: ReplyXattr) {
    mailbox.send(Call::Mds {
        request: MdsRequest::ListXattr { file },
        done: Box::new(move |answer| {
            let names = answer.and_then(|a| match a {
                MdsReply::XattrNames { names } => {
                    // What is not for programs (the cluster's identity) has another beginning.
                    let shown = names.iter().filter(|n| matches!(classify(n.as_ref()), Name::Stored(_)));
                    Ok(shown.flat_map(|n| n.bytes().chain(std::iter::once(0))).collect())
                }
                other => Err(unexpected(&other)),
            });
            give(reply, size, names);
        }),
    });
}

fn end(reply: ReplyEmpty) -> crate::call::Done<MdsReply> {
    Box::new(move |answer| match answer {
        Ok(_) => reply.ok(),
        Err(error) => reply.error(convert::errno(&error)),
    })
}

pub fn set(
    mailbox: &Mailbox<Call>,
    file: FileId,
    name: &std::ffi::OsStr,
    value: &[u8],
    flags: i32,
    reply: ReplyEmpty,
) {
    if value.len() > MAX_VALUE_BYTES {
        return reply.error(Errno::E2BIG);
    }
    let request = match classify(name) {
        Name::Unsupported => return reply.error(Errno::EOPNOTSUPP),
        Name::Own(name) => {
            let value = String::from_utf8_lossy(value).trim().to_string();
            MdsRequest::SetPolicy { file, name, value, recursive: false }
        }
        Name::Stored(name) => MdsRequest::SetXattr {
            client: ClientId(0),
            file,
            name,
            value: value.to_vec(),
            create_only: flags & libc::XATTR_CREATE != 0,
            replace_only: flags & libc::XATTR_REPLACE != 0,
        },
    };
    mailbox.send(Call::Mds { request, done: end(reply) });
}

pub fn remove(mailbox: &Mailbox<Call>, file: FileId, name: &std::ffi::OsStr, reply: ReplyEmpty) {
    match classify(name) {
        Name::Unsupported => reply.error(Errno::EOPNOTSUPP),
        Name::Own(_) => reply.error(Errno::EPERM),
        Name::Stored(name) => mailbox.send(Call::Mds {
            request: MdsRequest::RemoveXattr { client: ClientId(0), file, name },
            done: end(reply),
        }),
    }
}
