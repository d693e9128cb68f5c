//! A codec that leaves messages encoded, for the one method on which two message types travel.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Passes the bytes of a message through.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodedCodec;

/// The encoding half of [`EncodedCodec`].
#[derive(Debug, Clone, Copy)]
pub struct EncodedEncoder<T = Bytes>(PhantomData<fn(T)>);

impl<T> Default for EncodedEncoder<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// The decoding half of [`EncodedCodec`].
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodedDecoder;

impl Codec for EncodedCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = EncodedEncoder<Bytes>;
    type Decoder = EncodedDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        EncodedEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        EncodedDecoder
    }
}

impl Encoder for EncodedEncoder<Bytes> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for EncodedDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = src.remaining();
        Ok(Some(src.copy_to_bytes(len)))
    }
}

/// What a file transfer sends: pieces, or the news that there will be no more although the file is not complete.
#[derive(Debug)]
pub enum FileFrame {
    /// An encoded message.
    Message(Bytes),
    /// Breaks the call off. The end of the stream would say that the file is complete.
    Abort,
}

/// Sends [`FileFrame`]s, passes the bytes of answers through.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileCodec;

impl Codec for FileCodec {
    type Encode = FileFrame;
    type Decode = Bytes;
    type Encoder = EncodedEncoder<FileFrame>;
    type Decoder = EncodedDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        EncodedEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        EncodedDecoder
    }
}

impl Encoder for EncodedEncoder<FileFrame> {
    type Item = FileFrame;
    type Error = Status;

    fn encode(&mut self, item: FileFrame, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            FileFrame::Message(data) => dst.put(data),
            FileFrame::Abort => return Err(Status::cancelled("the file was not sent to its end")),
        }
        Ok(())
    }
}
