//! TLS 1.3 under framed connections, as a sans-io machine: bytes in, bytes out.
//!
//! Encryption only keeps others from reading and changing what passes. Who the other side is, the handshake of frames
//! above proves with the cluster's key, over the certificate of this very channel ([`Channel::Encrypted`]): somebody in
//! the middle has to show a certificate of his own, and then no proof fits. So certificates need no authority: each
//! process makes one when it first needs it, and keeps its key in memory only.
//!
//! An accepting side tells TLS from plain frames by the first byte ([`FIRST_BYTE`]), so one port serves both.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::{Arc, OnceLock};

/// What a stream of TLS begins with (a record of the handshake). No frame may begin so.
pub const FIRST_BYTE: u8 = 0x16;

/// How a connection carries its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Channel {
    #[default]
    Plain,
    /// SHA-256 of the certificate the accepting side has shown: the same at both ends, unless somebody is in between.
    Encrypted { certificate: [u8; 32] },
}

/// Plain bytes that one record holds at most.
pub const RECORD_BYTES: usize = 16 << 10;
/// What goes with them: header, type and tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;
/// More than any message of a handshake that is ours.
const HANDSHAKE_BYTES: usize = 4 << 10;

/// Room that `plain` bytes take at most when sealed.
fn sealed_bytes(plain: usize) -> usize {
    // A change of keys may go along.
    plain + (plain.div_ceil(RECORD_BYTES) + 1) * RECORD_OVERHEAD_BYTES + 64
}

enum Side {
    Caller(UnbufferedClientConnection),
    Listener(UnbufferedServerConnection),
}

/// One end of an encrypted connection.
pub struct Tls {
    side: Side,
    /// [`Channel::Encrypted`] once the handshake is over.
    channel: Option<Channel>,
}

/// The server's certificate, made when it is first needed, and everything else that connections share.
struct Shared {
    caller: Arc<ClientConfig>,
    listener: Arc<ServerConfig>,
    certificate: [u8; 32],
}

fn shared() -> Result<&'static Shared, String> {
    static SHARED: OnceLock<Result<Shared, String>> = OnceLock::new();
    SHARED.get_or_init(make_shared).as_ref().map_err(|e| format!("no TLS: {e}"))
}

fn make_shared() -> Result<Shared, String> {
    let made = rcgen::generate_simple_self_signed([NAME.to_string()]).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let certificate = made.cert.der().clone();
    let provider = Arc::new(provider::default_provider());
    let fingerprint = fingerprint(&certificate);
    let mut listener = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|e| e.to_string())?;
    // A resumed session would show no certificate, and connections live long.
    listener.send_tls13_tickets = 0;
    listener.session_storage = Arc::new(NoServerSessionStorage {});
    let mut caller = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ProvenAbove(provider.signature_verification_algorithms)))
        .with_no_client_auth();
    caller.resumption = Resumption::disabled();
    caller.enable_sni = false;
    Ok(Shared { caller: Arc::new(caller), listener: Arc::new(listener), certificate: fingerprint })
}

/// In certificates; means nothing.
const NAME: &str = "pstorage";

fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// Takes any certificate whose key the other side holds: that it is the right one is proven with the cluster's key, in
/// the handshake of frames.
#[derive(Debug)]
struct ProvenAbove(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for ProvenAbove {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl Tls {
    /// The side that connects. Its first bytes come out of [`Tls::receive`] with nothing received.
    pub fn caller() -> Result<Tls, String> {
        let name = ServerName::try_from(NAME).map_err(|e| e.to_string())?;
        let connection =
            UnbufferedClientConnection::new(shared()?.caller.clone(), name).map_err(|e| e.to_string())?;
        Ok(Tls { side: Side::Caller(connection), channel: None })
    }

    /// The side that accepts.
    pub fn listener() -> Result<Tls, String> {
        let connection =
            UnbufferedServerConnection::new(shared()?.listener.clone()).map_err(|e| e.to_string())?;
        Ok(Tls { side: Side::Listener(connection), channel: None })
    }

    /// `None` until the handshake is over; nothing can be sealed before.
    pub fn channel(&self) -> Option<Channel> {
        self.channel
    }

    /// Takes what it can of `incoming`; returns how many bytes of it are used up. What they held goes to `plain`, piece
    /// by piece; what is to be sent for it is put behind `outgoing`. Errors end the connection, with `outgoing` as last
    /// words.
    pub fn receive(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Vec<u8>,
        mut plain: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<usize, String> {
        let mut used = 0;
        loop {
            let rest = &mut incoming[used..];
            let (discard, turn) = match &mut self.side {
                Side::Caller(c) => advance(c.process_tls_records(rest), outgoing, &mut plain),
                Side::Listener(c) => advance(c.process_tls_records(rest), outgoing, &mut plain),
            };
            used += discard;
            match turn? {
                Turn::Again => {}
                Turn::Blocked => return Ok(used),
                Turn::Established => {
                    if self.channel.is_none() {
                        let certificate = self.certificate()?;
                        self.channel = Some(Channel::Encrypted { certificate });
                    }
                    return Ok(used);
                }
            }
        }
    }

    fn certificate(&self) -> Result<[u8; 32], String> {
        match &self.side {
            Side::Listener(_) => Ok(shared()?.certificate),
            Side::Caller(c) => {
                let shown = c.peer_certificates().and_then(|list| list.first());
                shown.map(fingerprint).ok_or_else(|| "the server showed no certificate".into())
            }
        }
    }

    /// Puts `plain` behind `outgoing`, encrypted. The handshake must be over.
    pub fn seal(&mut self, plain: &[u8], outgoing: &mut Vec<u8>) -> Result<(), String> {
        let mut nothing = |_: &[u8]| Err("received while sealing".to_string());
        loop {
            let turn = match &mut self.side {
                Side::Caller(c) => sealed(c.process_tls_records(&mut []), plain, outgoing, &mut nothing),
                Side::Listener(c) => sealed(c.process_tls_records(&mut []), plain, outgoing, &mut nothing),
            };
            if turn? {
                return Ok(());
            }
        }
    }
}

enum Turn {
    Again,
    Blocked,
    Established,
}

type Plain<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), String>;

/// Does what one state asks for; returns how many bytes are used up.
fn advance<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    plain: Plain<'_>,
) -> (usize, Result<Turn, String>) {
    let UnbufferedStatus { mut discard, state } = status;
    let turn = match state {
        Err(error) => Err(format!("TLS: {error}")),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Turn::Again),
                Some(Err(error)) => break Err(format!("TLS: {error}")),
                Some(Ok(record)) => {
                    discard += record.discard;
                    if let Err(why) = plain(record.payload) {
                        break Err(why);
                    }
                }
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut encode)) => {
            append(outgoing, HANDSHAKE_BYTES, |room| match encode.encode(room) {
                Ok(bytes) => Ok(bytes),
                Err(EncodeError::InsufficientSize(e)) => Err(Short::Needs(e.required_size)),
                Err(e) => Err(Short::Failed(e.to_string())),
            })
            .map(|()| Turn::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Turn::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Turn::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Turn::Established),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err("closed by the peer".into()),
        Ok(other) => Err(format!("TLS: {other:?} is not part of this protocol")),
    };
    (discard, turn)
}

/// One state on the way to sealing; true when it is done.
fn sealed<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    bytes: &[u8],
    outgoing: &mut Vec<u8>,
    plain: Plain<'_>,
) -> Result<bool, String> {
    if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
        return append(outgoing, sealed_bytes(bytes.len()), |room| match traffic.encrypt(bytes, room) {
            Ok(bytes) => Ok(bytes),
            Err(EncryptError::InsufficientSize(e)) => Err(Short::Needs(e.required_size)),
            Err(e) => Err(Short::Failed(e.to_string())),
        })
        .map(|()| true);
    }
    match advance(status, outgoing, plain).1? {
        Turn::Again => Ok(false),
        Turn::Blocked | Turn::Established => Err("TLS: sealed before the handshake was over".into()),
    }
}

enum Short {
    Needs(usize),
    Failed(String),
}

/// Has `fill` write behind what is in `outgoing`, with room for `guess` bytes, or as many as it then asks for.
fn append(
    outgoing: &mut Vec<u8>,
    guess: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, Short>,
) -> Result<(), String> {
    let have = outgoing.len();
    let mut room = guess;
    loop {
        outgoing.resize(have + room, 0);
        match fill(&mut outgoing[have..]) {
            Ok(bytes) => {
                outgoing.truncate(have + bytes);
                return Ok(());
            }
            Err(Short::Needs(bytes)) if bytes > room => room = bytes,
            Err(Short::Needs(_)) => return Err("TLS: no room is enough".into()),
            Err(Short::Failed(why)) => {
                outgoing.truncate(have);
                return Err(format!("TLS: {why}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries what each side has to say to the other, in pieces of `piece` bytes, until both have nothing to say.
    struct Pair {
        ends: [Tls; 2],
        /// On the way to each end.
        on_the_way: [Vec<u8>; 2],
        heard: [Vec<u8>; 2],
        piece: usize,
    }

    impl Pair {
        fn new(piece: usize) -> Pair {
            let ends = [Tls::caller().unwrap(), Tls::listener().unwrap()];
            Pair { ends, on_the_way: Default::default(), heard: Default::default(), piece }
        }

        fn carry(&mut self) -> Result<(), String> {
            let mut held: [Vec<u8>; 2] = Default::default();
            for _ in 0..100_000 {
                for to in [0, 1] {
                    let piece = self.piece.min(self.on_the_way[to].len());
                    held[to].extend(self.on_the_way[to].drain(..piece));
                    let mut out = Vec::new();
                    let heard = &mut self.heard[to];
                    let used = self.ends[to].receive(&mut held[to], &mut out, |bytes| {
                        heard.extend_from_slice(bytes);
                        Ok(())
                    })?;
                    held[to].drain(..used);
                    self.on_the_way[1 - to].extend(out);
                }
                if self.on_the_way.iter().all(Vec::is_empty) {
                    return Ok(());
                }
            }
            panic!("it never ends");
        }

        fn say(&mut self, from: usize, bytes: &[u8]) {
            let mut out = Vec::new();
            self.ends[from].seal(bytes, &mut out).unwrap();
            if bytes.len() > 64 {
                assert!(!out.windows(64).any(|w| w == &bytes[..64]), "readable on the way");
            }
            self.on_the_way[1 - from].extend(out);
        }
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    #[test]
    fn both_sides_talk_in_any_pieces_and_agree_on_the_certificate() {
        for piece in [1, 7, 1000, 1 << 20] {
            let mut pair = Pair::new(piece);
            assert_eq!(pair.ends[0].channel(), None);
            pair.carry().unwrap();
            let channel = pair.ends[0].channel().expect("the handshake is over");
            assert_ne!(channel, Channel::Plain);
            assert_eq!(pair.ends[1].channel(), Some(channel));
            for len in [1, 64, 16 << 10, (16 << 10) + 1, 50_000] {
                pair.say(0, &bytes(len));
                pair.say(1, &bytes(len / 2 + 1));
                pair.carry().unwrap();
                assert!(pair.heard[1] == bytes(len), "{len} bytes in pieces of {piece}");
                assert!(pair.heard[0] == bytes(len / 2 + 1));
                pair.heard = Default::default();
            }
        }
    }

    #[test]
    fn a_changed_byte_ends_the_connection() {
        let mut pair = Pair::new(1 << 20);
        pair.carry().unwrap();
        pair.say(0, &bytes(1000));
        pair.on_the_way[1][500] ^= 1;
        assert!(pair.carry().unwrap_err().contains("TLS"));
        assert!(pair.heard[1].is_empty());
    }

    #[test]
    fn garbage_is_refused() {
        let mut tls = Tls::listener().unwrap();
        let mut garbage = [FIRST_BYTE; 4096];
        assert!(tls.receive(&mut garbage, &mut Vec::new(), |_| Ok(())).is_err());
    }

    #[test]
    fn a_stream_begins_as_told() {
        let mut out = Vec::new();
        Tls::caller().unwrap().receive(&mut [], &mut out, |_| Ok(())).unwrap();
        assert_eq!(out[0], FIRST_BYTE);
    }
}
