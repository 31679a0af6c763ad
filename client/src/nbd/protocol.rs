//! The NBD protocol as a server speaks it ("fixed newstyle" negotiation, simple and structured replies, block status), after the
//! specification of the NBD project. Big endian. Pure: bytes in, bytes and requests out.

use smallvec::SmallVec;

/// What the server says first: two magic numbers, and its flags (fixed newstyle, no zeroes).
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";
pub const CLIENT_FLAGS_BYTES: usize = 4;
pub const OPTION_HEAD_BYTES: usize = 16;
pub const REQUEST_BYTES: usize = 28;
/// Longest data of an option: a name and a list of wishes.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Longest read or write.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const FIXED_NEWSTYLE: u32 = 1;
const NO_ZEROES: u32 = 2;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUPPORTED: u32 = 1 << 31 | 1;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 2;
const SEND_FLUSH: u16 = 4;
const SEND_FUA: u16 = 8;
const SEND_TRIM: u16 = 32;
const SEND_WRITE_ZEROES: u16 = 64;
const CAN_MULTI_CONN: u16 = 256;

const FLAG_FUA: u16 = 1;

/// The one metadata context: which parts hold data, and its number.
const ALLOCATION: &[u8] = b"base:allocation";
const ALLOCATION_ID: u32 = 1;
/// Of a stretch of [`ALLOCATION`]: no room is taken, and it reads as zeros.
const HOLE_AND_ZERO: u32 = 3;

/// A structured reply in one piece.
const DONE: u16 = 1;
const PIECE_DATA: u16 = 1;
const PIECE_STATUS: u16 = 5;
const PIECE_ERROR: u16 = 1 << 15 | 1;

/// What client and server have agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Agreed {
    /// Reads are answered by structured replies.
    pub structured: bool,
    /// The client may ask which parts hold data.
    pub allocation: bool,
}

/// What is offered to clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub name: String,
    pub size_bytes: u64,
    pub read_only: bool,
}

impl Offer {
    fn flags(&self) -> u16 {
        let access = if self.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES };
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | access
    }

    /// Clients that name none mean this one.
    fn is_meant(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// How the negotiation goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another option follows.
    Option,
    /// Requests follow.
    Requests,
    /// The connection ends.
    End,
}

/// The client's flags; whether it wants the zeroes of old times.
pub fn client_flags(bytes: [u8; CLIENT_FLAGS_BYTES]) -> Result<bool, String> {
    let flags = u32::from_be_bytes(bytes);
    if flags & !(FIXED_NEWSTYLE | NO_ZEROES) != 0 || flags & FIXED_NEWSTYLE == 0 {
        return Err(format!("client flags {flags:#x}: fixed newstyle negotiation is needed"));
    }
    Ok(flags & NO_ZEROES == 0)
}

/// Number of an option, and the length of its data.
pub fn option_head(bytes: &[u8; OPTION_HEAD_BYTES]) -> Result<(u32, u32), String> {
    let magic = u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"));
    if magic != OPTION_MAGIC {
        return Err(format!("an option begins with {magic:#x}"));
    }
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let (option, length) = (word(8), word(12));
    if length > MAX_OPTION_BYTES {
        return Err(format!("option {option} with {length} bytes of data"));
    }
    Ok((option, length))
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = REPLY_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    out
}

/// The name in the data of INFO and GO.
fn wanted_name(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (count, wishes) = rest.split_first_chunk::<2>()?;
    (wishes.len() == usize::from(u16::from_be_bytes(*count)) * 2).then_some(name)
}

/// The name in the data of LIST_META_CONTEXT and SET_META_CONTEXT, and what is asked for.
fn wanted_contexts(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let text = |data: &'_ [u8]| -> Option<(usize, usize)> {
        let length = u32::from_be_bytes(*data.first_chunk::<4>()?) as usize;
        (data.len() - 4 >= length).then_some((4, 4 + length))
    };
    let (from, to) = text(data)?;
    let (name, rest) = (&data[from..to], &data[to..]);
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (from, to) = text(rest)?;
        queries.push(&rest[from..to]);
        rest = &rest[to..];
    }
    rest.is_empty().then_some((name, queries))
}

fn contexts(offer: &Offer, agreed: &mut Agreed, option: u32, data: &[u8]) -> Vec<u8> {
    const LIST: u32 = 9;
    if !agreed.structured {
        return reply(option, REP_ERR_INVALID, b"structured replies come first");
    }
    let Some((name, queries)) = wanted_contexts(data) else {
        return reply(option, REP_ERR_INVALID, b"the data is cut short");
    };
    if !offer.is_meant(name) {
        return reply(option, REP_ERR_UNKNOWN, b"there is no export of this name");
    }
    let is_listed = option == LIST && (queries.is_empty() || queries.contains(&&b"base:"[..]));
    let is_wanted = is_listed || queries.contains(&ALLOCATION);
    if option != LIST {
        agreed.allocation = is_wanted;
    }
    let context = [&ALLOCATION_ID.to_be_bytes()[..], ALLOCATION].concat();
    let told = if is_wanted { reply(option, REP_META_CONTEXT, &context) } else { Vec::new() };
    [told, reply(option, REP_ACK, &[])].concat()
}

/// Answers an option. `zeroes`: what [`client_flags`] said.
pub fn option(offer: &Offer, agreed: &mut Agreed, option: u32, data: &[u8], zeroes: bool) -> (Vec<u8>, Next) {
    match option {
        // EXPORT_NAME, of old clients: it has no way to refuse.
        1 if !offer.is_meant(data) => (Vec::new(), Next::End),
        1 => {
            let mut out = offer.size_bytes.to_be_bytes().to_vec();
            out.extend(offer.flags().to_be_bytes());
            out.resize(out.len() + if zeroes { 124 } else { 0 }, 0);
            (out, Next::Requests)
        }
        // ABORT
        2 => (reply(option, REP_ACK, &[]), Next::End),
        // LIST
        3 if !data.is_empty() => (reply(option, REP_ERR_INVALID, b"LIST has no data"), Next::Option),
        3 => {
            let mut server = (offer.name.len() as u32).to_be_bytes().to_vec();
            server.extend_from_slice(offer.name.as_bytes());
            ([reply(option, REP_SERVER, &server), reply(option, REP_ACK, &[])].concat(), Next::Option)
        }
        // INFO and GO
        6 | 7 => match wanted_name(data) {
            None => (reply(option, REP_ERR_INVALID, b"the data is cut short"), Next::Option),
            Some(name) if !offer.is_meant(name) => {
                (reply(option, REP_ERR_UNKNOWN, b"there is no export of this name"), Next::Option)
            }
            Some(_) => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend(offer.size_bytes.to_be_bytes());
                export.extend(offer.flags().to_be_bytes());
                let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                [1, 4096, MAX_PAYLOAD_BYTES].iter().for_each(|size| sizes.extend(size.to_be_bytes()));
                let replies = [(REP_INFO, export), (REP_INFO, sizes), (REP_ACK, Vec::new())];
                let all = replies.iter().flat_map(|(kind, data)| reply(option, *kind, data)).collect();
                (all, if option == 7 { Next::Requests } else { Next::Option })
            }
        },
        // STRUCTURED_REPLY
        8 if !data.is_empty() => {
            (reply(option, REP_ERR_INVALID, b"STRUCTURED_REPLY has no data"), Next::Option)
        }
        8 => {
            agreed.structured = true;
            (reply(option, REP_ACK, &[]), Next::Option)
        }
        // LIST_META_CONTEXT and SET_META_CONTEXT
        9 | 10 => (contexts(offer, agreed, option, data), Next::Option),
        _ => (reply(option, REP_ERR_UNSUPPORTED, &[]), Next::Option),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    Read,
    /// Its payload follows the request.
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub command: Command,
    /// Durable when answered.
    pub fua: bool,
    pub cookie: u64,
    pub offset_bytes: u64,
    pub length_bytes: u32,
}

/// Why a request is not done, as the protocol numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Errno {
    NotPermitted = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
}

/// Reads a request. `Ok(Err)`: what can be answered with an error. `Err`: the connection can't go on.
#[allow(clippy::type_complexity)]
pub fn request(
    offer: &Offer,
    agreed: Agreed,
    bytes: &[u8; REQUEST_BYTES],
) -> Result<Result<Request, (u64, Errno, u32)>, String> {
    let magic = u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes"));
    if magic != REQUEST_MAGIC {
        return Err(format!("a request begins with {magic:#x}"));
    }
    let flags = u16::from_be_bytes(bytes[4..6].try_into().expect("2 bytes"));
    let kind = u16::from_be_bytes(bytes[6..8].try_into().expect("2 bytes"));
    let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("8 bytes"));
    let offset_bytes = u64::from_be_bytes(bytes[16..24].try_into().expect("8 bytes"));
    let length_bytes = u32::from_be_bytes(bytes[24..28].try_into().expect("4 bytes"));
    let command = match kind {
        0 => Command::Read,
        1 => Command::Write,
        2 => Command::Disconnect,
        3 => Command::Flush,
        4 => Command::Trim,
        6 => Command::WriteZeroes,
        7 if agreed.allocation => Command::BlockStatus,
        _ => return Ok(Err((cookie, Errno::Invalid, 0))),
    };
    // A payload must be read, whatever becomes of it; one that is too long may be no payload at all.
    let payload_bytes = if command == Command::Write { length_bytes } else { 0 };
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(format!("a write of {length_bytes} bytes"));
    }
    let refuse = |why| Ok(Err((cookie, why, payload_bytes)));
    let changes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
    let has_range = changes || matches!(command, Command::Read | Command::BlockStatus);
    let end = offset_bytes.checked_add(u64::from(length_bytes));
    match command {
        _ if changes && offer.read_only => refuse(Errno::NotPermitted),
        Command::Read if length_bytes > MAX_PAYLOAD_BYTES => refuse(Errno::Invalid),
        // There is no structured reply without data.
        Command::Read if length_bytes == 0 && agreed.structured => refuse(Errno::Invalid),
        Command::BlockStatus if length_bytes == 0 => refuse(Errno::Invalid),
        _ if has_range && end.is_none_or(|end| end > offer.size_bytes) => {
            refuse(if command == Command::Write { Errno::NoSpace } else { Errno::Invalid })
        }
        _ => Ok(Ok(Request { command, fua: flags & FLAG_FUA != 0, cookie, offset_bytes, length_bytes })),
    }
}

/// What an answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Done,
    Failed(Errno),
    /// So many bytes from here on follow, read by a structured reply.
    Data {
        offset_bytes: u64,
        length_bytes: u32,
    },
    /// The same as an error, to who asked for a structured reply.
    NoData(Errno),
    /// From where was asked on, so many bytes are a hole, or hold data.
    Status {
        length_bytes: u32,
        is_hole: bool,
    },
}

/// The head of an answer; the data of a read follows it.
pub fn answer(cookie: u64, answer: Answer) -> SmallVec<[u8; 32]> {
    let simple = |error: u32| {
        let mut out = SmallVec::new();
        out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&error.to_be_bytes());
        out.extend_from_slice(&cookie.to_be_bytes());
        out
    };
    let piece = |kind: u16, head: &[u8], behind: u32| {
        let mut out = SmallVec::new();
        out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&DONE.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&(head.len() as u32 + behind).to_be_bytes());
        out.extend_from_slice(head);
        out
    };
    match answer {
        Answer::Done => simple(0),
        Answer::Failed(errno) => simple(errno as u32),
        Answer::Data { offset_bytes, length_bytes } => {
            piece(PIECE_DATA, &offset_bytes.to_be_bytes(), length_bytes)
        }
        Answer::NoData(errno) => {
            let mut error = [0; 6]; // The number, and a message of no length.
            error[..4].copy_from_slice(&(errno as u32).to_be_bytes());
            piece(PIECE_ERROR, &error, 0)
        }
        Answer::Status { length_bytes, is_hole } => {
            let flags = if is_hole { HOLE_AND_ZERO } else { 0 };
            let words = [ALLOCATION_ID, length_bytes, flags].map(u32::to_be_bytes);
            piece(PIECE_STATUS, words.as_flattened(), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(read_only: bool) -> Offer {
        Offer { name: "image".into(), size_bytes: 1 << 20, read_only }
    }

    fn raw(flags: u16, kind: u16, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&flags.to_be_bytes());
        out[6..8].copy_from_slice(&kind.to_be_bytes());
        out[8..16].copy_from_slice(&7u64.to_be_bytes());
        out[16..24].copy_from_slice(&offset.to_be_bytes());
        out[24..].copy_from_slice(&length.to_be_bytes());
        out
    }

    #[test]
    fn magic_numbers_are_those_of_the_protocol() {
        assert_eq!(GREETING[..8], 0x4e42_444d_4147_4943u64.to_be_bytes());
        assert_eq!(GREETING[8..16], 0x4948_4156_454f_5054u64.to_be_bytes());
        assert_eq!(
            answer(7, Answer::Failed(Errno::NoSpace))[..],
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 7]
        );
        let head = |kind: [u8; 2], length: u8| {
            let magic = [0x66, 0x8e, 0x33, 0xef, 0, 1];
            [&magic[..], &kind, &7u64.to_be_bytes(), &[0, 0, 0, length]].concat()
        };
        assert_eq!(
            answer(7, Answer::Data { offset_bytes: 9, length_bytes: 100 })[..],
            [&head([0, 1], 108)[..], &9u64.to_be_bytes()].concat()[..]
        );
        assert_eq!(
            answer(7, Answer::NoData(Errno::Io))[..],
            [&head([0x80, 1], 6)[..], &[0, 0, 0, 5, 0, 0]].concat()[..]
        );
        assert_eq!(
            answer(7, Answer::Status { length_bytes: 5, is_hole: true })[..],
            [&head([0, 5], 12)[..], &[0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 3]].concat()[..]
        );
        assert!(client_flags([0, 0, 0, 1]).unwrap() && !client_flags([0, 0, 0, 3]).unwrap());
        assert!(client_flags([0, 0, 0, 2]).is_err() && client_flags([0, 0, 0, 9]).is_err());
    }

    #[test]
    fn an_export_is_found_by_its_name_or_none() {
        let go = |name: &[u8]| [&(name.len() as u32).to_be_bytes()[..], name, &[0, 1, 0, 3]].concat();
        for (data, next) in
            [(go(b"image"), Next::Requests), (go(b""), Next::Requests), (go(b"x"), Next::Option)]
        {
            assert_eq!(ask(false, 7, &data).1, next);
            assert_eq!(ask(false, 6, &data).1, Next::Option);
        }
        for cut in 0..go(b"image").len() {
            let (out, next) = ask(false, 7, &go(b"image")[..cut]);
            assert_eq!(
                (next, &out[12..16]),
                (Next::Option, &REP_ERR_INVALID.to_be_bytes()[..]),
                "cut at {cut}"
            );
        }
        let (out, next) = ask(true, 1, b"image");
        assert_eq!((out.len(), next), (8 + 2 + 124, Next::Requests));
        assert_eq!(
            out[8..10],
            (HAS_FLAGS | READ_ONLY | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN).to_be_bytes()
        );
        assert_eq!(ask(false, 1, b"other").1, Next::End);
        assert_eq!(ask(false, 5, b"").0[12..16], REP_ERR_UNSUPPORTED.to_be_bytes());
    }

    /// Answers an option of a client with which nothing was agreed, that wants the zeroes.
    fn ask(read_only: bool, number: u32, data: &[u8]) -> (Vec<u8>, Next) {
        option(&offer(read_only), &mut Agreed::default(), number, data, true)
    }

    #[test]
    fn allocation_is_told_to_who_asks_for_it_by_its_name() {
        let queries = |name: &[u8], queries: &[&[u8]]| {
            let text = |text: &[u8]| [&(text.len() as u32).to_be_bytes()[..], text].concat();
            let all: Vec<u8> = queries.iter().flat_map(|q| text(q)).collect();
            [text(name), (queries.len() as u32).to_be_bytes().to_vec(), all].concat()
        };
        let mut agreed = Agreed::default();
        let wanted = queries(b"image", &[b"qemu:dirty-bitmap:", b"base:allocation"]);
        let kind = |out: &[u8]| u32::from_be_bytes(out[12..16].try_into().unwrap());
        let (out, _) = option(&offer(false), &mut agreed, 10, &wanted, false);
        assert_eq!(
            (kind(&out), agreed),
            (REP_ERR_INVALID, Agreed::default()),
            "structured replies come first"
        );
        assert_eq!(kind(&option(&offer(false), &mut agreed, 8, b"", false).0), REP_ACK);
        let (out, next) = option(&offer(false), &mut agreed, 10, &wanted, false);
        assert_eq!((kind(&out), next, agreed.allocation), (REP_META_CONTEXT, Next::Option, true));
        assert_eq!(out[20..39], [&[0, 0, 0, 1][..], b"base:allocation"].concat());
        let (out, _) = option(&offer(false), &mut agreed, 9, &queries(b"", &[]), false);
        assert_eq!(kind(&out), REP_META_CONTEXT, "all there are");
        for cut in 0..wanted.len() {
            let (out, _) = option(&offer(false), &mut agreed, 10, &wanted[..cut], false);
            assert_eq!(kind(&out), REP_ERR_INVALID, "cut at {cut}");
        }
        assert!(agreed.allocation);
        let (out, _) = option(&offer(false), &mut agreed, 10, &queries(b"x", &[]), false);
        assert_eq!(kind(&out), REP_ERR_UNKNOWN);
        let status = raw(0, 7, 4096, 8192);
        let asked = request(&offer(false), agreed, &status).unwrap().unwrap();
        assert_eq!((asked.command, asked.length_bytes), (Command::BlockStatus, 8192));
        let (out, _) = option(&offer(false), &mut agreed, 10, &queries(b"image", &[b"base:other"]), false);
        assert_eq!((kind(&out), agreed.allocation), (REP_ACK, false));
        assert_eq!(request(&offer(false), agreed, &status).unwrap(), Err((7, Errno::Invalid, 0)));
    }

    #[test]
    fn requests_stay_within_the_export() {
        let size = 1u64 << 20;
        let all = Agreed { structured: true, allocation: true };
        let ask =
            |kind, offset, length| request(&offer(false), all, &raw(FLAG_FUA, kind, offset, length)).unwrap();
        let read = ask(0, size - 4096, 4096).unwrap();
        assert_eq!((read.command, read.fua, read.cookie, read.length_bytes), (Command::Read, true, 7, 4096));
        assert_eq!(ask(0, size - 4095, 4096), Err((7, Errno::Invalid, 0)));
        assert_eq!(ask(1, size, 4096), Err((7, Errno::NoSpace, 4096)), "its payload has to be skipped");
        assert_eq!(ask(4, u64::MAX, 2), Err((7, Errno::Invalid, 0)));
        assert_eq!(ask(9, 0, 0), Err((7, Errno::Invalid, 0)));
        assert!(ask(3, u64::MAX, 0).is_ok() && ask(6, 0, 1 << 20).is_ok());
        let write = raw(0, 1, 0, 512);
        assert_eq!(request(&offer(true), all, &write).unwrap(), Err((7, Errno::NotPermitted, 512)));
        assert!(request(&offer(false), all, &raw(0, 1, 0, MAX_PAYLOAD_BYTES + 1)).is_err());
        assert!(request(&offer(false), all, &[0; REQUEST_BYTES]).is_err());
    }

    proptest! {
        #[test]
        fn anything_is_answered_or_refused(
            head in any::<[u8; REQUEST_BYTES]>(),
            number in 0..12u32,
            data in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut with_magic = head;
            with_magic[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            let mut agreed = Agreed { structured: true, allocation: true };
            for bytes in [head, with_magic] {
                if let Ok(Ok(request)) = request(&offer(false), agreed, &bytes)
                    && !matches!(request.command, Command::Flush | Command::Disconnect)
                {
                    prop_assert!(request.offset_bytes + u64::from(request.length_bytes) <= 1 << 20);
                }
            }
            let _ = option(&offer(false), &mut agreed, number, &data, true);
            let _ = option_head(head[..16].try_into().unwrap());
        }
    }
}
