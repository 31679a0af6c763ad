//! `set-attr`, `get-attr`, `get-config`, `set-config`, `revoke`. Paths are those inside the cluster.

use super::explain::states;
use super::stat::resolve;
use crate::{Context, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::mds_api::{FileKind, MdsReply, MdsRequest};

/// How often `revoke` looks whether the holders have stopped.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn set_attr(context: &Context, path: &str, assignments: &[String], recursive: bool) -> Outcome {
    let mut link = context.link()?;
    let file = resolve(&mut link, path)?.file;
    for assignment in assignments {
        let (name, value) = assignment.split_once('=').ok_or(format!("'{assignment}' is not NAME=VALUE"))?;
        let request = MdsRequest::SetPolicy { file, name: name.into(), value: value.into(), recursive };
        link.ask(&request).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(())
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
    let domain = format!("{:?}", a.replicas.domain).to_lowercase();
    if context.json {
        let mut attributes = serde_json::json!({
            "path": path, "replicas": format!("{}:{}", a.replicas.normal, a.replicas.minimum),
            "tier": a.replicas.tier, "failure-domain": domain, "chunk-size": a.chunk_bytes,
        });
        if let Some(counts) = chunks {
            attributes["chunks"] = serde_json::to_value(counts).map_err(|e| e.to_string())?;
        }
        crate::print_json(&attributes)?;
    } else {
        println!("replicas={}:{}", a.replicas.normal, a.replicas.minimum);
        println!("failure-domain={domain}");
        println!("tier={}", a.replicas.tier);
        println!("chunk-size={}", a.chunk_bytes);
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
    for assignment in assignments {
        let (key, value) = assignment.split_once('=').ok_or(format!("'{assignment}' is not KEY=VALUE"))?;
        link.ask(&MdsRequest::SetConfig { key: key.into(), value: value.into() })?;
    }
    Ok(())
}

pub fn revoke(context: &Context, path: &str) -> Outcome {
    let mut link = context.link()?;
    let file = resolve(&mut link, path)?.file;
    let mut reply = link.ask(&MdsRequest::Revoke { file })?;
    // Only of these: somebody else may have opened it meanwhile.
    while let MdsReply::Revoking { leases } = reply {
        std::thread::sleep(LOOK_EVERY);
        reply = link.ask(&MdsRequest::RevokeStat { file, leases })?;
    }
    println!("The leases of {path} are revoked, and their holders have stopped.");
    Ok(())
}
