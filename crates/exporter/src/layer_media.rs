//! Media types of layers: between OCI's and Docker's, and what their descriptors may carry outside.

use kiln_oci::{Descriptor, media};

const OCI_NONDIST: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

/// Annotations that are the builder's own notes.
const INTERNAL: &[&str] = &["containerd.io/uncompressed", "buildkit/createdat"];
const INTERNAL_PREFIX: &str = "containerd.io/distribution.source.";

/// Gives a layer's descriptor the form that manifests have.
pub(crate) fn convert(descriptor: &mut Descriptor, oci: bool, keep_nondist: bool) {
    if oci {
        descriptor.annotations.retain(|key, _| !INTERNAL.contains(&key.as_str()) && !key.starts_with(INTERNAL_PREFIX));
    } else {
        descriptor.annotations.clear();
    }
    descriptor.platform = None;
    let Some((nondist, compression)) = parse(&descriptor.media_type) else { return };
    let nondist = nondist && keep_nondist;
    if !nondist {
        descriptor.urls.clear();
    }
    let base = match (oci, nondist) {
        (true, false) => media::OCI_LAYER,
        (true, true) => OCI_NONDIST,
        (false, false) => media::DOCKER_LAYER,
        (false, true) => DOCKER_FOREIGN,
    };
    let joint = if oci { '+' } else { '.' };
    descriptor.media_type = match compression {
        "" => base.to_owned(),
        compression => format!("{base}{joint}{compression}"),
    };
}

/// Returns whether a layer is non-distributable, and its compression; none for types that are no tar layers.
fn parse(media_type: &str) -> Option<(bool, &str)> {
    for (base, nondist) in
        [(media::OCI_LAYER, false), (OCI_NONDIST, true), (media::DOCKER_LAYER, false), (DOCKER_FOREIGN, true)]
    {
        if let Some(rest) = media_type.strip_prefix(base)
            && (rest.is_empty() || rest.starts_with(['+', '.']))
        {
            return Some((nondist, rest.trim_start_matches(['+', '.'])));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use kiln_stdx::Digest;

    use super::*;

    fn converted(media_type: &str, oci: bool, keep: bool) -> Descriptor {
        let mut descriptor = Descriptor::new(media_type, Digest::of("x"), 1);
        descriptor.urls = vec!["https://example.org/l".into()];
        for key in ["containerd.io/uncompressed", "containerd.io/distribution.source.r", "mine"] {
            descriptor.annotations.insert(key.into(), "v".into());
        }
        convert(&mut descriptor, oci, keep);
        descriptor
    }

    #[test]
    fn types_are_translated_both_ways() {
        for (from, oci, to) in [
            (media::DOCKER_LAYER_GZIP, true, media::OCI_LAYER_GZIP),
            (media::OCI_LAYER_ZSTD, false, media::DOCKER_LAYER_ZSTD),
            (media::OCI_LAYER, false, media::DOCKER_LAYER),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true, media::OCI_LAYER_GZIP),
            ("application/x-other", false, "application/x-other"),
        ] {
            assert_eq!(converted(from, oci, false).media_type, to);
        }
    }

    #[test]
    fn foreign_layers_stay_foreign_when_asked() {
        let kept = converted("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true, true);
        assert_eq!(kept.media_type, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        assert_eq!(kept.urls.len(), 1);
        assert!(converted(media::OCI_LAYER, true, true).urls.is_empty());
    }

    #[test]
    fn notes_of_the_builder_stay_inside() {
        let oci = converted(media::OCI_LAYER, true, false);
        assert_eq!(oci.annotations.keys().collect::<Vec<_>>(), ["mine"]);
        assert!(converted(media::OCI_LAYER, false, false).annotations.is_empty());
    }
}
