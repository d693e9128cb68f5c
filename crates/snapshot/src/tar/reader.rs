//! Reading archives member by member, from any of the formats in use.

use std::collections::BTreeMap;
use std::io::{BufRead, ErrorKind};

use super::header::{BLOCK, Block, text};
use super::pax::Pax;
use super::sparse::{DataMap, Map};
use crate::error::{ArchiveProblem, Error, Result};

/// Largest extended header or long name, in bytes.
const EXTENDED: u64 = 1 << 20;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A further name of an earlier member.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

/// One member of an archive, with all its extended headers applied.
#[derive(Debug, Clone)]
pub struct Member {
    /// The name as stored: nothing is cleaned.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Size of a file in bytes, holes included; 0 for everything else.
    pub size: u64,
    /// Target of a link, as stored.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes as stored.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    parts: Option<Vec<(u64, u64)>>,
}

/// Reads an archive.
pub struct Reader<R> {
    input: R,
    /// Bytes of the current member that were not read.
    data: u64,
    /// Bytes of padding behind them.
    padding: u64,
    globals: Pax,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `input`, which must not be compressed.
    pub fn new(input: R) -> Self {
        Self { input, data: 0, padding: 0, globals: Pax::default() }
    }

    /// Returns the input, which may hold more behind the end of the archive.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Returns the next member, skipping what was not read of the last one; `None` at the end of the archive.
    ///
    /// # Errors
    /// [`Error::Input`] when reading fails, [`Error::Archive`] for everything that is no good archive.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        let mut pax = self.globals.inheritable();
        let (mut long_name, mut long_link) = (None, None);
        self.skip_rest()?;
        loop {
            let Some(bytes) = self.block(true)? else { return Ok(None) };
            let block = Block(&bytes);
            if block.is_zero() {
                return Ok(None);
            }
            let name = block.path();
            let fail = |problem| Error::archive(&name, problem);
            if !block.checksum_matches() {
                return Err(fail(ArchiveProblem::Checksum));
            }
            match block.kind() {
                b'x' => pax.read(&self.extended(&block, "an extended header")?).map_err(fail)?,
                b'g' => {
                    let data = self.extended(&block, "an extended header")?;
                    self.globals.read(&data).map_err(fail)?;
                    pax = self.globals.inheritable();
                }
                b'L' => long_name = Some(text(&self.extended(&block, "a long name")?).to_vec()),
                b'K' => long_link = Some(text(&self.extended(&block, "a long name")?).to_vec()),
                // A volume's label is no member.
                b'V' => {
                    self.data = size_of(&block).map_err(fail)?;
                    self.padding = padding(self.data);
                    self.skip_rest()?;
                }
                _ => {
                    let path = pax.path.take().or(long_name).unwrap_or(name);
                    let link = pax.link.take().or(long_link).unwrap_or_else(|| block.link().to_vec());
                    return self.member(&bytes, path, link, pax).map(Some);
                }
            }
        }
    }

    /// Hands the bytes of the current member to `sink`, each piece with its offset in the file. Offsets ascend;
    /// what lies between pieces, and behind the last one up to the member's size, is zero.
    ///
    /// # Errors
    /// Those of `sink`, [`Error::Input`], and [`Error::Archive`] when the archive ends early.
    pub fn read_data(&mut self, member: &Member, mut sink: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let whole = [(0, self.data)];
        for &(offset, len) in member.parts.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < len {
                let buf = fill(&mut self.input, &member.path)?;
                let n = usize::try_from(len - done).unwrap_or(buf.len()).min(buf.len());
                sink(offset + done, &buf[..n])?;
                self.input.consume(n);
                self.data = self.data.saturating_sub(n as u64);
                done += n as u64;
            }
        }
        Ok(())
    }

    fn member(&mut self, bytes: &[u8; BLOCK], path: Vec<u8>, link: Vec<u8>, pax: Pax) -> Result<Member> {
        let block = Block(bytes);
        let path = pax.sparse.name.clone().unwrap_or(path);
        let fail = |problem| Error::archive(&path, problem);
        let kind = match block.kind() {
            0 if path.ends_with(b"/") => MemberKind::Dir,
            // Contiguous files and GNU's old sparse files are files.
            0 | b'0' | b'7' | b'S' => MemberKind::File,
            b'1' => MemberKind::HardLink,
            b'2' => MemberKind::Symlink,
            b'3' => MemberKind::CharDevice,
            b'4' => MemberKind::BlockDevice,
            b'5' => MemberKind::Dir,
            b'6' => MemberKind::Fifo,
            other => return Err(fail(ArchiveProblem::UnknownType(other))),
        };
        let id = |pax: Option<i64>, own: Result<i64, ArchiveProblem>, what| {
            let id = pax.map_or(own, Ok)?;
            u32::try_from(id).map_err(|_| ArchiveProblem::BadValue(what))
        };
        let device = matches!(kind, MemberKind::CharDevice | MemberKind::BlockDevice);
        let mut member = Member {
            kind,
            mode: block.mode().map_err(fail)?,
            uid: id(pax.uid, block.uid(), "uid").map_err(fail)?,
            gid: id(pax.gid, block.gid(), "gid").map_err(fail)?,
            mtime: pax.mtime.map_or_else(|| block.mtime().map(|s| (s, 0)), Ok).map_err(fail)?,
            size: 0,
            link,
            device: if device { block.device().map_err(fail)? } else { (0, 0) },
            xattrs: pax.xattrs.clone(),
            parts: None,
            path: path.clone(),
        };
        // Links, directories and nodes have no data even where a writer left a size in the header.
        if kind == MemberKind::File {
            self.data = pax.size.map_or_else(|| size_of(&block), Ok).map_err(fail)?;
            self.padding = padding(self.data);
            member.size = self.data;
            if let Some(map) = self.sparse_map(bytes, &pax, &path)? {
                member.size = map.size;
                member.parts = Some(map.parts);
            }
        }
        Ok(member)
    }

    fn sparse_map(&mut self, header: &[u8; BLOCK], pax: &Pax, path: &[u8]) -> Result<Option<Map>> {
        let fail = |problem| Error::archive(path, problem);
        let map = if header[156] == b'S' {
            let (mut map, mut more) = Map::from_gnu_header(header).map_err(fail)?;
            while more {
                let block = self.needed_block(path)?;
                more = map.extend_gnu(&block).map_err(fail)?;
            }
            map
        } else if pax.sparse.version.0 == Some(1) {
            let size = pax.sparse.real_size.ok_or_else(|| fail(ArchiveProblem::BadSparseMap))?;
            let mut map = DataMap::default();
            loop {
                self.data = self.data.checked_sub(BLOCK as u64).ok_or_else(|| fail(ArchiveProblem::BadSparseMap))?;
                let block = self.needed_block(path)?;
                if map.take(&block).map_err(fail)? {
                    break map.finish(size);
                }
            }
        } else if let Some(parts) = &pax.sparse.map {
            let size = pax.sparse.real_size.ok_or_else(|| fail(ArchiveProblem::BadSparseMap))?;
            Map { parts: parts.clone(), size }
        } else {
            return Ok(None);
        };
        map.check(self.data).map(Some).map_err(fail)
    }

    /// Reads the data of a header that extends the next one.
    fn extended(&mut self, block: &Block<'_>, what: &'static str) -> Result<Vec<u8>> {
        let path = block.path();
        let size = size_of(block).map_err(|problem| Error::archive(&path, problem))?;
        if size > EXTENDED {
            return Err(Error::archive(&path, ArchiveProblem::TooLarge(what)));
        }
        let mut data = Vec::new();
        self.data = size;
        self.padding = padding(size);
        while self.data > 0 {
            let buf = fill(&mut self.input, &path)?;
            let n = usize::try_from(self.data).unwrap_or(buf.len()).min(buf.len());
            data.extend_from_slice(&buf[..n]);
            self.input.consume(n);
            self.data -= n as u64;
        }
        self.skip_rest()?;
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<()> {
        let mut left = std::mem::take(&mut self.data).saturating_add(std::mem::take(&mut self.padding));
        while left > 0 {
            let buf = fill(&mut self.input, b"")?;
            let n = usize::try_from(left).unwrap_or(buf.len()).min(buf.len());
            self.input.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    fn needed_block(&mut self, path: &[u8]) -> Result<[u8; BLOCK]> {
        self.block(false)?.ok_or_else(|| Error::archive(path, ArchiveProblem::Truncated))
    }

    /// Reads a block; `None` when the input ends before it and `may_end`.
    fn block(&mut self, may_end: bool) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let buf = match self.input.fill_buf() {
                Ok(buf) => buf,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::Input(e)),
            };
            if buf.is_empty() {
                if have == 0 && may_end {
                    return Ok(None);
                }
                return Err(Error::archive(b"", ArchiveProblem::Truncated));
            }
            let n = buf.len().min(BLOCK - have);
            block[have..have + n].copy_from_slice(&buf[..n]);
            self.input.consume(n);
            have += n;
        }
        Ok(Some(block))
    }
}

fn fill<'a, R: BufRead>(input: &'a mut R, path: &[u8]) -> Result<&'a [u8]> {
    // The borrow checker does not let a filled buffer out of a loop, so interruptions are waited out first.
    loop {
        match input.fill_buf() {
            Ok([]) => return Err(Error::archive(path, ArchiveProblem::Truncated)),
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::Input(e)),
        }
    }
    input.fill_buf().map_err(Error::Input)
}

fn size_of(block: &Block<'_>) -> Result<u64, ArchiveProblem> {
    block.size().and_then(|n| u64::try_from(n).map_err(|_| ArchiveProblem::BadValue("size")))
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

#[cfg(test)]
mod tests;
