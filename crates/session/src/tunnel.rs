//! A byte stream inside a stream of messages: `Control.Session`, SSH forwarding.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard, PollSender, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::transport::server::Connected;

use crate::proto;

/// Largest piece sent as one message, in bytes.
const PIECE: usize = 32 * 1024;
/// Most pieces waiting to be sent.
const QUEUE: usize = 16;

/// A message that is only bytes.
pub trait BytesFrame: Send + 'static {
    /// Wraps bytes.
    fn from_data(data: Bytes) -> Self;
    /// Unwraps the bytes.
    fn into_data(self) -> Bytes;
}

macro_rules! bytes_frame {
    ($($type:ty),*) => {$(
        impl BytesFrame for $type {
            fn from_data(data: Bytes) -> Self {
                Self { data }
            }

            fn into_data(self) -> Bytes {
                self.data
            }
        }
    )*};
}

bytes_frame!(
    proto::control::BytesMessage,
    proto::ssh::BytesMessage,
    proto::upload::BytesMessage,
    proto::filesync::BytesMessage
);

/// One end of a tunnel. Dropping it ends both directions.
pub struct Tunnel {
    incoming: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    rest: Bytes,
    outgoing: PollSender<Bytes>,
    ended: CancellationToken,
    _guard: DropGuard,
}

/// The messages that a tunnel sends; hand them to the call.
pub type Outgoing<F> = futures::stream::Map<ReceiverStream<Bytes>, fn(Bytes) -> F>;

impl Tunnel {
    /// Makes a tunnel that reads `incoming`, and the stream of messages it sends.
    pub fn new<F: BytesFrame>(incoming: impl Stream<Item = Result<F, Status>> + Send + 'static) -> (Self, Outgoing<F>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let outgoing: Outgoing<F> = ReceiverStream::new(receiver).map(F::from_data as fn(Bytes) -> F);
        let ended = CancellationToken::new();
        let incoming = incoming.map(|m| {
            m.map(F::into_data).map_err(|s| io::Error::new(io::ErrorKind::ConnectionReset, s.message().to_owned()))
        });
        let tunnel = Self {
            incoming: Box::pin(incoming),
            rest: Bytes::new(),
            outgoing: PollSender::new(sender),
            _guard: ended.clone().drop_guard(),
            ended,
        };
        (tunnel, outgoing)
    }

    /// Makes the sending half first, for calls that need it before there is anything to read.
    pub fn outgoing_first<F: BytesFrame>() -> (PendingTunnel, Outgoing<F>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (PendingTunnel { sender }, ReceiverStream::new(receiver).map(F::from_data as fn(Bytes) -> F))
    }

    /// Returns a token that is cancelled when this end is dropped or has read the end of the stream.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

/// A tunnel whose reading half is still to come.
#[derive(Debug)]
pub struct PendingTunnel {
    sender: mpsc::Sender<Bytes>,
}

impl PendingTunnel {
    /// Completes the tunnel.
    pub fn attach<F: BytesFrame>(self, incoming: impl Stream<Item = Result<F, Status>> + Send + 'static) -> Tunnel {
        let (mut tunnel, _) = Tunnel::new(incoming);
        tunnel.outgoing = PollSender::new(self.sender);
        tunnel
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed the stream")
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.incoming.as_mut().poll_next(cx)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => {
                    self.ended.cancel();
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.ended.cancel();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let len = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if ready!(self.outgoing.poll_reserve(cx)).is_err() {
            self.ended.cancel();
            return Poll::Ready(Err(broken()));
        }
        let len = data.len().min(PIECE);
        let sent = self.outgoing.send_item(Bytes::copy_from_slice(&data[..len]));
        Poll::Ready(sent.map(|()| len).map_err(|_| broken()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

/// A byte stream with a token for its life: when the token is cancelled the stream breaks, and when the stream is
/// dropped, as a connection does with it at its end, the token is cancelled.
pub(crate) struct Cut<I> {
    io: I,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _ended: DropGuard,
}

impl<I> Cut<I> {
    pub(crate) fn new(io: I, life: &CancellationToken) -> Self {
        Self { io, cut: Box::pin(life.clone().cancelled_owned()), _ended: life.clone().drop_guard() }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Cut<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A connection always reads, so that this is where it is woken.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Cut<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<I> Connected for Cut<I> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
