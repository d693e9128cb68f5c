//! Large blobs in parts, which stores put together again.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::{Digest, DigestHasher};

/// A source cut into parts. The last one comes only if all of them are what the digest says.
pub(crate) struct Blocks {
    stream: BoxStream<'static, std::io::Result<Bytes>>,
    rest: BytesMut,
    hasher: DigestHasher,
    digest: Digest,
    left: u64,
    part: usize,
}

impl Blocks {
    /// Opens `source`, whose parts have `part` bytes but the last.
    pub(crate) async fn open(
        source: &Arc<dyn BlobSource>,
        digest: &Digest,
        size: u64,
        part: usize,
    ) -> Result<Self, ErrorKind> {
        let stream = source.open().await.map_err(ErrorKind::Source)?;
        let (rest, hasher) = (BytesMut::new(), DigestHasher::new());
        Ok(Self { stream, rest, hasher, digest: *digest, left: size, part })
    }

    /// Returns the next part; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ErrorKind> {
        if self.left == 0 {
            return Ok(None);
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.part);
        while self.rest.len() < wanted {
            match self.stream.next().await {
                Some(Ok(piece)) => self.rest.extend_from_slice(&piece),
                Some(Err(error)) => return Err(ErrorKind::Source(error)),
                None => return Err(ErrorKind::SourceDamaged),
            }
        }
        let part = self.rest.split_to(wanted).freeze();
        self.hasher.update(&part);
        self.left -= part.len() as u64;
        if self.left == 0 && (!self.rest.is_empty() || std::mem::take(&mut self.hasher).finish() != self.digest) {
            return Err(ErrorKind::SourceDamaged);
        }
        Ok(Some(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts(data: &'static [u8], size: u64, digest: Digest) -> Result<Vec<usize>, ErrorKind> {
        let source: Arc<dyn BlobSource> = Arc::new(Bytes::from_static(data));
        let mut blocks = Blocks::open(&source, &digest, size, 4).await?;
        let mut sizes = Vec::new();
        while let Some(part) = blocks.next().await? {
            sizes.push(part.len());
        }
        Ok(sizes)
    }

    #[tokio::test]
    async fn the_last_part_needs_all_of_them() {
        assert_eq!(parts(b"0123456789", 10, Digest::of("0123456789")).await.unwrap(), [4, 4, 2]);
        assert_eq!(parts(b"01234567", 8, Digest::of("01234567")).await.unwrap(), [4, 4]);
        for (size, digest) in [(10, "other"), (9, "0123456789"), (11, "0123456789")] {
            let failed = parts(b"0123456789", size, Digest::of(digest)).await;
            assert!(matches!(failed, Err(ErrorKind::SourceDamaged)), "{size} {digest}");
        }
    }
}
