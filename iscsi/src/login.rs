//! Login (RFC 7143, section 6): who the initiator is, whom it wants, proof of the secret, and the parameters of the session.
//!
//! Each answer says what holds; the text of an initiator may come in several PDUs, ours fits one.

use crate::Nexus;
use crate::assembler::Digests;
use crate::chap::{Algorithm, CHALLENGE_BYTES, MAX_CHALLENGE_BYTES};
use crate::pdu::{LoginHead, Response};
use crate::text::{self, MAX_TEXT_BYTES, Text};
use std::sync::Arc;

/// Data of a PDU that initiators may send us.
pub const MAX_RECEIVE_BYTES: u32 = 256 << 10;
/// The longest burst that we ask for, or send.
const MAX_BURST_BYTES: u32 = 1 << 20;
/// Data that comes with a command, unasked for.
const FIRST_BURST_BYTES: u32 = 64 << 10;
/// Data of one PDU that an initiator takes if it says nothing.
const DEFAULT_SEND_BYTES: u32 = 8 << 10;
const DEFAULT_MAX_BURST_BYTES: u32 = 256 << 10;
/// Largest length that can be negotiated.
const MOST_BYTES: u32 = (1 << 24) - 1;
/// All our targets have one portal group.
pub const PORTAL_GROUP: u16 = 1;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// A name and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    pub user: String,
    pub secret: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.user)
    }
}

/// What a login must know of a target.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TargetInfo {
    pub name: String,
    pub alias: String,
    /// Who may log in; nobody named: everybody.
    pub accounts: Vec<Account>,
    /// With which the target proves itself, if the initiator wants that.
    pub mutual: Option<Account>,
    /// Initiators that may log in by name; none named: all.
    pub initiators: Vec<String>,
    /// Addresses to tell in discovery.
    pub portals: Vec<String>,
}

/// The targets that are served at present.
pub trait Catalog {
    fn target(&self, name: &str) -> Option<Arc<TargetInfo>>;
    fn targets(&self) -> Vec<Arc<TargetInfo>>;
}

/// What was negotiated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parameters {
    pub digests: Digests,
    pub immediate_data: bool,
    /// Data of a PDU that the initiator takes.
    pub max_send_bytes: u32,
    pub max_burst_bytes: u32,
    pub first_burst_bytes: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            digests: Digests::default(),
            immediate_data: true,
            max_send_bytes: DEFAULT_SEND_BYTES,
            max_burst_bytes: DEFAULT_MAX_BURST_BYTES,
            first_burst_bytes: FIRST_BURST_BYTES,
        }
    }
}

/// Why a login is refused: class and detail of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the initiator breaks the protocol of logins")]
    InitiatorError = 0x0200,
    #[error("the name or secret is wrong, or none was given where one is needed")]
    Authentication = 0x0201,
    #[error("this initiator is not among those that may use the target")]
    Forbidden = 0x0202,
    #[error("there is no such target here")]
    NotFound = 0x0203,
    #[error("the initiator speaks another version of iSCSI")]
    Version = 0x0205,
    #[error("more than one connection for each session is not supported")]
    TooManyConnections = 0x0206,
    #[error("the login lacks a name")]
    MissingParameter = 0x0207,
}

/// The end of a login.
#[derive(Clone, Debug)]
pub struct LoggedIn {
    pub nexus: Nexus,
    /// `None`: a discovery session.
    pub target: Option<Arc<TargetInfo>>,
    pub user: Option<String>,
    pub parameters: Parameters,
}

pub enum Step {
    /// Answer and go on.
    Answer(Response, Vec<u8>),
    /// Answer; requests follow.
    Finish(Response, Vec<u8>, LoggedIn),
    /// Answer and end.
    Refuse(Response, Refusal),
}

/// How far the proof of the secret is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Proof {
    NotAsked,
    /// The method is settled; the initiator names an algorithm next.
    Chosen,
    Challenged(Algorithm),
    Done,
}

/// What must be random of a login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Challenge {
    pub id: u8,
    pub bytes: [u8; CHALLENGE_BYTES],
}

/// A login that goes on.
pub struct Login {
    challenge: Challenge,
    /// What the session will be known by.
    tsih: u16,
    /// Text of PDUs with more to come.
    held: Vec<u8>,
    initiator: Option<String>,
    discovery: bool,
    target: Option<Arc<TargetInfo>>,
    user: Option<String>,
    proof: Proof,
    parameters: Parameters,
    /// Whether we have said what we take.
    declared: bool,
    told_group: bool,
}

impl Login {
    pub fn new(challenge: Challenge, tsih: u16) -> Login {
        Login {
            challenge,
            tsih,
            held: Vec::new(),
            initiator: None,
            discovery: false,
            target: None,
            user: None,
            proof: Proof::NotAsked,
            parameters: Parameters::default(),
            declared: false,
            told_group: false,
        }
    }

    pub fn request(&mut self, head: &LoginHead, data: &[u8], catalog: &dyn Catalog) -> Step {
        match self.answer(head, data, catalog) {
            Ok(step) => step,
            Err(refusal) => Step::Refuse(self.response(head, false, refusal as u16), refusal),
        }
    }

    fn response(&self, head: &LoginHead, transit: bool, status: u16) -> Response {
        let done = transit && head.next_stage == FULL_FEATURE;
        Response::Login {
            task: head.task,
            transit,
            more: false,
            stage: head.stage,
            next_stage: head.next_stage,
            isid: head.isid,
            tsih: if done { self.tsih } else { head.tsih },
            status,
        }
    }

    fn answer(&mut self, head: &LoginHead, data: &[u8], catalog: &dyn Catalog) -> Result<Step, Refusal> {
        if head.version_min != 0 {
            return Err(Refusal::Version);
        }
        if head.tsih != 0 {
            // To join a session, or to go on with one: neither is there at recovery level 0 with one connection.
            return Err(Refusal::TooManyConnections);
        }
        if !matches!(head.stage, SECURITY | OPERATIONAL) || (head.more && head.transit) {
            return Err(Refusal::InitiatorError);
        }
        if self.held.len() + data.len() > MAX_TEXT_BYTES {
            return Err(Refusal::InitiatorError);
        }
        self.held.extend_from_slice(data);
        if head.more {
            return Ok(Step::Answer(self.response(head, false, 0), Vec::new()));
        }
        let text = std::mem::take(&mut self.held);
        let pairs = text::parse(&text).map_err(|_| Refusal::InitiatorError)?;
        if self.initiator.is_none() {
            self.identify(&pairs, catalog)?;
        }
        let mut out = Text::default();
        if !self.discovery && !self.told_group {
            self.told_group = true;
            out.add("TargetPortalGroupTag", PORTAL_GROUP);
            if let Some(target) = self.target.as_ref().filter(|t| !t.alias.is_empty()) {
                out.add("TargetAlias", &target.alias);
            }
        }
        self.prove(&pairs, &mut out)?;
        let secure = !self.needs_proof() || self.proof == Proof::Done;
        if head.stage == OPERATIONAL && !secure {
            return Err(Refusal::Authentication);
        }
        self.negotiate(&pairs, &mut out);
        if head.stage == OPERATIONAL && !self.declared {
            self.declared = true;
            out.add("MaxRecvDataSegmentLength", MAX_RECEIVE_BYTES);
        }
        let wanted = head.transit && head.next_stage > head.stage && matches!(head.next_stage, 1 | 3);
        if head.transit && !wanted {
            return Err(Refusal::InitiatorError);
        }
        // An initiator that began a proof is to end it, even if none is needed.
        let transit = wanted && secure && matches!(self.proof, Proof::NotAsked | Proof::Done);
        let response = self.response(head, transit, 0);
        if !transit || head.next_stage != FULL_FEATURE {
            return Ok(Step::Answer(response, out.into_bytes()));
        }
        let logged_in = LoggedIn {
            nexus: Nexus { initiator: self.initiator.clone().unwrap_or_default(), isid: head.isid },
            target: self.target.clone(),
            user: self.user.clone(),
            parameters: self.parameters.clone(),
        };
        Ok(Step::Finish(response, out.into_bytes(), logged_in))
    }

    /// From the first request: who wants what.
    fn identify(&mut self, pairs: &[(&str, &str)], catalog: &dyn Catalog) -> Result<(), Refusal> {
        let value = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        let initiator = value("InitiatorName").filter(|name| !name.is_empty() && name.len() <= 223);
        let initiator = initiator.ok_or(Refusal::MissingParameter)?;
        self.discovery = value("SessionType") == Some("Discovery");
        if !self.discovery {
            let name = value("TargetName").ok_or(Refusal::MissingParameter)?;
            let target = catalog.target(name).ok_or(Refusal::NotFound)?;
            if !target.initiators.is_empty() && !target.initiators.iter().any(|i| i == initiator) {
                return Err(Refusal::Forbidden);
            }
            self.target = Some(target);
        }
        self.initiator = Some(initiator.to_string());
        Ok(())
    }

    fn needs_proof(&self) -> bool {
        self.target.as_ref().is_some_and(|target| !target.accounts.is_empty())
    }

    /// The part of CHAP in a text.
    fn prove(&mut self, pairs: &[(&str, &str)], out: &mut Text) -> Result<(), Refusal> {
        let value = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        if let Some(methods) = value("AuthMethod") {
            let offers = |method| methods.split(',').any(|m| m == method);
            match self.needs_proof() {
                true if offers("CHAP") => {
                    out.add("AuthMethod", "CHAP");
                    self.proof = Proof::Chosen;
                }
                false if offers("None") => out.add("AuthMethod", "None"),
                _ => return Err(Refusal::Authentication),
            }
        }
        if let Some(algorithms) = value("CHAP_A") {
            if self.proof != Proof::Chosen {
                return Err(Refusal::InitiatorError);
            }
            let mut known = algorithms.split(',').filter_map(text::number).filter_map(Algorithm::from_number);
            let algorithm = known.next().ok_or(Refusal::Authentication)?;
            out.add("CHAP_A", algorithm.number());
            out.add("CHAP_I", self.challenge.id);
            out.add("CHAP_C", text::hex(&self.challenge.bytes));
            self.proof = Proof::Challenged(algorithm);
        } else if let (Some(user), Some(proof)) = (value("CHAP_N"), value("CHAP_R")) {
            let Proof::Challenged(algorithm) = self.proof else { return Err(Refusal::InitiatorError) };
            self.check(algorithm, user, proof)?;
            if let (Some(id), Some(challenge)) = (value("CHAP_I"), value("CHAP_C")) {
                self.prove_ourselves(algorithm, id, challenge, out)?;
            }
            self.user = Some(user.to_string());
            self.proof = Proof::Done;
        }
        Ok(())
    }

    fn check(&self, algorithm: Algorithm, user: &str, proof: &str) -> Result<(), Refusal> {
        let proof = text::binary(proof).map_err(|_| Refusal::InitiatorError)?;
        let target = self.target.as_ref().ok_or(Refusal::InitiatorError)?;
        let Challenge { id, bytes } = &self.challenge;
        let mut known = target.accounts.iter().filter(|account| account.user == user);
        let good = known.any(|account| algorithm.is_proof(&proof, *id, account.secret.as_bytes(), bytes));
        if good { Ok(()) } else { Err(Refusal::Authentication) }
    }

    fn prove_ourselves(
        &self,
        algorithm: Algorithm,
        id: &str,
        challenge: &str,
        out: &mut Text,
    ) -> Result<(), Refusal> {
        let mutual = self.target.as_ref().and_then(|target| target.mutual.as_ref());
        let mutual = mutual.ok_or(Refusal::Authentication)?;
        let id = text::number(id).and_then(|id| u8::try_from(id).ok()).ok_or(Refusal::InitiatorError)?;
        let challenge = text::binary(challenge).map_err(|_| Refusal::InitiatorError)?;
        // Our own challenge sent back: somebody without the secret would have us answer it.
        if challenge.is_empty() || challenge.len() > MAX_CHALLENGE_BYTES || challenge == self.challenge.bytes
        {
            return Err(Refusal::Authentication);
        }
        out.add("CHAP_N", &mutual.user);
        out.add("CHAP_R", text::hex(&algorithm.proof(id, mutual.secret.as_bytes(), &challenge)));
        Ok(())
    }

    fn negotiate(&mut self, pairs: &[(&str, &str)], out: &mut Text) {
        for (key, value) in pairs {
            match *key {
                "InitiatorName" | "SessionType" | "TargetName" | "InitiatorAlias" | "AuthMethod" => {}
                key if key.starts_with("CHAP_") => {}
                _ => negotiate(&mut self.parameters, key, value, out),
            }
        }
    }
}

/// Settles a parameter, and says how.
fn negotiate(parameters: &mut Parameters, key: &str, value: &str, out: &mut Text) {
    let is_yes = value == "Yes";
    let least = |ours: u32| text::number(value).map(|theirs| ours.min(theirs));
    let length = |ours: u32| least(ours).filter(|bytes| (512..=MOST_BYTES).contains(bytes));
    let settle = |out: &mut Text, number: Option<u32>| match number {
        Some(number) => out.add(key, number),
        None => out.add(key, "Reject"),
    };
    match key {
        "HeaderDigest" | "DataDigest" => {
            // The initiator's first choice that we know.
            let Some(choice) = value.split(',').find(|c| matches!(*c, "CRC32C" | "None")) else {
                return out.add(key, "Reject");
            };
            let is_on = choice == "CRC32C";
            match key {
                "HeaderDigest" => parameters.digests.head = is_on,
                _ => parameters.digests.data = is_on,
            }
            out.add(key, choice);
        }
        // Declared, not negotiated.
        "MaxRecvDataSegmentLength" => match text::number(value).filter(|b| (512..=MOST_BYTES).contains(b)) {
            Some(bytes) => parameters.max_send_bytes = bytes,
            None => out.add(key, "Reject"),
        },
        "MaxBurstLength" => {
            let bytes = length(MAX_BURST_BYTES);
            parameters.max_burst_bytes = bytes.unwrap_or(parameters.max_burst_bytes);
            settle(out, bytes);
        }
        "FirstBurstLength" => {
            let bytes = length(FIRST_BURST_BYTES);
            parameters.first_burst_bytes = bytes.unwrap_or(parameters.first_burst_bytes);
            settle(out, bytes);
        }
        "ImmediateData" => {
            parameters.immediate_data = is_yes;
            out.add(key, if is_yes { "Yes" } else { "No" });
        }
        // Data beyond the immediate is asked for, in order, one burst at a time for each command.
        "InitialR2T" | "DataPDUInOrder" | "DataSequenceInOrder" => out.add(key, "Yes"),
        "MaxOutstandingR2T" | "MaxConnections" => settle(out, least(1).filter(|n| *n > 0)),
        "ErrorRecoveryLevel" | "DefaultTime2Retain" => out.add(key, 0),
        "DefaultTime2Wait" => settle(out, text::number(value).filter(|s| *s <= 3600).map(|s| s.max(2))),
        "TaskReporting" => out.add(key, "RFC3720"),
        "iSCSIProtocolLevel" => settle(out, least(1)),
        // Of RFC 3720; taken out since.
        "IFMarker" | "OFMarker" => out.add(key, "No"),
        "IFMarkInt" | "OFMarkInt" => out.add(key, "Reject"),
        _ => out.add(key, "NotUnderstood"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Nexus;

    struct One(TargetInfo);

    impl Catalog for One {
        fn target(&self, name: &str) -> Option<Arc<TargetInfo>> {
            (name == self.0.name).then(|| Arc::new(self.0.clone()))
        }
        fn targets(&self) -> Vec<Arc<TargetInfo>> {
            vec![Arc::new(self.0.clone())]
        }
    }

    fn account(user: &str, secret: &str) -> Account {
        Account { user: user.into(), secret: secret.into() }
    }

    fn open() -> One {
        One(TargetInfo { name: "iqn.t".into(), ..TargetInfo::default() })
    }

    fn guarded() -> One {
        One(TargetInfo {
            accounts: vec![account("alice", "secret of 12 b")],
            mutual: Some(account("target", "secret of ours")),
            ..open().0
        })
    }

    fn head(stage: u8, next: Option<u8>) -> LoginHead {
        LoginHead {
            task: 1,
            transit: next.is_some(),
            more: false,
            stage,
            next_stage: next.unwrap_or(0),
            version_min: 0,
            isid: [1, 2, 3, 4, 5, 6],
            tsih: 0,
            cid: 0,
            cmd_sn: 1,
        }
    }

    fn login() -> Login {
        Login::new(Challenge { id: 9, bytes: [7; 16] }, 77)
    }

    const NAMES: &str = "InitiatorName=iqn.i\0TargetName=iqn.t\0";

    fn refusal(step: Step) -> Refusal {
        match step {
            Step::Refuse(Response::Login { status, .. }, refusal) => {
                assert_eq!(status, refusal as u16);
                refusal
            }
            _ => panic!("not refused"),
        }
    }

    fn answer(step: Step) -> (bool, String) {
        match step {
            Step::Answer(Response::Login { transit, .. }, text) => {
                (transit, String::from_utf8(text).unwrap().replace('\0', " "))
            }
            Step::Refuse(_, why) => panic!("refused: {why}"),
            _ => panic!("finished"),
        }
    }

    #[test]
    fn parameters_are_settled() {
        let text = format!(
            "{NAMES}HeaderDigest=CRC32C,None\0DataDigest=None\0MaxRecvDataSegmentLength=65536\0MaxBurstLength=4194304\0\
             FirstBurstLength=100\0InitialR2T=No\0ImmediateData=Yes\0MaxConnections=8\0X-other=1\0IFMarker=No\0"
        );
        let step = login().request(&head(1, Some(3)), text.as_bytes(), &open());
        let Step::Finish(Response::Login { tsih: 77, .. }, text, done) = step else { panic!("not finished") };
        assert_eq!(done.nexus, Nexus { initiator: "iqn.i".into(), isid: [1, 2, 3, 4, 5, 6] });
        assert_eq!(done.nexus.port(), "iqn.i,i,0x010203040506");
        let expected = Parameters {
            digests: Digests { head: true, data: false },
            max_send_bytes: 65536,
            max_burst_bytes: 1 << 20,
            ..Parameters::default()
        };
        assert_eq!(done.parameters, expected);
        let text = String::from_utf8(text).unwrap();
        for part in [
            "TargetPortalGroupTag=1",
            "HeaderDigest=CRC32C",
            "DataDigest=None",
            "MaxBurstLength=1048576",
            "FirstBurstLength=Reject",
            "InitialR2T=Yes",
            "MaxConnections=1",
            "X-other=NotUnderstood",
            "MaxRecvDataSegmentLength=262144",
        ] {
            assert!(text.split('\0').any(|pair| pair == part), "{part} in {text}");
        }
    }

    #[test]
    fn names_must_be_known() {
        let ask = |text: &str| login().request(&head(0, Some(1)), text.as_bytes(), &open());
        assert_eq!(refusal(ask("TargetName=iqn.t\0")), Refusal::MissingParameter);
        assert_eq!(refusal(ask("InitiatorName=iqn.i\0")), Refusal::MissingParameter);
        assert_eq!(refusal(ask("InitiatorName=iqn.i\0TargetName=iqn.x\0")), Refusal::NotFound);
        assert_eq!(refusal(ask("nonsense\0")), Refusal::InitiatorError);
        assert!(answer(ask("InitiatorName=iqn.i\0SessionType=Discovery\0AuthMethod=CHAP,None\0")).0);
        let few = One(TargetInfo { initiators: vec!["iqn.other".into()], ..open().0 });
        assert_eq!(refusal(login().request(&head(0, Some(1)), NAMES.as_bytes(), &few)), Refusal::Forbidden);
        let old = LoginHead { version_min: 1, ..head(0, None) };
        assert_eq!(refusal(login().request(&old, NAMES.as_bytes(), &open())), Refusal::Version);
    }

    /// Logs in with CHAP; what comes last.
    fn prove(user: &str, secret: &str, algorithm: &str, more: &str) -> Step {
        let (mut l, targets) = (login(), guarded());
        let (transit, text) = answer(l.request(
            &head(0, Some(1)),
            format!("{NAMES}AuthMethod=CHAP,None\0").as_bytes(),
            &targets,
        ));
        assert!(!transit && text.contains("AuthMethod=CHAP"));
        let (transit, text) =
            answer(l.request(&head(0, None), format!("CHAP_A={algorithm}\0").as_bytes(), &targets));
        assert!(!transit && text.contains("CHAP_I=9") && text.contains(&text::hex(&[7; 16])), "{text}");
        let chosen = if text.contains("CHAP_A=5") { Algorithm::Md5 } else { Algorithm::Sha256 };
        let proof = text::hex(&chosen.proof(9, secret.as_bytes(), &[7; 16]));
        l.request(&head(0, Some(1)), format!("CHAP_N={user}\0CHAP_R={proof}\0{more}").as_bytes(), &targets)
    }

    #[test]
    fn secrets_are_proven() {
        for algorithm in ["5", "7,5", "6,7", "5,7"] {
            assert!(answer(prove("alice", "secret of 12 b", algorithm, "")).0);
            assert_eq!(refusal(prove("alice", "guess", algorithm, "")), Refusal::Authentication);
            assert_eq!(refusal(prove("bob", "secret of 12 b", algorithm, "")), Refusal::Authentication);
        }
        // No way around it.
        for text in ["AuthMethod=None\0", ""] {
            let step = login().request(&head(1, Some(3)), format!("{NAMES}{text}").as_bytes(), &guarded());
            assert_eq!(refusal(step), Refusal::Authentication);
        }
        let step = login().request(&head(0, Some(3)), NAMES.as_bytes(), &guarded());
        assert!(!answer(step).0, "it stays in the security stage");
        let step = login().request(
            &head(0, None),
            format!("{NAMES}CHAP_N=alice\0CHAP_R=0x00\0").as_bytes(),
            &guarded(),
        );
        assert_eq!(refusal(step), Refusal::InitiatorError);
    }

    #[test]
    fn the_target_proves_itself_too() {
        let step = prove("alice", "secret of 12 b", "5", "CHAP_I=3\0CHAP_C=0x0102\0");
        let (transit, text) = answer(step);
        let proof = text::hex(&Algorithm::Md5.proof(3, b"secret of ours", &[1, 2]));
        assert!(transit && text.contains("CHAP_N=target") && text.contains(&proof));
        let reflected = format!("CHAP_I=3\0CHAP_C={}\0", text::hex(&[7; 16]));
        assert_eq!(refusal(prove("alice", "secret of 12 b", "5", &reflected)), Refusal::Authentication);
    }

    #[test]
    fn text_comes_in_parts() {
        let mut l = login();
        let part = LoginHead { more: true, transit: false, ..head(1, None) };
        let (transit, text) = answer(l.request(&part, b"InitiatorName=iqn.i\0Targ", &open()));
        assert!(!transit && text.is_empty());
        let step = l.request(&head(1, Some(3)), b"etName=iqn.t\0", &open());
        assert!(matches!(step, Step::Finish(..)));
        let mut l = login();
        let many = vec![b'x'; MAX_TEXT_BYTES / 2 + 1];
        answer(l.request(&part, &many, &open()));
        assert_eq!(refusal(l.request(&part, &many, &open())), Refusal::InitiatorError);
    }
}
