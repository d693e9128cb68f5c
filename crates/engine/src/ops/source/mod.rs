//! Source: what comes from outside the graph, by the scheme of its identifier.

pub mod blob;
pub mod git;
pub mod http;
pub mod image;
pub mod local;
mod one_file;

use std::sync::Arc;

use kiln_llb::Vertex;
use kiln_llb::op::SourceOp;
use kiln_oci::Platform;
use kiln_solver::Op;
use kiln_store::ImmutableRef;

use crate::error::EngineError;
use crate::parts::Parts;

/// Returns the operation of a source.
///
/// # Errors
/// An identifier or attribute that is malformed, or a scheme that this engine does not know.
pub fn operation(
    parts: &Arc<Parts>,
    vertex: &Arc<Vertex>,
    source: &SourceOp,
) -> Result<Arc<dyn Op<ImmutableRef>>, EngineError> {
    let (scheme, rest) = source
        .split()
        .ok_or_else(|| EngineError::user(format!("invalid source {:?}: no scheme", source.identifier)))?;
    let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
    Ok(match scheme {
        "docker-image" => Arc::new(image::Image::registry(parts.clone(), rest, source, platform)?),
        "oci-layout" => Arc::new(image::Image::layout(parts.clone(), rest, source, platform)?),
        "docker-image+blob" | "oci-layout+blob" => Arc::new(blob::BlobOp::new(parts.clone(), source)?),
        "local" => Arc::new(local::Local::new(parts.clone(), rest, source)?),
        "http" | "https" => Arc::new(http::Http::new(parts.clone(), source)?),
        "git" => Arc::new(git::GitOp::new(parts.clone(), source)?),
        other => return Err(EngineError::user(format!("unknown source scheme {other}://"))),
    })
}
