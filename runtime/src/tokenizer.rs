//! Text to ids and back: characters, bytes, or GPT-2's byte-pair encoding.
//!
//! Ids depend on the text and the tokenizer alone; the byte-pair encoder works on pieces in parallel, and cuts only where
//! no token can cross.

pub(crate) mod decode_stream;

use crate::error::Error;
use dspc_program::Tokenizer;
use rayon::prelude::*;
use std::collections::HashMap;

/// GPT-2's id between documents.
pub(crate) const GPT2_END_OF_TEXT: u32 = 50_256;
const GPT2_VOCAB: u32 = 50_257;
/// Bytes of text that one task encodes; enough to forget what starting a task costs.
const PIECE_BYTES: usize = 1 << 18;

/// A tokenizer that is ready to work.
#[derive(Clone)]
pub struct TextTokenizer {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Chars { chars: Vec<char>, ids: HashMap<char, u32> },
    Bytes,
    Gpt2(&'static tiktoken_rs::CoreBPE),
}

impl TextTokenizer {
    /// From its description in a program.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let kind = match tokenizer {
            Tokenizer::Chars(chars) => {
                let chars: Vec<char> = chars.chars().collect();
                let ids = chars.iter().enumerate().map(|(i, &c)| (c, i as u32)).collect();
                Kind::Chars { chars, ids }
            }
            Tokenizer::Bytes => Kind::Bytes,
            Tokenizer::Gpt2 => Kind::Gpt2(tiktoken_rs::r50k_base_singleton()),
        };
        Self { kind }
    }

    /// Ids there are.
    pub fn vocab(&self) -> u32 {
        match &self.kind {
            Kind::Chars { chars, .. } => chars.len() as u32,
            Kind::Bytes => 256,
            Kind::Gpt2(_) => GPT2_VOCAB,
        }
    }

    /// The id that separates documents, if the tokenizer has one.
    pub fn separator(&self) -> Option<u32> {
        match &self.kind {
            Kind::Gpt2(_) => Some(GPT2_END_OF_TEXT),
            Kind::Chars { .. } | Kind::Bytes => None,
        }
    }

    /// Whether text must be UTF-8.
    pub fn needs_utf8(&self) -> bool {
        !matches!(self.kind, Kind::Bytes)
    }

    /// Ids of a text; `place` names it in errors.
    ///
    /// # Errors
    /// R0106 on a character that the training text did not have.
    pub fn encode(&self, text: &str, place: &str) -> Result<Vec<u32>, Error> {
        match &self.kind {
            Kind::Chars { ids, .. } => text
                .chars()
                .enumerate()
                .map(|(position, character)| {
                    ids.get(&character).copied().ok_or_else(|| Error::CharacterUnknown {
                        character,
                        position,
                        place: place.into(),
                    })
                })
                .collect(),
            Kind::Bytes => Ok(encode_bytes(text.as_bytes())),
            Kind::Gpt2(bpe) => Ok(encode_pieces(bpe, text)),
        }
    }

    /// Bytes of some ids; ids that are not the tokenizer's have none.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            match &self.kind {
                Kind::Chars { chars, .. } => {
                    if let Some(c) = chars.get(id as usize) {
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                Kind::Bytes => out.extend(u8::try_from(id)),
                Kind::Gpt2(bpe) => out.extend(bpe.decode_bytes(&[id]).unwrap_or_default()),
            }
        }
        out
    }
}

/// One id a byte.
pub(crate) fn encode_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|&b| u32::from(b)).collect()
}

fn encode_pieces(bpe: &tiktoken_rs::CoreBPE, text: &str) -> Vec<u32> {
    let pieces = pieces(text, PIECE_BYTES);
    if let [one] = pieces[..] {
        return bpe.encode_ordinary(one);
    }
    let ids: Vec<Vec<u32>> = pieces.par_iter().map(|piece| bpe.encode_ordinary(piece)).collect();
    ids.concat()
}

/// Cuts after a line feed that stands alone between two characters that are not white space: the encoder's pattern always
/// ends a token there, so the ids of the pieces, put together, are the ids of the whole.
fn pieces(text: &str, bytes: usize) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while rest.len() > bytes {
        let all = rest.as_bytes();
        let solid = |i: usize| all.get(i).is_some_and(|b| b.is_ascii_graphic());
        let Some(cut) = (bytes..rest.len()).find(|&i| all[i] == b'\n' && solid(i - 1) && solid(i + 1)) else {
            break;
        };
        let (head, tail) = rest.split_at(cut + 1);
        out.push(head);
        rest = tail;
    }
    out.push(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_are_places_in_the_alphabet() {
        let t = TextTokenizer::new(&Tokenizer::Chars("\n abé".into()));
        assert_eq!(t.vocab(), 5);
        let ids = t.encode("é ba\n", "x").unwrap();
        assert_eq!(ids, [4, 1, 3, 2, 0]);
        assert_eq!(t.decode(&ids), "é ba\n".as_bytes());
    }

    #[test]
    fn an_unseen_character_is_named_with_its_position() {
        let t = TextTokenizer::new(&Tokenizer::Chars("ab".into()));
        let error = t.encode("aé", "the prompt").unwrap_err();
        assert_eq!(
            error.to_string(),
            "character 'é' at position 1 of the prompt was not in the training text"
        );
        assert!(t.encode("abz", "x").unwrap_err().to_string().contains("position 2"));
        assert_eq!(error.code(), "R0106");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn gpt2_gives_the_published_ids() {
        let t = TextTokenizer::new(&Tokenizer::Gpt2);
        assert_eq!(t.encode("hello world", "x").unwrap(), [31373, 995]);
        assert_eq!(t.encode("<|endoftext|>", "x").unwrap().len(), 7);
        assert_eq!(t.decode(&[31373, 995]), b"hello world");
        assert_eq!(t.decode(&[99_999]), b"");
    }

    #[test]
    fn a_long_run_of_one_class_does_not_stop_the_encoder() {
        let t = TextTokenizer::new(&Tokenizer::Gpt2);
        for text in [" ".repeat(300_000) + "a", "a".repeat(50_000), "\n".repeat(100_000)] {
            assert_eq!(t.decode(&t.encode(&text, "x").unwrap()), text.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn pieces_encode_as_the_whole(text in "([a-c' ]{0,6}[\n ]{0,3}[0-9é.!]{0,4}\r?\n){0,60}") {
            let bpe = tiktoken_rs::r50k_base_singleton();
            let parts: Vec<u32> = pieces(&text, 8).into_iter().flat_map(|p| bpe.encode_ordinary(p)).collect();
            prop_assert_eq!(parts, bpe.encode_ordinary(&text));
        }

        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,80}") {
            for tokenizer in [Tokenizer::Bytes, Tokenizer::Gpt2] {
                let t = TextTokenizer::new(&tokenizer);
                prop_assert_eq!(t.decode(&t.encode(&text, "x").unwrap()), text.as_bytes());
            }
        }
    }
}
