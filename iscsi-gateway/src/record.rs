//! Records of targets and accounts, as they lie in the cluster (JSON), and the rules for names.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The port of iSCSI.
pub const PORT: u16 = 3260;
/// LUNs of a target.
pub const MAX_LUNS: u16 = 255;
/// Shorter secrets could be guessed from what goes over the network (RFC 7143, 9.2.1).
const MIN_SECRET_BYTES: usize = 12;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lun {
    pub lun: u16,
    /// Logical blocks: 512 or 4096 bytes.
    pub block_bytes: u32,
    pub vendor: String,
    pub product: String,
    /// Made once; the unit is known by it wherever it is served.
    pub serial: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    pub iqn: String,
    /// Host whose gateway may serve it.
    pub host: Option<String>,
    /// Whether that gateway is to serve it, after a restart too.
    pub started: bool,
    /// Addresses that initiators connect to.
    pub portals: Vec<SocketAddr>,
    pub luns: Vec<Lun>,
    /// Accounts that may log in (CHAP); none: everybody may.
    #[serde(default)]
    pub users: Vec<String>,
    /// The account with which the target proves itself.
    #[serde(default)]
    pub mutual_user: Option<String>,
    /// Initiators that may log in; none: all.
    #[serde(default)]
    pub initiators: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRecord {
    pub user: String,
    pub secret: String,
}

impl Target {
    pub fn lun(&self, lun: u16) -> Result<&Lun> {
        let found = self.luns.iter().find(|l| l.lun == lun);
        found.ok_or_else(|| Error::Refused(format!("{} has no LUN {lun}", self.iqn)))
    }

    /// Refuses what must not happen while somebody serves it.
    pub fn check_stopped(&self) -> Result {
        match &self.host {
            Some(host) if self.started => Error::refused(format!(
                "{} is started on host {host}: run 'pstorage-iscsi stop -t {}' there first",
                self.iqn, self.iqn
            )),
            _ => Ok(()),
        }
    }
}

/// Whether `name` can be an iSCSI name (RFC 7143, 4.2.7): iqn., eui. or naa., lower case.
pub fn check_iqn(name: &str) -> Result {
    let known = ["iqn.", "eui.", "naa."].iter().any(|kind| name.starts_with(kind));
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':');
    if known && (5..=223).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Error::refused(format!(
        "'{name}' is no iSCSI name: it begins with iqn., and lower-case letters, digits, '-', '.' and ':' are allowed"
    ))
}

pub fn check_user(user: &str) -> Result {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '@' | ':');
    if (1..=64).contains(&user.len()) && user.chars().all(allowed) && !user.starts_with('.') {
        return Ok(());
    }
    Error::refused(format!("'{user}' can't be a user: up to 64 letters, digits and any of -._@:"))
}

pub fn check_secret(secret: &str) -> Result {
    if (MIN_SECRET_BYTES..=255).contains(&secret.len()) && !secret.chars().any(char::is_control) {
        return Ok(());
    }
    Error::refused(format!("a secret has at least {MIN_SECRET_BYTES} characters (Windows takes 12 to 16)"))
}

/// `IP`, `IP:PORT` or `[IPv6]:PORT`.
pub fn parse_portal(text: &str) -> std::result::Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>();
    with_port
        .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, PORT)))
        .map_err(|_| format!("'{text}' is no address: IP, or IP:PORT (the port is {PORT} if none is named)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        assert!(check_iqn("iqn.2026-11.local.pstorage:vm-1").is_ok());
        for bad in ["", "iqn.", "vm1", "iqn.2026-11.x:VM", "iqn.2026-11.x:a/b", "iqn.a b"] {
            assert!(check_iqn(bad).is_err(), "{bad}");
        }
        assert!(check_user("alice@host").is_ok() && check_user("../x").is_err() && check_user("").is_err());
        assert!(check_secret("123456789012").is_ok() && check_secret("short").is_err());
    }

    #[test]
    fn portals_have_a_port() {
        assert_eq!(parse_portal("10.0.0.1").unwrap().to_string(), "10.0.0.1:3260");
        assert_eq!(parse_portal("[::1]:99").unwrap().to_string(), "[::1]:99");
        assert_eq!(parse_portal("::1").unwrap().to_string(), "[::1]:3260");
        assert!(parse_portal("host").unwrap_err().contains("IP:PORT"));
    }

    #[test]
    fn records_of_old_are_read() {
        let old = r#"{"iqn":"iqn.a","host":null,"started":false,"portals":["127.0.0.1:3260"],"luns":[]}"#;
        let target: Target = serde_json::from_str(old).unwrap();
        assert!(target.users.is_empty() && target.check_stopped().is_ok());
        let again: Target = serde_json::from_str(&serde_json::to_string(&target).unwrap()).unwrap();
        assert_eq!(again, target);
    }
}
