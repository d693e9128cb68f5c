//! Pieces of an image: documents made here, and blobs of the store or of elsewhere.

use std::io::{self, Read, Write};

use bytes::Bytes;
use kiln_oci::Descriptor;
use kiln_store::{Blob, Layer};

use crate::error::{ExportError, Result};
use crate::source::RemoteLayers;

/// Size of the pieces in which blobs are copied, in bytes.
const PIECE: usize = 256 << 10;

/// One piece of an image.
#[derive(Clone)]
pub struct Content {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    pub(crate) data: Data,
    /// The layer that it is a form of.
    pub(crate) layer: Option<Layer>,
}

#[derive(Clone)]
pub(crate) enum Data {
    /// A document.
    Bytes(Bytes),
    /// A blob of the store, kept from GC.
    Blob(Blob),
    /// A layer's blob that was never fetched.
    Remote(Layer),
}

impl Content {
    pub(crate) fn document(descriptor: Descriptor, bytes: Vec<u8>) -> Self {
        Self { descriptor, data: Data::Bytes(bytes.into()), layer: None }
    }

    /// Returns the bytes of a document; none for layers.
    pub fn document_bytes(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Tells whether the bytes would have to be fetched first.
    pub fn is_remote(&self) -> bool {
        matches!(self.data, Data::Remote(_))
    }

    /// Opens the bytes, fetching them where they are elsewhere. Reading to the end fails if they are damaged.
    ///
    /// # Errors
    /// The blob cannot be opened or fetched.
    pub fn open(&self, remote: &dyn RemoteLayers) -> Result<Box<dyn Read + Send>> {
        Ok(match &self.data {
            Data::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Data::Blob(blob) => Box::new(blob.open_verified()?),
            Data::Remote(layer) => Box::new(remote.fetch(layer, &self.descriptor.digest)?.open_verified()?),
        })
    }

    /// Copies the bytes to `out`, telling `moved` of each piece.
    ///
    /// # Errors
    /// As [`Self::open`]; damage; an output that takes no more.
    pub fn copy_to(&self, remote: &dyn RemoteLayers, out: &mut dyn Write, moved: &mut dyn FnMut(u64)) -> Result<()> {
        let mut source = self.open(remote)?;
        let mut buffer = vec![0; PIECE];
        let mut left = self.descriptor.size;
        loop {
            let n = match source.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.damaged(&e.to_string())),
            };
            if n as u64 > left || (n == 0 && left > 0) {
                return Err(self.damaged("it has another length"));
            }
            if n == 0 {
                return Ok(());
            }
            left -= n as u64;
            out.write_all(&buffer[..n]).map_err(ExportError::write("the image"))?;
            moved(n as u64);
        }
    }

    fn damaged(&self, what: &str) -> ExportError {
        ExportError::Damaged { path: self.descriptor.digest.to_string(), what: what.to_owned() }
    }
}
