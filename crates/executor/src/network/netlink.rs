//! Messages to the kernel about links, addresses, routes and packet filters: their form, and a socket to send them by.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// How long the kernel may take to answer.
const SECONDS: i64 = 10;
/// The largest answer that is read; the kernel sends no more than a page or two at once.
const ANSWER: usize = 32 << 10;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 1 << 15;

/// One message: a header, a fixed part, attributes.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Begins a request of a kind with its fixed part; `flags` are further ones than that it is a request.
    pub(super) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; size_of::<libc::nlmsghdr>()];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.attribute(kind, value);
        self
    }

    /// Adds a text, with the zero that ends it.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.with(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds what `fill` puts in.
    pub(super) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        let mut filled = fill(self);
        let length = u16::try_from(filled.bytes.len() - at).unwrap_or(u16::MAX);
        filled.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// Adds bytes that are no attribute.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Returns the bytes, numbered.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A socket to the kernel; it belongs to the network namespace of the thread that opens it.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket of a protocol (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub(super) fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: no memory is passed; the descriptor is new and owned from here on.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let limit = libc::timeval { tv_sec: SECONDS, tv_usec: 0 };
        // SAFETY: the option's value is a `timeval` of this size.
        unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                std::ptr::from_ref(&limit).cast(),
                u32::try_from(size_of::<libc::timeval>()).unwrap_or(0),
            );
        }
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request and waits until it is carried out.
    pub(super) fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message])
    }

    /// Sends messages in one go and waits until the last is carried out; it must ask for an answer, and so must every
    /// one whose failure counts.
    pub(super) fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let bytes = self.number(messages);
        let last = self.sequence;
        self.send(&bytes)?;
        let mut failed = None;
        self.answers(|sequence, kind, body| {
            if kind != libc::NLMSG_ERROR {
                return false;
            }
            let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
            if code != 0 && failed.is_none() {
                failed = Some(io::Error::from_raw_os_error(-code));
            }
            sequence == last || failed.is_some()
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Sends a question and returns the first answer's body.
    pub(super) fn ask(&mut self, message: Message) -> io::Result<Vec<u8>> {
        let bytes = self.number(vec![message]);
        self.send(&bytes)?;
        let mut answer = Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        self.answers(|_, kind, body| {
            answer = match kind {
                libc::NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    Err(io::Error::from_raw_os_error(-code))
                }
                _ => Ok(body.to_vec()),
            };
            true
        })?;
        answer
    }

    fn number(&mut self, messages: Vec<Message>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence));
        }
        bytes
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length are those of one slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads answers until `take` has seen enough; it gets sequence number, kind and body of each.
    fn answers(&self, mut take: impl FnMut(u32, i32, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0_u8; ANSWER];
        loop {
            // SAFETY: the pointer and length are those of one buffer.
            let read = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
            let mut rest = &buffer[..read];
            while rest.len() >= 16 {
                let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
                let length = (word(0) as usize).clamp(16, rest.len());
                let kind = i32::from(u16::from_ne_bytes([rest[4], rest[5]]));
                if take(word(8), kind, &rest[16..length]) {
                    return Ok(());
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

/// Returns the value of an attribute behind the fixed part of an answer's body.
pub(super) fn attribute(body: &[u8], fixed: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = body.get(fixed..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let found = u16::from_ne_bytes([rest[2], rest[3]]) & !NESTED;
        let value = rest.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let message = Message::new(16, libc::NLM_F_ACK, &[1, 2, 3, 4]).text(3, "ab").nest(18, |m| m.with(1, &[7]));
        let bytes = message.finish(9);
        assert_eq!(u32::from_ne_bytes(bytes[0..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u32::from_ne_bytes(bytes[8..12].try_into().unwrap()), 9);
        let body = &bytes[16..];
        assert_eq!(attribute(body, 4, 3), Some(&b"ab\0"[..]));
        let nested = attribute(body, 4, 18).unwrap();
        assert_eq!(attribute(nested, 0, 1), Some(&[7][..]));
        assert_eq!(attribute(body, 4, 5), None);
        assert_eq!(attribute(&[9, 0, 3, 0], 0, 3), None, "longer than what is there");
    }

    #[test]
    fn the_kernel_answers() {
        let mut socket = Socket::open(libc::NETLINK_ROUTE).unwrap();
        let fixed = [0; 16];
        let question = Message::new(libc::RTM_GETLINK, 0, &fixed).text(libc::IFLA_IFNAME, "lo");
        let body = socket.ask(question).unwrap();
        assert_eq!(attribute(&body, 16, libc::IFLA_IFNAME), Some(&b"lo\0"[..]));
        let question = Message::new(libc::RTM_GETLINK, 0, &fixed).text(libc::IFLA_IFNAME, "none-such");
        assert_eq!(socket.ask(question).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
