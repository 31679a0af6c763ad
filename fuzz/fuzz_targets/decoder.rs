//! Any bytes into the frame decoder and every metadata decoder behind it: an error or a value, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shards::{Buf, HEAD_BYTES, RawFrame};
use wire::{DataMeta, Frame, Kind, auth, cs_api, decode, hello, join, mds_api};

fuzz_target!(|bytes: &[u8]| {
    let _ = DataMeta::decode(bytes);
    let _ = decode!(mds_api::MdsRequest, bytes);
    let _ = decode!(mds_api::MdsReply, bytes);
    let _ = decode!(cs_api::CsRequest, bytes);
    let _ = decode!(cs_api::CsReply, bytes);
    let _ = decode!(cs_api::CsCommand, bytes);
    let _ = decode!(hello::Hello, bytes);
    let _ = decode!(hello::Challenge, bytes);
    let _ = decode!(Option<auth::Proof>, bytes);
    let _ = decode!(join::SaltReply, bytes);
    if bytes.len() < HEAD_BYTES {
        return;
    }
    let mut head: [u8; HEAD_BYTES] = bytes[..HEAD_BYTES].try_into().expect("64 bytes");
    let meta = &bytes[HEAD_BYTES..];
    // Half of the inputs get valid checksums and lengths, or the fuzzer would never pass them.
    if head[63] & 1 == 1 {
        head[0..4].copy_from_slice(b"PSF1");
        head[4..6].copy_from_slice(&1u16.to_le_bytes());
        head[12..16].copy_from_slice(&(meta.len() as u32).to_le_bytes());
        head[16..20].copy_from_slice(&0u32.to_le_bytes());
        head[20..24].copy_from_slice(&wire::crc(meta).to_le_bytes());
        let crc = wire::crc(&head[..60]);
        head[60..64].copy_from_slice(&crc.to_le_bytes());
    }
    let _ = wire::framing(&head);
    if let Ok(frame) = Frame::decode(RawFrame { head, meta: Buf::from_slice(meta), payload: Buf::empty() }) {
        assert!(Kind::ALL.contains(&frame.head.kind));
        assert_eq!(Frame::decode(frame.encode()).expect("what was decoded encodes to the same").head.kind, frame.head.kind);
    }
});
