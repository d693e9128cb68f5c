//! Messages with descriptors over sequenced-packet sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

/// The most descriptors in one message.
pub(crate) const MAX_FDS: usize = 8;
/// The longest message in bytes. Longer data goes into a memfd.
pub(crate) const MAX_MESSAGE: usize = 16 << 10;

/// Returns a connected pair; both ends close on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((a, b))
}

/// Sends one message.
///
/// # Errors
/// EPIPE when the other end is closed; EAGAIN on a non-blocking socket that is full.
pub(crate) fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::INVAL);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// One received message; empty data without descriptors means the other end is closed.
pub(crate) struct Message {
    pub data: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Receives one message.
///
/// # Errors
/// EAGAIN on a non-blocking socket that has none; EMSGSIZE when data or descriptors were cut off.
pub(crate) fn receive(socket: impl AsFd) -> rustix::io::Result<Message> {
    let mut data = vec![0u8; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC) {
        return Err(rustix::io::Errno::MSGSIZE);
    }
    data.truncate(received.bytes);
    Ok(Message { data, fds })
}
