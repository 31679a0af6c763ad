//! `clone`: a file that begins as another one is, without a copy. Paths are those inside the cluster.

use super::stat::resolve;
use crate::{Context, Outcome};
use wire::ClientId;
use wire::mds_api::{MdsReply, MdsRequest};

pub fn clone(context: &Context, from: &str, to: &str) -> Outcome {
    let (directory, name) = split(to)?;
    let mut link = context.link()?;
    let file = resolve(&mut link, from)?.file;
    let parent = resolve(&mut link, directory)?.file;
    let request = MdsRequest::Clone { client: ClientId(0), file, parent, name: name.into() };
    let MdsReply::Attr(attr) = link.ask(&request).map_err(|why| format!("{to} from {from}: {why}"))? else {
        return Err("unexpected answer of the metadata server".into());
    };
    if context.json {
        return crate::print_json(&serde_json::json!({ "path": to, "size": attr.size_bytes }));
    }
    println!("{to} is a clone of {from}.");
    Ok(())
}

/// Directory and name of a path.
fn split(path: &str) -> Outcome<(&str, &str)> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "" | "." | ".." => {
            Err(format!("'{path}' is not a name for a file: give the path of the clone itself"))
        }
        _ => Ok((if directory.is_empty() { "/" } else { directory }, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_directories_and_names() {
        assert_eq!(split("/vm/a.raw"), Ok(("/vm", "a.raw")));
        assert_eq!(split("a"), Ok(("/", "a")));
        assert_eq!(split("/a"), Ok(("/", "a")));
        assert!(split("/vm/").is_err() && split("..").is_err());
    }
}
