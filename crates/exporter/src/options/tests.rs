//! Which attributes are taken, and what is said about others.

use super::*;
use crate::testing::map;

fn parse(kind: &str, attributes: &[(&str, &str)]) -> Result<Options> {
    Options::parse(ExporterKind::parse(kind)?, &map(attributes))
}

#[test]
fn defaults_are_those_of_the_protocol() {
    let options = parse("image", &[]).unwrap();
    let commit = CommitOptions { inline_attestations: true, ..CommitOptions::default() };
    assert_eq!((options.image.clone(), options.commit.clone()), (ImageOptions::default(), commit));
    assert!(options.tar && options.image.store && !options.image.push);
    assert_eq!(options.commit.compression.kind, Kind::Gzip);
}

#[test]
fn every_attribute_is_read() {
    let options = parse(
        "image",
        &[
            ("name", "a,b:1"),
            ("push", "true"),
            ("store", "0"),
            ("compression", "zstd"),
            ("compression-level", "19"),
            ("force-compression", ""),
            ("oci-mediatypes", "false"),
            ("source-date-epoch", "12"),
            ("annotation.k", "v"),
            ("containerimage.config", "{}"),
            ("dest", "ignored"),
        ],
    )
    .unwrap();
    assert!(options.image.push && !options.image.store && options.commit.force_compression);
    assert_eq!(options.commit.compression, Compression { kind: Kind::Zstd, level: Some(19) });
    assert_eq!((options.commit.oci_types, options.commit.epoch), (Some(false), Some(Some(12))));
    assert_eq!(options.commit.metadata["containerimage.config"], b"{}");
    assert_eq!(parse("local", &[("mode", "delete")]).unwrap().files.mode, LocalMode::Delete);
    assert_eq!(parse("tar", &[("source-date-epoch", "")]).unwrap().files.epoch, Some(None));
}

#[test]
fn what_is_wrong_is_named() {
    for (kind, attributes, parts) in [
        ("imgae", &[][..], &["imgae", "did you mean `image`"][..]),
        ("oci", &[("compresion", "gzip")], &["compresion", "oci exporter", "did you mean `compression`"]),
        ("local", &[("push", "true")], &["push", "local exporter"]),
        ("image", &[("push", "maybe")], &["push", "maybe", "true or false"]),
        ("image", &[("push", "true")], &["tag is needed when pushing to registry"]),
        ("image", &[("name", "A B")], &["name", "A B"]),
        ("oci", &[("compression", "lz4")], &["compression", "lz4"]),
        ("oci", &[("compression", "estargz")], &["estargz", "not supported"]),
        ("oci", &[("compression-level", "10")], &["compression-level", "0 to 9"]),
        ("oci", &[("compression", "zstd"), ("compression-level", "23")], &["0 to 22"]),
        ("oci", &[("compression-level", "fast")], &["fast"]),
        ("tar", &[("source-date-epoch", "noon")], &["source-date-epoch", "noon"]),
        ("tar", &[("source-date-epoch", "99999999999999999")], &["source-date-epoch"]),
        ("oci", &[("annotation-layer.x", "y")], &["annotation-layer.x"]),
        ("oci", &[("oci-mediatypes", "false"), ("oci-artifact", "true")], &["oci-artifact", "oci-mediatypes"]),
        ("image", &[("rewrite-timestamp", "true"), ("unpack", "true")], &["rewrite-timestamp", "unpack"]),
        ("local", &[("mode", "move")], &["mode", "move"]),
        ("local", &[("attestation-prefix", "a/b")], &["attestation-prefix"]),
    ] {
        let error = parse(kind, attributes).unwrap_err();
        assert_eq!(error.class(), kiln_stdx::ErrorClass::UserInput);
        for part in parts {
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
    }
}

#[test]
fn names_are_completed() {
    let text: Vec<_> = names("a, me/b:2,localhost:5000/c").unwrap().iter().map(Reference::to_string).collect();
    assert_eq!(text, ["docker.io/library/a:latest", "docker.io/me/b:2", "localhost:5000/c:latest"]);
    assert!(names("").unwrap().is_empty());
    assert!(names("a,").is_err());
}

#[test]
fn what_is_attested_by_default_goes_with_images_alone() {
    let inline = |kind, attributes: &[(&str, &str)]| parse(kind, attributes).unwrap().commit.inline_attestations;
    assert!(inline("image", &[]) && !inline("oci", &[]) && !inline("docker", &[]));
    assert!(inline("oci", &[("attestation-inline", "true")]) && !inline("image", &[("attestation-inline", "false")]));
}
