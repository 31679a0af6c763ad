//! Licences: what somebody who provides this software under terms has signed for a cluster. Pure computation.
//!
//! Nobody needs one: a cluster without a licence has no limits. A licence is a text of lines `name=value`, the last of which
//! is the signature of its maker over all before it. Makers are known by their public keys, to the metadata servers.
//!
//! Invariant: a licence that has ended stops new chunks and nothing else. What is stored can be read, changed where it stands,
//! copied away and deleted, and is repaired.

use crate::auth::{hex, is_signed, public_key, sign, unhex};
use rkyv::{Archive, Deserialize, Serialize};
use shards::text::Civil;

const FIRST_LINE: &str = "pstorage license 1";
/// Longest text, bytes.
pub const MAX_BYTES: usize = 4096;

/// What a licence says.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct License {
    /// Stays the same when the licence is renewed.
    pub key_number: String,
    pub product: String,
    pub owner: String,
    /// The cluster it is for; empty: any.
    pub cluster: String,
    /// Of users' data; 0: unlimited.
    pub capacity_bytes: u64,
    /// Tolerated on top of the capacity.
    pub grace_capacity_bytes: u64,
    pub issued_s: u64,
    /// Seconds since 1970; 0: never.
    pub expires_s: u64,
    /// Tolerated after that.
    pub grace_s: u64,
}

/// A licence with its maker's signature.
#[derive(
    Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub struct SignedLicense {
    pub license: License,
    pub maker: [u8; 32],
    text: String,
}

/// How it stands with a cluster's licence.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
pub enum LicenseStatus {
    /// No licence was loaded: no limits.
    Free,
    Active,
    /// Expired, or more is stored than licensed, and still tolerated.
    Graced,
    /// Nothing new is stored.
    Expired,
    /// Nothing new is stored.
    Exceeded,
}

impl LicenseStatus {
    /// In the words of the guide.
    pub fn name(self) -> &'static str {
        match self {
            LicenseStatus::Free | LicenseStatus::Active => "ACTIVE",
            LicenseStatus::Graced => "GRACED",
            LicenseStatus::Expired => "EXPIRED",
            LicenseStatus::Exceeded => "EXCEEDED",
        }
    }

    pub fn is_well(self) -> bool {
        matches!(self, LicenseStatus::Free | LicenseStatus::Active)
    }

    /// With what follows from it.
    pub fn explained(self) -> &'static str {
        match self {
            LicenseStatus::Free => "ACTIVE: the software is free, without limits",
            LicenseStatus::Active => "ACTIVE",
            LicenseStatus::Graced => {
                "GRACED: it has expired, or more is stored than it allows. Renew it before its grace ends"
            }
            LicenseStatus::Expired => {
                "EXPIRED: what is stored can be read, changed and deleted, and nothing new can be stored"
            }
            LicenseStatus::Exceeded => {
                "EXCEEDED: what is stored can be read, changed and deleted, and nothing new can be stored until there is less"
            }
        }
    }

    /// Whether new chunks may be made.
    pub fn lets_grow(self) -> bool {
        !matches!(self, LicenseStatus::Expired | LicenseStatus::Exceeded)
    }
}

impl License {
    /// The lines that are signed. Errors name what does not fit on a line.
    fn lines(&self) -> Result<String, String> {
        let mut text = format!("{FIRST_LINE}\n");
        for (name, value) in [
            ("key_number", self.key_number.as_str()),
            ("product", &self.product),
            ("owner", &self.owner),
            ("cluster", &self.cluster),
            ("capacity_bytes", &self.capacity_bytes.to_string()),
            ("grace_capacity_bytes", &self.grace_capacity_bytes.to_string()),
            ("issued_s", &self.issued_s.to_string()),
            ("expires_s", &self.expires_s.to_string()),
            ("grace_s", &self.grace_s.to_string()),
        ] {
            if value.contains(char::is_control) {
                return Err(format!("{name} has characters that can't be printed"));
            }
            text += &format!("{name}={value}\n");
        }
        Ok(text)
    }

    /// Signs it with the maker's secret key.
    pub fn sign(self, secret: &[u8; 32]) -> Result<SignedLicense, String> {
        let maker = public_key(secret);
        let signed = format!("{}maker={}\n", self.lines()?, hex(&maker));
        let text = format!("{signed}signature={}\n", hex(&sign(secret, signed.as_bytes())));
        if text.len() > MAX_BYTES {
            return Err(format!("the licence has {} bytes, at most {MAX_BYTES} are possible", text.len()));
        }
        Ok(SignedLicense { license: self, maker, text })
    }

    pub fn expiration_text(&self) -> String {
        if self.expires_s == 0 { "never".into() } else { date(self.expires_s) }
    }

    pub fn capacity_text(&self) -> String {
        if self.capacity_bytes == 0 { "unlimited".into() } else { size_text(self.capacity_bytes) }
    }

    /// Expiration and capacity in words.
    pub fn limits(&self) -> String {
        format!("expiration: {}, capacity: {}", self.expiration_text(), self.capacity_text())
    }

    /// How it stands with it, `now_s` seconds after 1970 and with so much stored.
    pub fn status(&self, now_s: u64, used_bytes: u64) -> LicenseStatus {
        let expired = self.expires_s != 0 && now_s >= self.expires_s;
        let full = self.capacity_bytes != 0 && used_bytes > self.capacity_bytes;
        if expired && now_s >= self.expires_s.saturating_add(self.grace_s) {
            LicenseStatus::Expired
        } else if full && used_bytes > self.capacity_bytes.saturating_add(self.grace_capacity_bytes) {
            LicenseStatus::Exceeded
        } else if expired || full {
            LicenseStatus::Graced
        } else {
            LicenseStatus::Active
        }
    }
}

impl SignedLicense {
    /// The text, as it is stored in files.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text as one word, for a command line.
    pub fn key(&self) -> String {
        hex(self.text.as_bytes())
    }

    /// Reads a licence, from its text or from the word made of it, and checks the signature. Whether the maker is to be
    /// believed is for the caller.
    pub fn parse(given: &str) -> Result<SignedLicense, String> {
        let given = given.trim();
        if given.len() > 2 * MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes"));
        }
        let word =
            (!given.is_empty() && given.bytes().all(|b| b.is_ascii_hexdigit())).then(|| from_hex(given));
        let text = match word {
            Some(bytes) => String::from_utf8(bytes).map_err(|_| "it is not a licence key".to_string())?,
            None => format!("{}\n", given.replace("\r\n", "\n")),
        };
        let (signed, signature) = text
            .strip_suffix('\n')
            .and_then(|text| text.rsplit_once('\n'))
            .and_then(|(signed, last)| Some((format!("{signed}\n"), last.strip_prefix("signature=")?)))
            .ok_or("it does not end with a signature")?;
        let mut lines = signed.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(format!("it does not begin with '{FIRST_LINE}'"));
        }
        let mut field = |name: &str| {
            let line = lines.next().unwrap_or_default();
            line.strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='))
                .map(str::to_string)
                .ok_or(format!("there is '{line}' where {name} should be"))
        };
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("'{text}' is not a number"));
        let license = License {
            key_number: field("key_number")?,
            product: field("product")?,
            owner: field("owner")?,
            cluster: field("cluster")?,
            capacity_bytes: number(field("capacity_bytes")?)?,
            grace_capacity_bytes: number(field("grace_capacity_bytes")?)?,
            issued_s: number(field("issued_s")?)?,
            expires_s: number(field("expires_s")?)?,
            grace_s: number(field("grace_s")?)?,
        };
        let maker: [u8; 32] = unhex(&field("maker")?).ok_or("maker is not 64 hexadecimal digits")?;
        let signature: [u8; 64] = unhex(signature).ok_or("signature is not 128 hexadecimal digits")?;
        if !is_signed(&maker, signed.as_bytes(), &signature) {
            return Err("its signature is not that of its maker: it was changed".into());
        }
        Ok(SignedLicense { license, maker, text })
    }
}

/// A maker's key, either half, from 64 hexadecimal digits.
pub fn parse_key(text: &str) -> Option<[u8; 32]> {
    unhex(text)
}

/// A maker's key as [`parse_key`] reads it.
pub fn key_text(key: &[u8; 32]) -> String {
    hex(key)
}

/// `2026-11-28` or, within a day, `2026-11-28 09:15:00`; UTC.
pub fn date(unix_s: u64) -> String {
    let Civil { year, month, day, hour, minute, second } = Civil::from_unix_s(unix_s);
    let time =
        if unix_s % 86_400 == 0 { String::new() } else { format!(" {hour:02}:{minute:02}:{second:02}") };
    format!("{year:04}-{month:02}-{day:02}{time}")
}

/// Whole units: `42GB`, `10TB` (powers of 1024).
pub fn size_text(bytes: u64) -> String {
    let units = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")];
    let unit =
        units.into_iter().find(|(unit, _)| bytes >= *unit && (bytes % unit == 0 || bytes >= 10 * unit));
    unit.map_or(format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

fn from_hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().as_chunks::<2>().0.iter();
    pairs.filter_map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn license() -> License {
        License {
            key_number: "PS.00000001".into(),
            product: "pstorage".into(),
            owner: "Example Hosting".into(),
            cluster: "pcs1".into(),
            capacity_bytes: 1000,
            grace_capacity_bytes: 100,
            issued_s: 10,
            expires_s: 5000,
            grace_s: 500,
        }
    }

    #[test]
    fn a_licence_survives_files_and_command_lines_and_no_change() {
        let signed = license().sign(&[7; 32]).unwrap();
        assert_eq!(SignedLicense::parse(signed.text()), Ok(signed.clone()));
        assert_eq!(SignedLicense::parse(&signed.key()), Ok(signed.clone()));
        assert_eq!(SignedLicense::parse(&signed.text().replace('\n', "\r\n")), Ok(signed.clone()));
        assert_eq!(signed.maker, public_key(&[7; 32]));
        for at in 0..signed.text().len() - 1 {
            let mut bytes = signed.text().as_bytes().to_vec();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(SignedLicense::parse(&changed).is_err(), "byte {at}");
            assert!(SignedLicense::parse(&signed.text()[..at]).is_err(), "cut at {at}");
        }
        for bad in ["", "x", "00", "ff", &"0".repeat(9000), &"ü".repeat(20)] {
            assert!(SignedLicense::parse(bad).is_err(), "{bad}");
        }
        assert!(License { owner: "a\nb".into(), ..license() }.sign(&[7; 32]).is_err());
        assert!(License { owner: "x".repeat(5000), ..license() }.sign(&[7; 32]).is_err());
    }

    #[test]
    fn the_text_is_pinned() {
        let text = license().sign(&[7; 32]).unwrap().text().to_string();
        let before_maker = "pstorage license 1\nkey_number=PS.00000001\nproduct=pstorage\nowner=Example Hosting\ncluster=pcs1\n\
            capacity_bytes=1000\ngrace_capacity_bytes=100\nissued_s=10\nexpires_s=5000\ngrace_s=500\nmaker=";
        assert!(text.starts_with(before_maker), "{text}");
    }

    #[test]
    fn grace_comes_before_the_end() {
        let (l, free) = (license(), License { capacity_bytes: 0, expires_s: 0, ..license() });
        for (now, used, status) in [
            (0, 0, LicenseStatus::Active),
            (4999, 1000, LicenseStatus::Active),
            (4999, 1001, LicenseStatus::Graced),
            (4999, 1101, LicenseStatus::Exceeded),
            (5000, 0, LicenseStatus::Graced),
            (5499, 1101, LicenseStatus::Exceeded),
            (5500, 0, LicenseStatus::Expired),
        ] {
            assert_eq!(l.status(now, used), status, "at {now} with {used}");
            assert_eq!(free.status(now, used), LicenseStatus::Active);
        }
        assert!(LicenseStatus::Graced.lets_grow() && !LicenseStatus::Expired.lets_grow());
    }
}
