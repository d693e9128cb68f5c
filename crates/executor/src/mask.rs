//! Takes the values of secrets out of a stream of output, wherever the stream is cut into pieces.
//!
//! What counts as a value: each line of a secret, without surrounding white space, so that a key of many lines is found also
//! where its lines come one by one or end in `\r\n`; a line longer than [`MAX_PATTERN`] is looked for in pieces of that
//! length. Lines shorter than [`MIN_PATTERN`] are not masked: they would black out ordinary text (a secret `1` every
//! digit 1), and hide nothing that cannot be guessed.
//!
//! Every byte that is part of any occurrence, overlapping ones too, is taken out, and each run of such bytes is shown as
//! [`MASK`]. Nothing is held back but a tail that may be the beginning of a value.

use std::collections::{BTreeSet, HashMap, VecDeque};

use kiln_stdx::Secret;

/// What is shown in place of a value.
pub const MASK: &str = "***";
/// The shortest line that is masked, in bytes.
pub const MIN_PATTERN: usize = 4;
/// The longest single pattern, in bytes.
pub const MAX_PATTERN: usize = 1024;

/// A state of the automaton: a prefix of some pattern.
#[derive(Clone, Copy)]
struct Node {
    /// The longest proper suffix of this prefix that is a prefix too.
    fail: u32,
    /// How long the prefix is.
    depth: u32,
    /// The longest pattern that ends here, or 0.
    found: u32,
    /// The first way on; others are in the table.
    first: Option<(u8, u32)>,
}

/// A filter for one stream.
pub struct SecretMasker {
    nodes: Vec<Node>,
    ways: HashMap<(u32, u8), u32>,
    state: u32,
    /// Bytes that may be part of a value that is not complete yet, each with whether it is masked already.
    held: VecDeque<(u8, bool)>,
    /// Whether the last byte that was let out was masked: then the mask is there already.
    masking: bool,
}

impl SecretMasker {
    /// Returns a filter for the values of `secrets`.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let root = Node { fail: 0, depth: 0, found: 0, first: None };
        let mut masker =
            Self { nodes: vec![root], ways: HashMap::new(), state: 0, held: VecDeque::new(), masking: false };
        let secrets: Vec<&Secret> = secrets.into_iter().collect();
        let patterns: BTreeSet<&[u8]> = secrets.iter().flat_map(|secret| patterns(secret.expose())).collect();
        for pattern in patterns {
            masker.add(pattern);
        }
        masker.link();
        masker
    }

    /// Tells whether there is nothing to mask, so that the stream needs no filter.
    pub fn is_idle(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Takes the next piece and returns what can be shown.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.is_idle() {
            return piece.to_vec();
        }
        let mut out = Vec::with_capacity(piece.len());
        for &byte in piece {
            self.state = self.step(self.state, byte);
            self.held.push_back((byte, false));
            let node = self.nodes[self.state as usize];
            let marked = self.held.len() - (node.found as usize).min(self.held.len());
            for place in self.held.range_mut(marked..) {
                place.1 = true;
            }
            let keep = node.depth as usize;
            while self.held.len() > keep {
                self.let_out(&mut out);
            }
        }
        out
    }

    /// Returns the tail that was held back; the stream is over.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len());
        while !self.held.is_empty() {
            self.let_out(&mut out);
        }
        self.state = 0;
        self.masking = false;
        out
    }

    fn let_out(&mut self, out: &mut Vec<u8>) {
        let Some((byte, masked)) = self.held.pop_front() else { return };
        if !masked {
            out.push(byte);
        } else if !self.masking {
            out.extend_from_slice(MASK.as_bytes());
        }
        self.masking = masked;
    }

    fn add(&mut self, pattern: &[u8]) {
        let mut at = 0u32;
        for &byte in pattern {
            at = match self.way(at, byte) {
                Some(next) => next,
                None => {
                    let next = self.nodes.len() as u32;
                    let depth = self.nodes[at as usize].depth + 1;
                    self.nodes.push(Node { fail: 0, depth, found: 0, first: None });
                    match &mut self.nodes[at as usize].first {
                        first @ None => *first = Some((byte, next)),
                        Some(_) => {
                            self.ways.insert((at, byte), next);
                        }
                    }
                    next
                }
            };
        }
        self.nodes[at as usize].found = pattern.len() as u32;
    }

    fn way(&self, from: u32, byte: u8) -> Option<u32> {
        match self.nodes[from as usize].first {
            Some((first, next)) if first == byte => Some(next),
            Some(_) => self.ways.get(&(from, byte)).copied(),
            None => None,
        }
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if let Some(next) = self.way(state, byte) {
                return next;
            }
            if state == 0 {
                return 0;
            }
            state = self.nodes[state as usize].fail;
        }
    }

    /// Sets the fail links, level by level.
    fn link(&mut self) {
        let mut children: HashMap<u32, Vec<(u8, u32)>> = HashMap::new();
        for (from, node) in self.nodes.iter().enumerate() {
            children.entry(from as u32).or_default().extend(node.first);
        }
        for (&(from, byte), &next) in &self.ways {
            children.entry(from).or_default().push((byte, next));
        }
        let mut queue = VecDeque::from([0u32]);
        while let Some(at) = queue.pop_front() {
            for &(byte, child) in children.get(&at).into_iter().flatten() {
                let fail = if at == 0 { 0 } else { self.step(self.nodes[at as usize].fail, byte) };
                let inherited = self.nodes[fail as usize].found;
                let node = &mut self.nodes[child as usize];
                node.fail = fail;
                node.found = node.found.max(inherited);
                queue.push_back(child);
            }
        }
    }
}

/// Returns what is looked for of one secret.
fn patterns(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .flat_map(|line| line.chunks(MAX_PATTERN))
        .filter(|piece| piece.len() >= MIN_PATTERN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masker(values: &[&str]) -> SecretMasker {
        let secrets: Vec<Secret> = values.iter().map(|value| Secret::new(*value)).collect();
        SecretMasker::new(&secrets)
    }

    /// Masks `text` cut into pieces of every size, and checks that the cuts make no difference.
    fn mask(values: &[&str], text: &str) -> String {
        let mut results = BTreeSet::new();
        for size in 1..=text.len().max(1) {
            let mut masker = masker(values);
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                out.extend(masker.push(piece));
            }
            out.extend(masker.finish());
            results.insert(String::from_utf8(out).unwrap());
        }
        assert_eq!(results.len(), 1, "{results:?}");
        results.pop_first().unwrap()
    }

    #[test]
    fn values_are_replaced_wherever_the_stream_is_cut() {
        assert_eq!(mask(&["hunter2"], "pw=hunter2\n"), "pw=***\n");
        assert_eq!(mask(&["hunter2"], "hunter2hunter2 hunter"), "*** hunter");
        assert_eq!(mask(&["hunter2"], "hunthunter2"), "hunt***");
        assert_eq!(mask(&["abab"], "abaabab ababab"), "aba*** ***");
    }

    #[test]
    fn overlapping_values_leave_nothing_of_either() {
        assert_eq!(mask(&["abcd", "cdef"], "xabcdefx"), "x***x");
        assert_eq!(mask(&["abcdef", "bcde"], "abcdeg abcdef"), "a***g ***");
        assert_eq!(mask(&["aaaa"], "aaaaaaaaab"), "***b");
        assert_eq!(mask(&["secret-long", "secret"], "secret-lone secret-long"), "***-lone ***");
    }

    #[test]
    fn lines_of_a_long_value_are_masked_one_by_one() {
        let key = "-----BEGIN KEY-----\nMIIEow\nzz\n-----END KEY-----\n";
        assert_eq!(mask(&[key], "-----BEGIN KEY-----\r\nMIIEow\r\nzz\r\n"), "***\r\n***\r\nzz\r\n");
        let long: String = (0..3000u32).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
        let mut masker = masker(&[&long]);
        let mut out = masker.push(format!("<{long}>").as_bytes());
        out.extend(masker.finish());
        assert_eq!(String::from_utf8(out).unwrap(), "<***>");
    }

    #[test]
    fn short_and_empty_values_mask_nothing() {
        let mut idle = masker(&["", "1", "abc", "\n\n"]);
        assert!(idle.is_idle());
        assert_eq!(idle.push(b"1 abc"), b"1 abc");
        assert!(!masker(&["abcd"]).is_idle());
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut masker = masker(&["hunter2"]);
        assert_eq!(masker.push(b"password: hun"), b"password: ");
        assert_eq!(masker.push(b"ger"), b"hunger");
        assert_eq!(masker.push(b"h"), b"");
        assert_eq!(masker.finish(), b"h");
    }
}
