//! Mode pages: caching, control, informational exceptions. Two things can be set: the format of sense data, and a write protection.

use super::BlockSize;
use super::cdb::{ModeHeader, PageControl};
use super::sense::Sense;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Modes {
    /// Sense data is made of descriptors (D_SENSE).
    pub descriptor_sense: bool,
    /// Set by an initiator (SWP).
    pub write_protected: bool,
}

const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;
const ALL_PAGES: u8 = 0x3f;
const CODES: [u8; 3] = [0x08, 0x0a, 0x1c];

impl Modes {
    /// A page with its head.
    fn page(self, code: u8, control: PageControl) -> Option<Vec<u8>> {
        let only_changeable = control == PageControl::Changeable;
        let modes = if control == PageControl::Default { Modes::default() } else { self };
        let flag = |is_set: bool, bit: u8| if is_set || only_changeable { bit } else { 0 };
        let mut page = match code {
            // No write cache that could lose anything: what is answered is durable. Reads may be cached.
            0x08 => vec![0; 18],
            0x0a => {
                // No log of errors (GLTSD), commands may be reordered, a busy unit gets free in a time nobody knows.
                let fixed: [u8; 10] =
                    if only_changeable { [0; 10] } else { [0x02, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0] };
                let mut page = fixed.to_vec();
                page[0] |= flag(modes.descriptor_sense, D_SENSE);
                page[2] |= flag(modes.write_protected, SWP);
                page
            }
            // No exceptions are reported (DEXCPT).
            0x1c => {
                let mut page = vec![0; 10];
                page[0] = if only_changeable { 0 } else { 0x08 };
                page
            }
            _ => return None,
        };
        page.splice(0..0, [code, page.len() as u8]);
        Some(page)
    }

    /// The answer to MODE SENSE. `read_only`: nobody may write at all.
    pub fn sense(
        self,
        header: ModeHeader,
        control: PageControl,
        (page, subpage): (u8, u8),
        blocks: Option<(u64, BlockSize)>,
        read_only: bool,
    ) -> Result<Vec<u8>, Sense> {
        if control == PageControl::Saved {
            return Err(Sense::SAVING_UNSUPPORTED);
        }
        if !(subpage == 0 || subpage == 0xff) {
            return Err(Sense::INVALID_FIELD);
        }
        let codes = CODES.iter().filter(|code| page == ALL_PAGES || **code == page);
        let pages: Vec<u8> = codes.filter_map(|code| self.page(*code, control)).flatten().collect();
        if pages.is_empty() {
            return Err(Sense::INVALID_FIELD);
        }
        let descriptor = blocks.map_or(Vec::new(), |(count, block)| {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            [count.to_be_bytes(), block.bytes().to_be_bytes()].concat()
        });
        // Writes through the (absent) cache can be asked for (DPOFUA).
        let device = 0x10 | if read_only || self.write_protected { 0x80 } else { 0 };
        let rest = descriptor.len() + pages.len();
        let head = match header {
            ModeHeader::Six => vec![(rest + 3) as u8, 0, device, descriptor.len() as u8],
            ModeHeader::Ten => {
                let mut head = ((rest + 6) as u16).to_be_bytes().to_vec();
                head.extend([0, device, 0, 0, 0, descriptor.len() as u8]);
                head
            }
        };
        Ok([head, descriptor, pages].concat())
    }

    /// What MODE SELECT makes of it.
    pub fn select(self, header: ModeHeader, list: &[u8], list_bytes: usize) -> Result<Modes, Sense> {
        if list_bytes == 0 {
            return Ok(self);
        }
        let list = list.get(..list_bytes).ok_or(Sense::LIST_LENGTH)?;
        let (head_bytes, descriptor_bytes) = match header {
            ModeHeader::Six => (4, list.get(3).map(|b| usize::from(*b))),
            ModeHeader::Ten => (8, list.get(6..8).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))),
        };
        let mut rest =
            descriptor_bytes.and_then(|bytes| list.get(head_bytes + bytes..)).ok_or(Sense::LIST_LENGTH)?;
        let mut modes = self;
        while let [code, length, ..] = rest {
            let page = rest.get(..2 + usize::from(*length)).ok_or(Sense::LIST_LENGTH)?;
            rest = &rest[page.len()..];
            // The saveable bit means nothing here.
            let code = code & 0x7f;
            let current = self.page(code, PageControl::Current).ok_or(Sense::INVALID_PARAMETER)?;
            let changeable = self.page(code, PageControl::Changeable).ok_or(Sense::INVALID_PARAMETER)?;
            let is_fixed = |at: usize| (page[at] ^ current[at]) & !changeable[at] == 0;
            if page.len() != current.len() || !(2..page.len()).all(is_fixed) {
                return Err(Sense::INVALID_PARAMETER);
            }
            if code == 0x0a {
                modes.descriptor_sense = page[2] & D_SENSE != 0;
                modes.write_protected = page[4] & SWP != 0;
            }
        }
        if rest.is_empty() { Ok(modes) } else { Err(Sense::LIST_LENGTH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_can_be_set_is_set_and_nothing_else() {
        let modes = Modes::default();
        let sense =
            |m: Modes, control, page| m.sense(ModeHeader::Six, control, (page, 0), None, false).unwrap();
        let caching = sense(modes, PageControl::Current, 0x08);
        assert_eq!((caching.len(), caching[0], caching[2], caching[6]), (24, 23, 0x10, 0), "no write cache");
        let mut list = sense(modes, PageControl::Current, 0x0a);
        assert_eq!(list[4..], [0x0a, 10, 0x02, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
        assert_eq!(
            sense(modes, PageControl::Changeable, 0x0a)[4..],
            [0x0a, 10, 4, 0, 8, 0, 0, 0, 0, 0, 0, 0]
        );
        list[0] = 0;
        list[8] |= SWP;
        let set = modes.select(ModeHeader::Six, &list, list.len()).unwrap();
        assert_eq!(set, Modes { write_protected: true, descriptor_sense: false });
        assert_eq!(sense(set, PageControl::Current, 0x3f)[2], 0x90);
        list[7] = 0;
        assert_eq!(modes.select(ModeHeader::Six, &list, list.len()), Err(Sense::INVALID_PARAMETER));
        let mut wce = [&[0; 4], &caching[4..]].concat();
        wce[6] = 4;
        assert_eq!(modes.select(ModeHeader::Six, &wce, wce.len()), Err(Sense::INVALID_PARAMETER));
        let blocks = Some((1 << 40, BlockSize::B512));
        let ten = modes.sense(ModeHeader::Ten, PageControl::Current, (0x3f, 0), blocks, true).unwrap();
        assert_eq!(ten[..16], [0, 58, 0, 0x90, 0, 0, 0, 8, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]);
        for (control, page) in [(PageControl::Saved, 0x08), (PageControl::Current, 0x01)] {
            assert!(modes.sense(ModeHeader::Six, control, (page, 0), None, false).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_list_is_taken_or_refused(list in proptest::collection::vec(any::<u8>(), 0..60), length in 0..70usize) {
            for header in [ModeHeader::Six, ModeHeader::Ten] {
                let _ = Modes::default().select(header, &list, length);
            }
        }
    }
}
