//! The token stream of a data set, and its cache on disk.
//!
//! Cache file: `dspctok1`, bytes an id (u32: 2 or 4), 0 (u32), ids (u64), BLAKE3 of the ids (32 bytes), then the ids; little-endian.
//! Its name is the hash of the tokenizer and the text, so another text never finds it; a damaged one is made again.

use crate::data::Text;
use crate::durable;
use crate::error::Error;
use crate::tokenizer::{TextTokenizer, encode_bytes};
use dspc_program::Tokenizer;
use std::path::Path;

const MAGIC: &[u8; 8] = b"dspctok1";
const HEADER: usize = 56;

/// All ids of a data set, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenStream {
    ids: Ids,
    hash: blake3::Hash,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Ids {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl TokenStream {
    /// Encodes texts, or takes their ids from the cache folder.
    ///
    /// Texts follow each other; between two stands the tokenizer's separator, if it has one. A cache that cannot be written
    /// is not an error: the ids are made again next time.
    ///
    /// # Errors
    /// R0103, R0106, R0107.
    pub fn load(
        texts: &[Text],
        tokenizer: &Tokenizer,
        vocab: u64,
        cache: Option<&Path>,
    ) -> Result<Self, Error> {
        let hash = content_hash(texts, tokenizer);
        let path = cache.map(|dir| dir.join(format!("tokens-{}.bin", &hash.to_hex()[..32])));
        let cached = path.as_deref().and_then(read_cache);
        let ids = match cached {
            Some(ids) => ids,
            None => {
                let ids = encode(texts, &TextTokenizer::new(tokenizer))?;
                if let Some(path) = &path {
                    _ = write_cache(path, &ids);
                }
                ids
            }
        };
        let stream = Self { ids, hash };
        match stream.largest() {
            Some(id) if u64::from(id) >= vocab => Err(Error::IdOutOfRange { id: id.into(), vocab }),
            _ => Ok(stream),
        }
    }

    /// From ids that the caller has.
    pub fn from_ids(ids: Vec<u32>) -> Self {
        let hash = blake3::hash(bytemuck::cast_slice(&ids));
        Self { ids: narrowed(ids), hash }
    }

    /// Ids there are.
    pub fn len(&self) -> u64 {
        match &self.ids {
            Ids::Narrow(ids) => ids.len() as u64,
            Ids::Wide(ids) => ids.len() as u64,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hash of the text and the tokenizer, hex.
    pub fn hash(&self) -> String {
        self.hash.to_hex().to_string()
    }

    /// Copies the ids from `start` on; `start + out.len()` is at most the length.
    pub fn copy_to(&self, start: u64, out: &mut [i32]) {
        let start = start as usize;
        match &self.ids {
            Ids::Narrow(ids) => {
                for (o, &id) in out.iter_mut().zip(&ids[start..]) {
                    *o = id.into();
                }
            }
            Ids::Wide(ids) => {
                for (o, &id) in out.iter_mut().zip(&ids[start..]) {
                    *o = id as i32;
                }
            }
        }
    }

    fn largest(&self) -> Option<u32> {
        match &self.ids {
            Ids::Narrow(ids) => ids.iter().max().map(|&id| id.into()),
            Ids::Wide(ids) => ids.iter().max().copied(),
        }
    }
}

fn encode(texts: &[Text], tokenizer: &TextTokenizer) -> Result<Ids, Error> {
    let mut ids = Vec::new();
    for text in texts.iter().filter(|text| !text.bytes.is_empty()) {
        if !ids.is_empty() {
            ids.extend(tokenizer.separator());
        }
        if tokenizer.needs_utf8() {
            ids.extend(tokenizer.encode(text.as_str()?, &format!("`{}`", text.path.display()))?);
        } else {
            ids.extend(encode_bytes(&text.bytes));
        }
    }
    Ok(narrowed(ids))
}

fn narrowed(ids: Vec<u32>) -> Ids {
    if ids.iter().all(|&id| id <= u32::from(u16::MAX)) {
        Ids::Narrow(ids.into_iter().map(|id| id as u16).collect())
    } else {
        Ids::Wide(ids)
    }
}

/// Lengths stand before contents, so that no two data sets feed the same bytes.
fn content_hash(texts: &[Text], tokenizer: &Tokenizer) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let (kind, alphabet) = match tokenizer {
        Tokenizer::Chars(alphabet) => ("chars", alphabet.as_str()),
        Tokenizer::Bytes => ("bytes", ""),
        Tokenizer::Gpt2 => ("gpt2", ""),
    };
    for part in [MAGIC, kind.as_bytes(), alphabet.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    for text in texts.iter().filter(|text| !text.bytes.is_empty()) {
        hasher.update(&(text.bytes.len() as u64).to_le_bytes());
        hasher.update(&text.bytes);
    }
    hasher.finalize()
}

fn write_cache(path: &Path, ids: &Ids) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        durable::make_folder(dir)?;
    }
    let (width, count, payload): (u32, usize, Vec<u8>) = match ids {
        Ids::Narrow(ids) => (2, ids.len(), ids.iter().flat_map(|id| id.to_le_bytes()).collect()),
        Ids::Wide(ids) => (4, ids.len(), ids.iter().flat_map(|id| id.to_le_bytes()).collect()),
    };
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&width.to_le_bytes());
    header.extend_from_slice(&0u32.to_le_bytes());
    header.extend_from_slice(&(count as u64).to_le_bytes());
    header.extend_from_slice(blake3::hash(&payload).as_bytes());
    durable::replace(path, &[&header, &payload])
}

/// The ids of a cache file; `None` if it is not there, cut, or changed in any bit.
fn read_cache(path: &Path) -> Option<Ids> {
    let bytes = std::fs::read(path).ok()?;
    let (header, payload) = bytes.split_at_checked(HEADER)?;
    let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let count = u64::from_le_bytes(header.get(16..24)?.try_into().ok()?);
    let (width, zero) = (word(8)?, word(12)?);
    let sound = &header[..8] == MAGIC
        && zero == 0
        && Some(payload.len() as u64) == count.checked_mul(width.into())
        && blake3::hash(payload).as_bytes() == &header[24..];
    match width {
        2 if sound => {
            Some(Ids::Narrow(payload.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()))
        }
        4 if sound => Some(Ids::Wide(
            payload.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&[u8]]) -> Vec<Text> {
        list.iter()
            .enumerate()
            .map(|(i, b)| Text { path: format!("{i}.txt").into(), bytes: b.to_vec() })
            .collect()
    }

    fn ids(stream: &TokenStream) -> Vec<i32> {
        let mut out = vec![0; stream.len() as usize];
        stream.copy_to(0, &mut out);
        out
    }

    #[test]
    fn texts_follow_each_other() {
        let stream = TokenStream::load(&texts(&[b"ab", b"", b"\xff"]), &Tokenizer::Bytes, 256, None).unwrap();
        assert_eq!(ids(&stream), [97, 98, 255]);
        let stream = TokenStream::load(&texts(&[b"hello", b"hello"]), &Tokenizer::Gpt2, 50257, None).unwrap();
        assert_eq!(ids(&stream), [31373, 50256, 31373]);
    }

    #[test]
    fn an_id_that_the_model_lacks_is_refused() {
        let error = TokenStream::load(&texts(&[b"ab"]), &Tokenizer::Bytes, 98, None).unwrap_err();
        assert_eq!(error.to_string(), "token id 98 is not below the model's vocabulary of 98");
    }

    #[test]
    fn the_cache_gives_the_same_ids_and_survives_damage() {
        let dir = tempfile::tempdir().unwrap();
        let load = |text: &[u8]| {
            TokenStream::load(&texts(&[text]), &Tokenizer::Bytes, 256, Some(dir.path())).unwrap()
        };
        let first = load(b"some text");
        let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let whole = std::fs::read(&file).unwrap();
        assert_eq!(load(b"some text"), first);
        for i in 0..whole.len() {
            let mut bad = whole.clone();
            bad[i] ^= 1 << (i % 8);
            std::fs::write(&file, &bad).unwrap();
            assert_eq!(read_cache(&file), None, "byte {i}");
            std::fs::write(&file, &whole[..i]).unwrap();
            assert_eq!(read_cache(&file), None, "cut at {i}");
        }
        assert_eq!(load(b"some text"), first);
        assert_eq!(std::fs::read(&file).unwrap(), whole, "made again");
        assert_ne!(load(b"other text").hash(), first.hash());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file left");
    }

    #[test]
    fn wide_ids_go_through_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let wide = narrowed(vec![1, 70_000]);
        write_cache(&path, &wide).unwrap();
        assert_eq!(read_cache(&path), Some(wide));
    }

    #[test]
    fn a_cache_folder_that_cannot_be_made_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(TokenStream::load(&texts(&[b"ab"]), &Tokenizer::Bytes, 256, Some(&file.join("x"))).is_ok());
    }
}
