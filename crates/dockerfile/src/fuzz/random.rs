//! Random numbers from a seed, and changes to texts made with them.

/// A small generator; the same seed gives the same numbers everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `limit`; 0 when there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as usize) % limit.max(1)
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    /// A text of some of these pieces in a row.
    pub fn pieces(&mut self, list: &[&str], most: usize) -> String {
        (0..self.below(most)).map(|_| self.pick(list)).collect()
    }
}

/// What means something in a Dockerfile.
pub const TOKENS: [&str; 64] = [
    "${",
    "}",
    "$",
    "\\",
    "`",
    "\"",
    "'",
    "<<",
    "<<-EOF",
    "EOF",
    "\n",
    "\r\n",
    "\t",
    " ",
    "--",
    "=",
    ",",
    "[",
    "]",
    "\"a\"",
    "FROM ",
    "AS b",
    "RUN ",
    "COPY ",
    "--from=",
    "--mount=",
    "type=secret",
    "#",
    ":",
    "/",
    "../",
    "0",
    "-1",
    "99999999999999999999",
    "é",
    "\u{0}",
    "\u{feff}",
    "ONBUILD ",
    "%%",
    "*",
    "?",
    "(",
    ")",
    "|",
    "&&",
    ";",
    "\\\n",
    "1:2",
    "$TARGETPLATFORM",
    "${A:-",
    "${A//",
    "${A##",
    "0x7fffffffffffffff",
    "1e999",
    "sha256:",
    "https://h.test/r.git",
    "?ref=a",
    "# check=skip=all\n",
    "# escape=`\n",
    "# syntax=x\n",
    "\u{2028}",
    "1h2m",
    "SIGRTMIN+3",
    "80-65535/tcp",
];

/// Keywords that one instruction's may be exchanged for.
const KEYWORDS: [&str; 19] = [
    "FROM",
    "ARG",
    "ENV",
    "LABEL",
    "RUN",
    "CMD",
    "ENTRYPOINT",
    "COPY",
    "ADD",
    "HEALTHCHECK",
    "EXPOSE",
    "USER",
    "VOLUME",
    "WORKDIR",
    "SHELL",
    "STOPSIGNAL",
    "ONBUILD",
    "MAINTAINER",
    "ONBUILD RUN",
];

/// Flags that may be put behind a keyword.
const FLAGS: [&str; 16] = [
    "--from=b",
    "--chown=1:2",
    "--chmod=u+x,g=rX",
    "--link",
    "--parents",
    "--exclude=*.x",
    "--checksum=sha256:0",
    "--unpack",
    "--keep-git-dir",
    "--mount=type=cache,target=/c",
    "--mount=type=secret,id=s,env=S",
    "--network=none",
    "--security=insecure",
    "--platform=$BUILDPLATFORM",
    "--interval=1s",
    "--device=a/b=c",
];

/// Changes single lines as one who knows Dockerfiles would.
pub fn mutate_lines(random: &mut Random, text: &[u8], other: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let others: Vec<&[u8]> = other.split_inclusive(|b| *b == b'\n').collect();
    for _ in 0..=random.below(4) {
        let at = random.below(lines.len());
        let to = random.below(lines.len() + 1);
        match random.below(8) {
            0 if !lines.is_empty() => drop(lines.remove(at)),
            1 if !lines.is_empty() => lines.insert(to, lines[at].clone()),
            2 if to < lines.len() => lines.swap(at, to),
            3 | 4 if !others.is_empty() => lines.insert(to, others[random.below(others.len())].to_vec()),
            5 if at < lines.len() => rekey(random, &mut lines[at], &KEYWORDS, false),
            6 if at < lines.len() => rekey(random, &mut lines[at], &FLAGS, true),
            // The tail of one line behind the head of another.
            7 if at < lines.len() && !others.is_empty() => {
                let tail = others[random.below(others.len())];
                let keep = random.below(lines[at].len());
                lines[at].truncate(keep);
                lines[at].extend_from_slice(&tail[random.below(tail.len())..]);
            }
            _ => {}
        }
    }
    lines.concat()
}

/// Exchanges the first word of a line, or puts one behind it.
fn rekey(random: &mut Random, line: &mut Vec<u8>, words: &[&str], behind: bool) {
    let word = random.pick(words);
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    if behind {
        drop(line.splice(end..end, format!(" {word}").bytes()));
    } else if !random.chance(8) {
        drop(line.splice(..end, word.bytes()));
    }
}

/// Changes single places, without any knowledge of what they mean.
pub fn mutate_bytes(random: &mut Random, text: &[u8]) -> Vec<u8> {
    let mut data = text.to_vec();
    for _ in 0..random.below(6) {
        let at = random.below(data.len() + 1);
        let end = (at + random.below(12)).min(data.len());
        match random.below(6) {
            0 => drop(data.drain(at..end)),
            1 => drop(data.splice(at..at, random.pick(&TOKENS).bytes())),
            2 => {
                let piece = data[at..end].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, piece);
            }
            3 if at < data.len() => data[at] = random.below(256) as u8,
            4 => {
                let piece = data[at..end].repeat(1 + random.below(20));
                data.splice(at..at, piece);
            }
            _ => drop(data.splice(at..end, random.pick(&TOKENS).bytes())),
        }
    }
    data
}
