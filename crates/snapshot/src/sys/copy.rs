//! Copying the bytes of a file with as little work as the file system allows: shared extents where it can, else
//! inside the kernel, with holes kept.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

const PIECE: usize = 1 << 30;
/// Up to this size a read and a write cost less than sharing extents or looking for holes.
const SMALL: usize = 16 << 10;

/// Copies `size` bytes of `from` to the empty file `to`.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    if size <= SMALL as u64 {
        return copy_small(from, to, size);
    }
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let (data, hole) = match next_data(from, at, size)? {
            Some(range) => range,
            None => break,
        };
        copy_range(from, to, data, hole)?;
        at = hole;
    }
    rustix::fs::ftruncate(to, size)
}

fn copy_small(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    let mut buf = [0u8; SMALL];
    let mut at = 0;
    while at < size {
        let want = usize::try_from(size - at).unwrap_or(SMALL).min(SMALL);
        match rustix::io::pread(from, &mut buf[..want], at) {
            // It has become shorter: what is missing reads as zeros, and the digest will not match.
            Ok(0) => return rustix::fs::ftruncate(to, size),
            Ok(n) => {
                write_at(to, &buf[..n], at)?;
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Returns the next range that holds data, at or behind `at`.
fn next_data(from: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // No notion of holes: all of it is data.
        Err(Errno::INVAL) => return Ok(Some((at, size))),
        Err(e) => return Err(e),
    };
    let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
    Ok((data < size).then_some((data, hole.min(size))))
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
    let (mut src, mut dst) = (start, start);
    while src < end {
        let want = usize::try_from(end - src).unwrap_or(PIECE).min(PIECE);
        match rustix::fs::copy_file_range(from, Some(&mut src), to, Some(&mut dst), want) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(from, to, src, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_by_hand(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buf = vec![0u8; 256 * 1024];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(buf.len()).min(buf.len());
        let n = match rustix::io::pread(from, &mut buf[..want], at) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        write_at(to, &buf[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_at(to: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(to, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
