//! Sections of programs (ELF, 32 and 64 bits, both byte orders).

use crate::bytes::ReadAt;

/// Most sections that are looked at.
const SECTIONS: usize = 1 << 16;
/// Largest table of names in bytes.
const NAMES: usize = 1 << 20;

/// A program's sections by name.
pub(crate) struct Sections<'a> {
    source: &'a dyn ReadAt,
    /// Name, offset and length in bytes.
    list: Vec<(Vec<u8>, u64, u64)>,
}

/// How numbers are written.
#[derive(Clone, Copy)]
struct Form {
    wide: bool,
    big: bool,
}

impl Form {
    /// Returns the number of `size` bytes at `at`.
    fn number(self, bytes: &[u8], at: usize, size: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        let fold = |all: u64, byte: &u8| all << 8 | u64::from(*byte);
        Some(if self.big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) })
    }

    /// Returns an address: at `narrow` in the small form, at `wide` in the large one.
    fn word(self, bytes: &[u8], narrow: usize, wide: usize) -> Option<u64> {
        if self.wide { self.number(bytes, wide, 8) } else { self.number(bytes, narrow, 4) }
    }
}

impl<'a> Sections<'a> {
    /// Reads the table; none for what is no program, or has no table.
    pub(crate) fn of(source: &'a dyn ReadAt) -> Option<Self> {
        let ident = source.read_at(0, 16)?;
        if !ident.starts_with(b"\x7fELF") {
            return None;
        }
        let form = Form { wide: ident[4] == 2, big: ident[5] == 2 };
        let head = source.read_at(0, if form.wide { 64 } else { 52 })?;
        let table = form.word(&head, 0x20, 0x28)?;
        let at = if form.wide { 0x3a } else { 0x2e };
        let [size, count, names] = [0, 2, 4].map(|more| form.number(&head, at + more, 2));
        let (size, count) = (usize::try_from(size?).ok()?, usize::try_from(count?).ok()?.min(SECTIONS));
        let entries = source.read_at(table, size.checked_mul(count)?)?;
        let mut raw = Vec::new();
        for entry in entries.chunks_exact(size.max(40)) {
            let name = usize::try_from(form.number(entry, 0, 4)?).ok()?;
            raw.push((name, form.word(entry, 0x10, 0x18)?, form.word(entry, 0x14, 0x20)?));
        }
        let (_, offset, length) = *raw.get(usize::try_from(names?).ok()?)?;
        let names = source.read_at(offset, usize::try_from(length).ok().filter(|l| *l <= NAMES)?)?;
        let name = |at: usize| {
            let rest = names.get(at..).unwrap_or_default();
            rest.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
        };
        Some(Self { source, list: raw.into_iter().map(|(at, offset, length)| (name(at), offset, length)).collect() })
    }

    /// Returns the bytes of a section; none if it is not there or has more than `most`.
    pub(crate) fn get(&self, name: &str, most: usize) -> Option<Vec<u8>> {
        let (_, offset, length) = self.list.iter().find(|(own, _, _)| own == name.as_bytes())?;
        self.source.read_at(*offset, usize::try_from(*length).ok().filter(|l| *l <= most)?)
    }
}

/// Returns a small program of 64 bits with these sections.
#[cfg(test)]
pub(crate) fn program(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = vec![0_u8];
    let mut out = vec![0_u8; 64];
    let mut entries = vec![[0_u8; 64]];
    let mut entry = |names: &mut Vec<u8>, name: &str, offset: usize, length: usize| {
        let mut entry = [0_u8; 64];
        entry[..4].copy_from_slice(&u32::try_from(names.len()).expect("small").to_le_bytes());
        entry[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
        entry[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
        names.extend(name.as_bytes());
        names.push(0);
        entries.push(entry);
    };
    for (name, bytes) in sections {
        entry(&mut names, name, out.len(), bytes.len());
        out.extend(*bytes);
    }
    let length = names.len() + ".names".len() + 1;
    entry(&mut names, ".names", out.len(), length);
    out.extend(&names);
    let (table, count) = (out.len() as u64, u16::try_from(entries.len()).expect("few"));
    entries.iter().for_each(|entry| out.extend(entry));
    out[..6].copy_from_slice(b"\x7fELF\x02\x01");
    out[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    for (at, value) in [(0x3a, 64), (0x3c, count), (0x3e, count - 1)] {
        out[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_by_name() {
        let program = program(&[(".a", b"one"), (".b", b"three")]);
        let source = program.as_slice();
        let sections = Sections::of(&source).expect("a program");
        assert_eq!(sections.get(".b", 9).as_deref(), Some(&b"three"[..]));
        assert_eq!(sections.get(".b", 4), None);
        assert_eq!(sections.get(".c", 9), None);
    }

    #[test]
    fn damage_is_no_program() {
        let whole = program(&[(".a", b"one")]);
        for length in 0..whole.len() {
            assert!(Sections::of(&&whole[..length]).is_none(), "{length}");
        }
        for at in 16..whole.len() {
            let mut broken = whole.clone();
            broken[at] = 0xff;
            // Any answer will do, as long as there is one.
            drop(Sections::of(&broken.as_slice()).and_then(|s| s.get(".a", 9)));
        }
    }
}
