//! PDUs out of a stream of bytes. Whoever reads the socket asks for [`Assembler::room`], fills it and says how much: the next bytes
//! of a head, of a digest, or of data, which lands in the buffer that [`Land`] names and is not moved again.

use crate::pdu::{DIGEST_BYTES, HEAD_BYTES, Head, padding_bytes};
use shards::BufMut;
use thiserror::Error;

/// Which parts have checksums (CRC32C).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digests {
    pub head: bool,
    pub data: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AssemblyError {
    #[error("a PDU has {bytes} bytes of data, at most {most} are allowed")]
    TooLong { bytes: usize, most: usize },
    #[error("a {what} digest is wrong: the network or a device on the way changes bytes")]
    Digest { what: &'static str },
}

/// Where the data of a PDU goes: to a place in a buffer, which may be longer.
pub struct Land {
    pub buf: BufMut,
    pub offset_bytes: usize,
    pub bytes: usize,
}

impl Land {
    fn data(&self) -> &[u8] {
        &self.buf[self.offset_bytes..self.offset_bytes + self.bytes]
    }
}

/// What has come in.
pub enum Piece {
    Nothing,
    /// A head; [`Assembler::land`] is to be called if it has data.
    Head(Head),
    /// The PDU whose head was told last is complete.
    Pdu(Option<Land>),
}

enum Part {
    Head,
    Data(Land),
    Tail(Land),
}

pub struct Assembler {
    pub digests: Digests,
    /// Longest data of a PDU.
    pub most_bytes: usize,
    part: Part,
    /// Bytes of this part that are there, of those wanted.
    have: usize,
    want: usize,
    /// A head with its additional segments and digest, or what follows data.
    small: Vec<u8>,
    /// That of the PDU whose data comes in.
    head: Head,
}

impl Assembler {
    pub fn new(most_bytes: usize) -> Assembler {
        Assembler {
            digests: Digests::default(),
            most_bytes,
            part: Part::Head,
            have: 0,
            want: HEAD_BYTES,
            small: vec![0; HEAD_BYTES],
            head: Head([0; HEAD_BYTES]),
        }
    }

    /// The room for the next bytes; never empty, except between [`Piece::Head`] and [`Assembler::land`].
    pub fn room(&mut self) -> &mut [u8] {
        match &mut self.part {
            Part::Data(land) => &mut land.buf[land.offset_bytes + self.have..land.offset_bytes + land.bytes],
            Part::Head | Part::Tail(_) => &mut self.small[self.have..self.want],
        }
    }

    fn begin(&mut self, part: Part, want: usize) {
        (self.part, self.have, self.want) = (part, 0, want);
        if self.small.len() < want && !matches!(self.part, Part::Data(_)) {
            self.small.resize(want, 0);
        }
    }

    /// So many bytes were put into the room.
    pub fn filled(&mut self, bytes: usize) -> Result<Piece, AssemblyError> {
        self.have += bytes;
        assert!(self.have <= self.want, "no more than there was room for");
        if self.have < self.want {
            return Ok(Piece::Nothing);
        }
        match std::mem::replace(&mut self.part, Part::Head) {
            Part::Head => self.head_came(),
            Part::Data(land) => {
                let tail = padding_bytes(land.bytes) + if self.digests.data { DIGEST_BYTES } else { 0 };
                self.begin(Part::Tail(land), tail);
                if tail == 0 { self.filled(0) } else { Ok(Piece::Nothing) }
            }
            Part::Tail(land) => {
                if self.digests.data {
                    let (padding, digest) = self.small[..self.want].split_at(padding_bytes(land.bytes));
                    check(crc32c::crc32c_append(crc32c::crc32c(land.data()), padding), digest, "data")?;
                }
                self.begin(Part::Head, HEAD_BYTES);
                Ok(Piece::Pdu(Some(land)))
            }
        }
    }

    fn head_came(&mut self) -> Result<Piece, AssemblyError> {
        let head = Head(self.small[..HEAD_BYTES].try_into().expect("48 bytes"));
        let whole = HEAD_BYTES + head.more_bytes() + if self.digests.head { DIGEST_BYTES } else { 0 };
        if self.want < whole {
            self.want = whole;
            if self.small.len() < whole {
                self.small.resize(whole, 0);
            }
            return Ok(Piece::Nothing);
        }
        if self.digests.head {
            let (head, digest) = self.small[..whole].split_at(whole - DIGEST_BYTES);
            check(crc32c::crc32c(head), digest, "header")?;
        }
        if head.data_bytes() > self.most_bytes {
            return Err(AssemblyError::TooLong { bytes: head.data_bytes(), most: self.most_bytes });
        }
        self.head = head;
        Ok(Piece::Head(head))
    }

    /// Says where the data of the head goes, `None` if it has none.
    pub fn land(&mut self, land: Option<Land>) -> Result<Piece, AssemblyError> {
        match land {
            Some(land) => {
                let bytes = land.bytes;
                assert!(bytes > 0 && bytes == self.head.data_bytes(), "all the data has its place");
                self.begin(Part::Data(land), bytes);
                Ok(Piece::Nothing)
            }
            None => {
                self.begin(Part::Head, HEAD_BYTES);
                Ok(Piece::Pdu(None))
            }
        }
    }
}

fn check(crc: u32, digest: &[u8], what: &'static str) -> Result<(), AssemblyError> {
    // The only little-endian number of the protocol.
    if crc.to_le_bytes() == digest { Ok(()) } else { Err(AssemblyError::Digest { what }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pdu(data: &[u8], more: usize, digests: Digests) -> Vec<u8> {
        let mut out = vec![0x05; HEAD_BYTES + more];
        out[4..8].copy_from_slice(&((more as u32 / 4) << 24 | data.len() as u32).to_be_bytes());
        if digests.head {
            out.extend(crc32c::crc32c(&out).to_le_bytes());
        }
        if !data.is_empty() {
            let mut padded = data.to_vec();
            padded.resize(data.len().next_multiple_of(4), 0);
            out.extend_from_slice(&padded);
            if digests.data {
                out.extend(crc32c::crc32c(&padded).to_le_bytes());
            }
        }
        out
    }

    fn feed(assembler: &mut Assembler, mut bytes: &[u8], step: usize) -> Result<Vec<Vec<u8>>, AssemblyError> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            let room = assembler.room();
            let count = room.len().min(bytes.len()).min(step);
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            let mut piece = assembler.filled(count)?;
            if let Piece::Head(head) = piece {
                let bytes = head.data_bytes();
                let land =
                    (bytes > 0).then(|| Land { buf: BufMut::zeroed(bytes + 8), offset_bytes: 8, bytes });
                piece = assembler.land(land)?;
            }
            if let Piece::Pdu(land) = piece {
                got.push(land.map_or(Vec::new(), |land| land.buf[8..].to_vec()));
            }
        }
        Ok(got)
    }

    #[test]
    fn digests_are_those_of_the_rfc() {
        // RFC 7143, appendix A.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        let digests = Digests { head: true, data: true };
        let good = pdu(b"abcde", 8, digests);
        let fed = |bytes: &[u8]| {
            let mut assembler = Assembler::new(100);
            assembler.digests = digests;
            feed(&mut assembler, bytes, 7)
        };
        assert_eq!(fed(&good).unwrap(), [b"abcde"]);
        for at in (0..good.len()).filter(|at| !(4..8).contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(fed(&bad), Err(AssemblyError::Digest { .. })), "byte {at}");
        }
        assert!(matches!(
            feed(&mut Assembler::new(4), &pdu(b"abcde", 0, Digests::default()), 99),
            Err(AssemblyError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn pdus_come_whole_however_they_are_cut(
            datas in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..5),
            head in any::<bool>(), data in any::<bool>(), step in 1..60usize, more in 0..3usize,
        ) {
            let digests = Digests { head, data };
            let bytes: Vec<u8> = datas.iter().flat_map(|d| pdu(d, more * 4, digests)).collect();
            let mut assembler = Assembler::new(100);
            assembler.digests = digests;
            prop_assert_eq!(feed(&mut assembler, &bytes, step).unwrap(), datas);
        }
    }
}
