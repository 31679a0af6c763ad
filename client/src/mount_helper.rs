//! What mount(8) says to its helper for a line of `/etc/fstab`, in the words of `pstorage-mount`.
//!
//! A line such as `pstorage://pcs1 /mnt/pcs1 fuse.pstorage rw,nodev,_netdev 0 0` makes mount(8) run
//! `/sbin/mount.fuse.pstorage pstorage://pcs1 /mnt/pcs1 -o rw,nodev,_netdev`: a link to `pstorage-mount`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Words {
    /// The program was called by its own name, or by another that means nothing.
    Own,
    /// What `pstorage-mount` is to be told, without its name.
    Mount(Vec<OsString>),
    /// `mount -f`: all but the mount itself.
    Fake,
}

/// Of all words a program was started with, its name first. Errors are for people.
pub fn words(all: &[OsString]) -> Result<Words, String> {
    let name = all.first().map(|name| Path::new(name).file_name().unwrap_or_default());
    if !matches!(name.and_then(OsStr::to_str), Some("mount.fuse.pstorage" | "mount.pstorage")) {
        return Ok(Words::Own);
    }
    let (mut places, mut mount) = (Vec::new(), Vec::new());
    let mut rest = all[1..].iter();
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("-o") => {
                let options = rest.next().ok_or("-o: mount options expected after it")?;
                mount.extend([word.clone(), options.clone()]);
            }
            // The type again, which we know.
            Some("-t") => drop(rest.next()),
            Some("-N") => {
                return Err("mounting in another namespace (-N) is not supported: enter it first".into());
            }
            Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                if let Some(unknown) = flags.chars().skip(1).find(|flag| !"sfnv".contains(*flag)) {
                    return Err(format!(
                        "unknown flag -{unknown}; mount(8) says -s, -f, -n, -v, -o and -t to its helpers"
                    ));
                }
                if flags.contains('f') {
                    return Ok(Words::Fake);
                }
            }
            _ => places.push(word),
        }
    }
    let &[source, dir] = &places[..] else {
        return Err("a source and a directory expected: pstorage://CLUSTER DIRECTORY [-o OPTIONS]".into());
    };
    let cluster = source.to_str().map(|text| text.strip_prefix("pstorage://").unwrap_or(text));
    let cluster =
        cluster.map(|name| name.trim_end_matches('/')).filter(|name| !name.is_empty() && !name.contains('/'));
    let cluster = cluster
        .ok_or_else(|| format!("'{}' names no cluster: pstorage://CLUSTER expected", source.display()))?;
    mount.extend(["-c".into(), cluster.into(), "--".into(), dir.clone()]);
    Ok(Words::Mount(mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Words, String> {
        words(&text.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_line_of_fstab_becomes_words_of_pstorage_mount() {
        let mount = |text: &str| Ok(Words::Mount(text.split(' ').map(OsString::from).collect()));
        assert_eq!(said("/usr/bin/pstorage-mount -c pcs1 /mnt"), Ok(Words::Own));
        assert_eq!(
            said("/sbin/mount.fuse.pstorage pstorage://pcs1 /mnt -n -o rw,_netdev -t fuse.pstorage"),
            mount("-o rw,_netdev -c pcs1 -- /mnt")
        );
        assert_eq!(said("mount.pstorage pcs1 /mnt -sv"), mount("-c pcs1 -- /mnt"));
        assert_eq!(said("mount.pstorage pstorage://pcs1/ /mnt"), mount("-c pcs1 -- /mnt"));
        assert_eq!(said("mount.pstorage pcs1 /mnt -fv"), Ok(Words::Fake));
    }

    #[test]
    fn what_it_cannot_do_is_said() {
        for (wrong, why) in [
            ("mount.pstorage pcs1", "a directory expected"),
            ("mount.pstorage pcs1 /mnt more", "a directory expected"),
            ("mount.pstorage pstorage:// /mnt", "names no cluster"),
            ("mount.pstorage pstorage://pcs1/dir /mnt", "names no cluster"),
            ("mount.pstorage pcs1 /mnt -o", "expected after"),
            ("mount.pstorage pcs1 /mnt -x", "unknown flag -x"),
            ("mount.pstorage pcs1 /mnt -N 7", "namespace"),
        ] {
            let told = said(wrong).unwrap_err();
            assert!(told.contains(why), "{wrong}: {told}");
        }
    }
}
