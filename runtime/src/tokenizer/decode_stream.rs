//! Ids one at a time, whole characters out: bytes of an unfinished character wait for the rest.

use super::TextTokenizer;

/// Turns a stream of ids into text.
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    waiting: Vec<u8>,
}

impl<'a> DecodeStream<'a> {
    /// At the start of a text.
    pub fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, waiting: Vec::new() }
    }

    /// The text that is whole once `id` has come; bytes that can never be a character become U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        self.waiting.extend(self.tokenizer.decode(&[id]));
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.waiting) {
                Ok(text) => {
                    out.push_str(text);
                    self.waiting.clear();
                    return out;
                }
                Err(error) => {
                    let whole = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.waiting[..whole]));
                    let Some(bad) = error.error_len() else {
                        self.waiting.drain(..whole);
                        return out;
                    };
                    out.push('\u{FFFD}');
                    self.waiting.drain(..whole + bad);
                }
            }
        }
    }

    /// What is left at the end: U+FFFD if a character was cut.
    pub fn finish(self) -> &'static str {
        if self.waiting.is_empty() { "" } else { "\u{FFFD}" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dspc_program::Tokenizer;

    #[test]
    fn a_character_of_several_bytes_comes_out_whole() {
        let tokenizer = TextTokenizer::new(&Tokenizer::Bytes);
        let mut stream = DecodeStream::new(&tokenizer);
        let parts: Vec<String> = "a€b".bytes().map(|b| stream.push(b.into())).collect();
        assert_eq!(parts, ["a", "", "", "€", "b"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let tokenizer = TextTokenizer::new(&Tokenizer::Bytes);
        let mut stream = DecodeStream::new(&tokenizer);
        assert_eq!(stream.push(0xff), "\u{FFFD}");
        assert_eq!(stream.push(0xe2), "");
        assert_eq!(stream.push(b'x'.into()), "\u{FFFD}x");
        assert_eq!(stream.push(0xe2), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }
}
