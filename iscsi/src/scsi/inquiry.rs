//! What a unit says of itself: INQUIRY and its pages (SPC-4, SBC-3).

use super::{BlockSize, Limits};
use crate::login::PORTAL_GROUP;
use sha2::{Digest, Sha256};

/// Who the unit is; the same on every gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// At most 8, 16 and 4 characters.
    pub vendor: String,
    pub product: String,
    pub revision: String,
    pub serial: String,
    /// Name of the target, of whose port descriptors tell.
    pub target: String,
}

/// The identifier of our only target port.
const PORT: u16 = 1;
/// What there is no unit behind: its qualifier and type.
pub const NO_UNIT: u8 = 0x7f;

fn fill(out: &mut Vec<u8>, text: &str, bytes: usize) {
    let printable = text.bytes().map(|b| if (0x20..0x7f).contains(&b) { b } else { b'?' });
    out.extend(printable.chain(std::iter::repeat(b' ')).take(bytes));
}

impl Identity {
    pub fn standard(&self) -> Vec<u8> {
        // A direct access block device after SPC-4; implicit asymmetric access; commands are queued.
        let mut out = vec![0, 0, 6, 0x12, 0, 0x10, 0, 0x02];
        fill(&mut out, &self.vendor, 8);
        fill(&mut out, &self.product, 16);
        fill(&mut out, &self.revision, 4);
        out.resize(58, 0);
        // SAM-4, SPC-4, SBC-3, iSCSI.
        [0x0080u16, 0x0460, 0x04c0, 0x0960].iter().for_each(|version| out.extend(version.to_be_bytes()));
        out.resize(96, 0);
        out[4] = (out.len() - 5) as u8;
        out
    }

    /// A page of vital product data; `None`: there is no such page.
    pub fn page(&self, page: u8, block: BlockSize, limits: &Limits) -> Option<Vec<u8>> {
        let body = match page {
            0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
            0x80 => self.serial.bytes().take(252).collect(),
            0x83 => self.designators(),
            0xb0 => limits.page(block),
            0xb1 => {
                // It does not rotate.
                let mut body = vec![0, 1];
                body.resize(60, 0);
                body
            }
            // UNMAP, WRITE SAME (16) and (10) unmap; what is unmapped reads as zeros; thin.
            0xb2 => vec![0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0],
            _ => return None,
        };
        let mut out = vec![0, page];
        out.extend((body.len() as u16).to_be_bytes());
        out.extend(body);
        Some(out)
    }

    fn designators(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut add = |protocol_and_set: u8, kind: u8, value: &[u8]| {
            out.extend([protocol_and_set, kind, 0, value.len() as u8]);
            out.extend_from_slice(value);
        };
        // Locally assigned (NAA 3): from what is the unit's for ever. One chance in 2^60 that two of them meet.
        let digest = Sha256::new()
            .chain_update(self.vendor.as_bytes())
            .chain_update([0])
            .chain_update(self.serial.as_bytes())
            .finalize();
        let mut name: [u8; 8] = digest[..8].try_into().expect("8 bytes");
        name[0] = 0x30 | name[0] & 0x0f;
        add(0x01, 0x03, &name);
        let mut vendor = Vec::new();
        fill(&mut vendor, &self.vendor, 8);
        vendor.extend(self.serial.bytes().take(200));
        add(0x02, 0x01, &vendor);
        // Of the iSCSI port: its number, its group, its name.
        add(0x51, 0x94, &[0, 0, 0, PORT as u8]);
        add(0x51, 0x95, &[0, 0, 0, PORTAL_GROUP as u8]);
        let mut port = format!("{},t,0x{PORTAL_GROUP:04x}\0", self.target).into_bytes();
        port.truncate(252);
        port.resize(port.len().next_multiple_of(4), 0);
        add(0x53, 0x98, &port);
        out
    }
}

/// The answer to REPORT TARGET PORT GROUPS: one group of one port, active and optimized.
pub fn port_groups(extended: bool) -> Vec<u8> {
    let group = [0x00, 0x0f, 0, PORTAL_GROUP as u8, 0, 0, 0, 1, 0, 0, 0, PORT as u8];
    let head: &[u8] = if extended { &[0x10, 0, 0, 0] } else { &[] };
    [&((head.len() + group.len()) as u32).to_be_bytes()[..], head, &group].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            vendor: "PSTORAGE".into(),
            product: "LUN".into(),
            revision: "1".into(),
            serial: "0123abcd".into(),
            target: "iqn.2026-11.test:a".into(),
        }
    }

    #[test]
    fn golden_inquiry() {
        let out = identity().standard();
        assert_eq!(out[..8], [0, 0, 6, 0x12, 91, 0x10, 0, 2]);
        assert_eq!(&out[8..36], b"PSTORAGELUN             1   ");
        let page = |n| identity().page(n, BlockSize::B512, &Limits::default());
        assert_eq!(page(0x80).unwrap(), b"\0\x80\0\x080123abcd");
        assert_eq!(page(0x00).unwrap(), [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
        assert_eq!(page(0xb0).unwrap().len(), 64);
        assert_eq!(page(0xb1).unwrap().len(), 64);
        assert_eq!(page(0xb2).unwrap(), [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
        assert_eq!(page(0x99), None);
        let names = page(0x83).unwrap();
        assert_eq!(names[4..8], [1, 3, 0, 8]);
        assert_eq!(names[8] >> 4, 3);
        assert!(names.windows(22).any(|w| w == b"iqn.2026-11.test:a,t,0"));
        assert_eq!(port_groups(false), [0, 0, 0, 12, 0, 15, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    }
}
