//! Lines, flags, words, heredocs, comma lists and JSON arrays of whatever text.

use super::corpus;
use super::random::{Random, TOKENS};
use crate::lex::{csv, heredoc, json_array, line, split};

fn body(random: &mut Random) {
    let data = if random.chance(3) { random.pieces(&TOKENS, 80).into_bytes() } else { corpus::mutated(random) };
    let total = data.iter().filter(|b| **b == b'\n').count() as u32 + 1;
    if let Ok(lexed) = line::lex(&data) {
        let mut last = 0;
        for logical in &lexed.instructions {
            assert!(logical.lines.first > last && logical.lines.last >= logical.lines.first, "{:?}", logical.lines);
            assert!(logical.lines.last <= total, "{:?} of {total} lines", logical.lines);
            last = logical.lines.last;
            let _ = logical.find(&logical.parts.rest);
            assert!(!logical.parts.keyword.contains(' '), "{:?}", logical.parts);
        }
    }
    let text = String::from_utf8_lossy(&data);
    for piece in text.lines().take(20) {
        for escape in ['\\', '`'] {
            let parts = split::split_instruction(piece, escape);
            assert!(parts.rest.len() <= piece.len());
            for word in split::quoted_words(piece, escape) {
                assert!(word.len() <= piece.len());
            }
        }
        let words: usize = split::blank_words(piece).iter().map(String::len).sum();
        assert!(words <= piece.len());
        let _ = (heredoc::marks(piece), csv::fields(piece), json_array::parse(piece), split::key_and_rest(piece));
    }
}

#[test]
fn lexing_never_fails_badly() {
    super::campaign("lexer", 400, body);
}
