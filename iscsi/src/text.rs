//! Keys and values of login and text negotiation: `KEY=VALUE` pairs, each ended by a zero byte.

use thiserror::Error;

/// Longest negotiation text of one sequence of PDUs.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// Longest name of a key (RFC 7143, 6.1).
const MAX_KEY_BYTES: usize = 63;

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TextError {
    #[error("a text of negotiation is not UTF-8")]
    NotText,
    #[error("'{0}' in a negotiation is no KEY=VALUE")]
    NoPair(String),
    #[error("a binary value is neither 0x… nor 0b…")]
    NotBinary,
}

/// The pairs of a text, in order.
pub fn parse(bytes: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let text = std::str::from_utf8(bytes).map_err(|_| TextError::NotText)?;
    let pairs = text.split('\0').filter(|part| !part.is_empty());
    pairs
        .map(|part| {
            let pair = part.split_once('=').filter(|(key, _)| (1..=MAX_KEY_BYTES).contains(&key.len()));
            pair.ok_or_else(|| TextError::NoPair(part.chars().take(80).collect()))
        })
        .collect()
}

/// An answer that grows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text(Vec<u8>);

impl Text {
    pub fn add(&mut self, key: &str, value: impl std::fmt::Display) {
        use std::io::Write;
        write!(self.0, "{key}={value}\0").expect("memory takes it");
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A number, decimal or hexadecimal.
pub fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".into(), |text, b| text + &format!("{b:02x}"))
}

/// A binary value, in hexadecimal or base64.
pub fn binary(value: &str) -> Result<Vec<u8>, TextError> {
    let (head, digits) = value.split_at_checked(2).ok_or(TextError::NotBinary)?;
    match head {
        "0x" | "0X" => from_hex(digits),
        "0b" | "0B" => from_base64(digits),
        _ => None,
    }
    .ok_or(TextError::NotBinary)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let nibbles = digits.chars().map(|c| c.to_digit(16).map(|n| n as u8)).collect::<Option<Vec<u8>>>()?;
    // An odd number of digits: a zero is meant before the first.
    let (first, pairs) = nibbles.split_at(nibbles.len() % 2);
    Some(first.iter().copied().chain(pairs.chunks_exact(2).map(|p| p[0] << 4 | p[1])).collect())
}

fn from_base64(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.trim_end_matches('=');
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut held, mut bits) = (0u32, 0);
    for digit in digits.bytes() {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_told_from_noise() {
        assert_eq!(parse(b"A=1\0B=x=y\0\0").unwrap(), [("A", "1"), ("B", "x=y")]);
        assert_eq!(parse(b"").unwrap(), []);
        for bad in [&b"A\0"[..], b"=1\0", b"\xff=1\0"] {
            assert!(parse(bad).is_err());
        }
        let mut text = Text::default();
        text.add("A", 1);
        text.add("B", "x");
        assert_eq!(text.into_bytes(), b"A=1\0B=x\0");
    }

    #[test]
    fn binary_values_have_two_forms() {
        assert_eq!(binary("0x01fF").unwrap(), [1, 0xff]);
        assert_eq!(binary("0x1ff").unwrap(), [1, 0xff]);
        assert_eq!(binary("0bAf8=").unwrap(), [1, 0xff]);
        assert_eq!(binary("0bTWFu").unwrap(), b"Man");
        for bad in ["", "0", "01", "0xg1", "0b!"] {
            assert!(binary(bad).is_err(), "{bad}");
        }
        assert_eq!((number("0x10"), number("16"), number("-1")), (Some(16), Some(16), None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_pairs_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            prop_assert_eq!(binary(&hex(&bytes)).unwrap(), bytes);
        }
    }
}
