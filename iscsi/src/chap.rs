//! CHAP (RFC 1994, RFC 7143 section 12.1.3): a proof of a shared secret that does not show it.

use md5::Md5;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Bytes of a challenge of ours.
pub const CHALLENGE_BYTES: usize = 16;
/// Longest challenge that is answered (RFC 7143).
pub const MAX_CHALLENGE_BYTES: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    Md5,
    Sha256,
}

impl Algorithm {
    /// By the numbers of IANA.
    pub fn from_number(number: u32) -> Option<Algorithm> {
        match number {
            5 => Some(Algorithm::Md5),
            7 => Some(Algorithm::Sha256),
            _ => None,
        }
    }

    pub fn number(self) -> u32 {
        match self {
            Algorithm::Md5 => 5,
            Algorithm::Sha256 => 7,
        }
    }

    pub fn proof(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        match self {
            Algorithm::Md5 => {
                Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
            }
            Algorithm::Sha256 => Sha256::new()
                .chain_update([id])
                .chain_update(secret)
                .chain_update(challenge)
                .finalize()
                .to_vec(),
        }
    }

    /// In a time that does not tell how much of it is right.
    pub fn is_proof(self, proof: &[u8], id: u8, secret: &[u8], challenge: &[u8]) -> bool {
        self.proof(id, secret, challenge).ct_eq(proof).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_hashes_of_id_secret_and_challenge() {
        // md5("\x01" "secret" "challenge"), sha256 of the same: by md5sum and sha256sum.
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(Algorithm::Md5.proof(1, b"secret", b"challenge")), "46e47770030e2b4e26a0db72a7efec00");
        assert_eq!(
            hex(Algorithm::Sha256.proof(1, b"secret", b"challenge")),
            "2dfa0526f4764864b7c3c5bc6596bcead3d8dbd984f4fc1d9f330299f0beced4"
        );
        let proof = Algorithm::Md5.proof(1, b"secret", b"challenge");
        assert!(Algorithm::Md5.is_proof(&proof, 1, b"secret", b"challenge"));
        assert!(!Algorithm::Md5.is_proof(&proof, 2, b"secret", b"challenge"));
        assert!(!Algorithm::Md5.is_proof(&proof[..15], 1, b"secret", b"challenge"));
    }
}
