//! `ETC/iscsi/config`: where records lie in the cluster, and how names of targets begin. All hosts of a cluster have the same.

use crate::{Error, Result};
use std::path::Path;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Directory in the cluster.
    pub root: String,
    pub iqn_prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { root: "/iscsi".into(), iqn_prefix: "iqn.2026-11.local.pstorage".into() }
    }
}

pub fn load(etc: &Path) -> Result<Settings> {
    let path = etc.join("iscsi").join("config");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map_err(|why| Error::Refused(format!("{}: {why}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Settings::default()),
        Err(error) => Err(Error::file(&path)(error)),
    }
}

fn parse(text: &str) -> std::result::Result<Settings, String> {
    let mut settings = Settings::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once('=').ok_or_else(|| format!("'{line}' is no KEY=VALUE"))?;
        let value = value.trim().trim_matches('"').to_string();
        match key.trim() {
            "ISCSI_ROOT" => settings.root = value,
            "IQN_PREFIX" => settings.iqn_prefix = value,
            other => return Err(format!("'{other}' is not known: ISCSI_ROOT and IQN_PREFIX are")),
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_defaults() {
        let read = parse("# ours\nISCSI_ROOT = \"/san\"\n\nIQN_PREFIX=iqn.2020-01.org.x\n").unwrap();
        assert_eq!(read, Settings { root: "/san".into(), iqn_prefix: "iqn.2020-01.org.x".into() });
        assert_eq!(parse("").unwrap(), Settings::default());
        assert!(parse("ROOT=1").unwrap_err().contains("ISCSI_ROOT"));
        assert_eq!(load(Path::new("/nonexistent")).unwrap(), Settings::default());
    }
}
