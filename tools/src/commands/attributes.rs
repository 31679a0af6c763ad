//! `set-attr`, `get-attr`, `get-config`, `set-config`, `revoke`. Paths are those inside the cluster.

use super::explain::states;
use super::stat::resolve;
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::FileId;
use wire::attribute::Attribute;
use wire::mds_api::{FileKind, MdsReply, MdsRequest, ReplicaPolicy};

/// How often `revoke` looks whether the holders have stopped.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How `set-attr` is to be done.
#[derive(Clone, Copy, Debug)]
pub struct SetAttr {
    pub recursive: bool,
    /// Only say what would change.
    pub dry_run: bool,
}

pub fn set_attr(context: &Context, path: &str, assignments: &[String], how: SetAttr) -> Outcome {
    let mut link = context.link()?;
    let attr = resolve(&mut link, path)?;
    // All are read before the first is set: a mistake in one leaves everything as it was.
    let mut wanted = (attr.replicas, attr.chunk_bytes);
    let mut requests = Vec::new();
    for assignment in assignments {
        let (name, value) = assignment
            .split_once('=')
            .ok_or(format!("'{assignment}' is not NAME=VALUE, such as replicas=3:2. Nothing was changed"))?;
        let attribute =
            Attribute::parse(name, value).map_err(|why| format!("{path}: {why}. Nothing was changed"))?;
        attribute.change(&mut wanted.0);
        if let Attribute::ChunkBytes(bytes) = attribute {
            wanted.1 = bytes;
        }
        let (file, recursive) = (attr.file, how.recursive);
        requests.push(MdsRequest::SetPolicy { file, name: name.into(), value: value.into(), recursive });
    }
    if how.dry_run {
        let now = attribute_lines(attr.replicas, attr.chunk_bytes);
        for (now, then) in now.iter().zip(attribute_lines(wanted.0, wanted.1)) {
            println!("{path}: {now}{}", if *now == then { String::new() } else { format!(" -> {then}") });
        }
        let below = if how.recursive { ", and all below it alike" } else { "" };
        println!("{path}{below} would be so; nothing was changed.");
        return Ok(());
    }
    for request in requests {
        link.ask(&request).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(())
}

fn attribute_lines(replicas: ReplicaPolicy, chunk_bytes: u32) -> [String; 4] {
    [
        format!("replicas={}:{}", replicas.normal, replicas.minimum),
        format!("failure-domain={}", replicas.domain),
        format!("tier={}", replicas.tier),
        format!("chunk-size={chunk_bytes}"),
    ]
}

pub fn get_attr(context: &Context, path: &str) -> Outcome {
    let mut link = context.link()?;
    let a = resolve(&mut link, path)?;
    let chunks = match a.kind {
        FileKind::File => match link.ask(&MdsRequest::FileChunks { file: a.file })? {
            MdsReply::Chunks(counts) => Some(counts),
            _ => return Err("unexpected answer of the metadata server".into()),
        },
        _ => None,
    };
    if context.json {
        let mut attributes = serde_json::json!({
            "path": path, "replicas": format!("{}:{}", a.replicas.normal, a.replicas.minimum),
            "tier": a.replicas.tier, "failure-domain": a.replicas.domain, "chunk-size": a.chunk_bytes,
        });
        if let Some(counts) = chunks {
            attributes["chunks"] = serde_json::to_value(counts).map_err(|e| e.to_string())?;
        }
        crate::print_json(&attributes)?;
    } else {
        attribute_lines(a.replicas, a.chunk_bytes).iter().for_each(|line| println!("{line}"));
        if let Some(counts) = chunks {
            println!("chunks={} ({})", counts.total, states(&counts));
        }
    }
    Ok(())
}

/// All settings, or those named. `verbose` tells what they mean.
pub fn get_config(context: &Context, keys: &[String], verbose: bool) -> Outcome {
    let MdsReply::Config { mut settings } = context.link()?.ask(&MdsRequest::GetConfig)? else {
        return Err("unexpected answer of the metadata server".into());
    };
    if let Some(unknown) = keys.iter().find(|key| settings.iter().all(|s| s.key != **key)) {
        return Err(format!("there is no setting '{unknown}'; 'pstorage get-config' shows all"));
    }
    settings.retain(|s| keys.is_empty() || keys.contains(&s.key));
    if context.json && verbose {
        return crate::print_json(&settings);
    }
    if context.json {
        let values: BTreeMap<_, _> = settings.into_iter().map(|s| (s.key, s.value.to_string())).collect();
        return crate::print_json(&values);
    }
    for s in settings {
        println!("{}={}", s.key, s.value);
        if verbose {
            println!("    {}", s.meaning);
            println!("    {}; {} to {}, default {}", s.unit, s.least, s.most, s.default);
        }
    }
    Ok(())
}

pub fn set_config(context: &Context, assignments: &[String]) -> Outcome {
    let mut link = context.link()?;
    let mut requests = Vec::new();
    for assignment in assignments {
        let (key, value) = assignment.split_once('=').ok_or(format!(
            "'{assignment}' is not KEY=VALUE, such as mds.repl.max_rate=100. Nothing was changed"
        ))?;
        requests.push(MdsRequest::SetConfig { key: key.into(), value: value.into() });
    }
    for (done, request) in requests.iter().enumerate() {
        link.ask(request).map_err(|why| match &assignments[..done] {
            [] => why,
            set => format!("{why}. Set before it: {}", set.join(" ")),
        })?;
    }
    Ok(())
}

pub fn revoke(context: &Context, path: &str, recursive: bool) -> Outcome {
    let mut link = context.link()?;
    let attr = resolve(&mut link, path)?;
    let files = match attr.kind {
        FileKind::File => vec![attr.file],
        FileKind::Directory if recursive => files_below(&mut link, attr.file)?,
        FileKind::Directory => {
            return Err(format!("{path} is a directory: -R revokes the leases of all files below it"));
        }
        _ => return Err(format!("{path} is no regular file: only those have leases")),
    };
    // All first, then the waiting: it is the same for all.
    let mut waiting = Vec::new();
    for file in files {
        waiting.push((file, link.ask(&MdsRequest::Revoke { file })?));
    }
    for (file, mut reply) in waiting {
        // Only of these: somebody else may have opened it meanwhile.
        while let MdsReply::Revoking { leases } = reply {
            std::thread::sleep(LOOK_EVERY);
            reply = link.ask(&MdsRequest::RevokeStat { file, leases })?;
        }
    }
    println!("The leases of {path} are revoked, and their holders have stopped.");
    Ok(())
}

/// All regular files below a directory.
fn files_below(link: &mut MdsLink, top: FileId) -> Outcome<Vec<FileId>> {
    let (mut files, mut directories) = (Vec::new(), vec![(top, String::new())]);
    while let Some((directory, after)) = directories.pop() {
        let request = MdsRequest::ReadDir { directory, after, limit: 1000 };
        let MdsReply::Entries { entries, more } = link.ask(&request)? else {
            return Err("unexpected answer of the metadata server".into());
        };
        if let Some(last) = entries.last().filter(|_| more) {
            directories.push((directory, last.name.clone()));
        }
        for entry in entries {
            match entry.attr.kind {
                FileKind::Directory => directories.push((entry.attr.file, String::new())),
                FileKind::File => files.push(entry.attr.file),
                _ => {}
            }
        }
    }
    Ok(files)
}
