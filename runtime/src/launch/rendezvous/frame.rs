//! A message between ranks that have not met: a mark, a length that is short, a code, and JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};

/// No message is longer: 16384 ranks fit, and a stranger's length is refused before anything is taken for it.
pub(super) const BYTES_MAX: usize = 16 << 20;
/// Until somebody has shown to be a rank of ours.
pub(super) const HELLO_MAX: usize = 4096;
const MARK: [u8; 4] = *b"dsp1";
const CODE: usize = 32;
const HEADER: usize = MARK.len() + 4 + CODE;
/// What rank 0 sends to those it turns away without a word.
pub(super) const REFUSAL: [u8; 4] = *b"dsp0";

/// What only the ranks of one launch know. Its `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// Of a secret text; of the job's name where there is none, which keeps launches apart but no attacker away.
    pub fn of(text: &str) -> Self {
        Self(blake3::derive_key("dspc 2026 token of a launch", text.as_bytes()))
    }

    /// A new one.
    pub fn fresh() -> io::Result<(Self, String)> {
        let text = blake3::Hash::from_bytes(nonce()?).to_hex().to_string();
        Ok((Self::of(&text), text))
    }

    fn code(&self, nonce: &[u8; 32], payload: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.0).update(nonce).update(payload).finalize()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// 32 bytes that nobody can guess and that do not come twice.
pub(super) fn nonce() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn refuse(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.to_string())
}

/// The whole message, made for whoever gave the nonce.
pub(super) fn write<T: Serialize>(token: &Token, nonce: &[u8; 32], message: &T) -> io::Result<Vec<u8>> {
    let payload = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(payload.len()).ok().filter(|&n| n as usize <= BYTES_MAX);
    let length = length.ok_or_else(|| refuse("a message is too long"))?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&MARK);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(token.code(nonce, &payload).as_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Reads a message that was made for `nonce`.
///
/// # Errors
/// `InvalidData` for what is no message of this launch; what the reader says.
pub(super) fn read<T: DeserializeOwned>(
    from: &mut dyn Read,
    token: &Token,
    nonce: &[u8; 32],
    most: usize,
) -> io::Result<T> {
    let mut mark = [0; MARK.len()];
    from.read_exact(&mut mark)?;
    if mark == REFUSAL {
        return Err(refuse("it was started with another token"));
    }
    if mark != MARK {
        return Err(refuse("its first bytes are not those of `dspc`"));
    }
    let mut header = [0; HEADER - MARK.len()];
    from.read_exact(&mut header)?;
    let (length, code) = header.split_at(4);
    let length = length.iter().rev().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
    if length > most {
        return Err(refuse("its message is longer than any rank's"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    let code: [u8; CODE] = code.try_into().map_err(|_| refuse("its code is short"))?;
    // `blake3::Hash` compares in constant time.
    if token.code(nonce, &payload) != blake3::Hash::from_bytes(code) {
        return Err(refuse("it does not know this launch's token"));
    }
    serde_json::from_slice(&payload).map_err(|e| refuse(&format!("its message cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back_and_a_changed_one_does_not() {
        let (token, nonce) = (Token::of("a"), [7; 32]);
        let bytes = write(&token, &nonce, &"hello").unwrap();
        let read = |bytes: &[u8], token: &Token, nonce| read::<String>(&mut &*bytes, token, nonce, 100);
        assert_eq!(read(&bytes, &token, &nonce).unwrap(), "hello");
        assert!(read(&bytes, &Token::of("b"), &nonce).is_err());
        assert!(read(&bytes, &token, &[8; 32]).is_err());
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            assert!(read(&changed, &token, &nonce).is_err(), "byte {i}");
            assert!(read(&bytes[..i], &token, &nonce).is_err(), "{i} bytes");
        }
        let mut long = bytes;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read(&long, &token, &nonce).unwrap_err().to_string().contains("longer"));
    }

    proptest! {
        #[test]
        fn noise_is_never_a_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read::<serde_json::Value>(&mut &*bytes, &Token::of("a"), &[0; 32], 4096).is_err());
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(format!("{:?}", Token::of("secret")), "Token(…)");
    }
}
