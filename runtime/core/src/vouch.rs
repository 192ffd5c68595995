//! What the warden vouches for: that the kernel once named this user and group as the other end of a connection, sealed with a key that only the
//! warden has (HMAC-SHA-256, RFC 2104). Input: key and ids; output: a text that says nothing by itself. Must not keep a key.

use sha2::{Digest, Sha256};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes that SHA-256 works on at once.
const BLOCK_BYTES: usize = 64;
/// So that nothing else that may ever be sealed with the same key passes for an identity.
const PURPOSE: &str = "apex identity 1";

/// The seal over an identity, in lower case hex.
pub fn seal(key: &[u8; KEY_BYTES], uid: u32, gid: u32) -> String {
    let words = format!("{PURPOSE} {uid} {gid}");
    hmac(key, words.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text is the seal over this identity. Takes as long for a wrong text as for the right one.
pub fn is_sealed(key: &[u8; KEY_BYTES], uid: u32, gid: u32, text: &str) -> bool {
    let right = seal(key, uid, gid);
    let differences = right.bytes().zip(text.bytes()).fold(0, |all, (one, other)| all | (one ^ other));
    right.len() == text.len() && differences == 0
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_rfc_4231() {
        let code = |key: &[u8], message: &[u8]| hmac(key, message).map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(code(&[0x0b; 20], b"Hi There"), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        assert_eq!(
            code(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_seal_is_for_one_identity_and_one_key() {
        let (key, other) = ([7; KEY_BYTES], [8; KEY_BYTES]);
        let text = seal(&key, 1000, 100);
        assert!(is_sealed(&key, 1000, 100, &text));
        for (key, uid, gid, text) in [
            (&key, 1001, 100, text.as_str()),
            (&key, 1000, 0, &text),
            (&key, 100, 1000, &text),
            (&other, 1000, 100, &text),
            (&key, 1000, 100, &text[..63]),
            (&key, 1000, 100, ""),
            // Both ids run together give no other identity.
            (&key, 10, 1000, &seal(&key, 101, 0)),
        ] {
            assert!(!is_sealed(key, uid, gid, text), "{uid} {gid} {text}");
        }
    }
}
