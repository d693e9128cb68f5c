//! Images from refs, looked at through their documents.

use std::io::Read;

use bytes::Bytes;
use kiln_oci::Platform;

use super::*;
use crate::attest::Attestation;
use crate::options::Options;
use crate::testing::{Fixture, map};

fn image(fixture: &Fixture, source: &ExportSource, attributes: &[(&str, &str)]) -> Result<BuiltImage> {
    let options = Options::parse(ExporterKind::Oci, &map(attributes)).unwrap();
    build(&fixture.context(), ExporterKind::Oci, &options.commit, LayerBytes::Needed, source)
}

fn document<'a>(image: &'a BuiltImage, digest: &Digest) -> &'a Bytes {
    let content = image.contents().find(|c| c.descriptor.digest == *digest).unwrap();
    content.document_bytes().unwrap()
}

fn manifest(image: &BuiltImage) -> Manifest {
    Manifest::from_json(document(image, &image.descriptor.digest)).unwrap()
}

fn config(image: &BuiltImage) -> ImageConfig {
    ImageConfig::from_json(document(image, &manifest(image).config.digest)).unwrap()
}

#[test]
fn one_platform_gives_a_manifest_with_all_its_pieces() {
    let fixture = Fixture::new();
    let image = image(&fixture, &fixture.source(), &[("name", "me/app:1,other")]).unwrap();
    let manifest = manifest(&image);
    assert_eq!(image.descriptor.media_type, media::OCI_MANIFEST);
    assert_eq!(manifest.layers.len(), 2);
    assert!(manifest.layers.iter().all(|l| l.media_type == media::OCI_LAYER_GZIP && l.annotations.is_empty()));
    assert_eq!(image.blobs.len(), 3);
    for content in image.contents() {
        let mut bytes = Vec::new();
        content.open(&crate::NoRemoteLayers).unwrap().read_to_end(&mut bytes).unwrap();
        let is = Descriptor::new(&content.descriptor.media_type, Digest::of(&bytes), bytes.len() as u64);
        assert_eq!((is.digest, is.size), (content.descriptor.digest, content.descriptor.size));
    }
    let config = config(&image);
    let reference = fixture.source().entries[0].reference.clone().unwrap();
    assert_eq!(config.rootfs.diff_ids.len(), reference.layers().len());
    let history: Vec<_> = config.history.iter().map(|h| h.created_by.as_str()).collect();
    assert_eq!(history, ["base", "RUN change"]);
    assert_eq!(config.created.as_deref(), Some("2023-11-14T22:13:20.25Z"));
    assert_eq!(image.created, "2023-11-14T22:13:20Z");

    let response = image.response().unwrap();
    assert_eq!(response["containerimage.digest"], image.descriptor.digest.to_string());
    assert_eq!(response["containerimage.config.digest"], manifest.config.digest.to_string());
    assert_eq!(response["image.name"], "docker.io/me/app:1,docker.io/library/other:latest");
    let descriptor = BASE64_STANDARD.decode(&response["containerimage.descriptor"]).unwrap();
    assert_eq!(serde_json::from_slice::<Descriptor>(&descriptor).unwrap(), image.descriptor);
    let statuses = fixture.progress.0.lock().clone();
    let manifest_status = format!("exporting manifest {}", image.descriptor.digest);
    assert!(statuses.contains(&"exporting layers".to_owned()) && statuses.contains(&manifest_status), "{statuses:?}");
}

#[test]
fn equal_results_give_equal_images_in_different_stores() {
    let digest = || {
        let fixture = Fixture::new();
        image(&fixture, &fixture.two_platforms(), &[]).unwrap().descriptor.digest
    };
    assert_eq!(digest(), digest());
}

#[test]
fn several_platforms_give_an_index_in_their_order() {
    let fixture = Fixture::new();
    let image = image(&fixture, &fixture.two_platforms(), &[("annotation-index.k", "v")]).unwrap();
    let index = Index::from_json(document(&image, &image.descriptor.digest)).unwrap();
    let platforms: Vec<_> = index.manifests.iter().map(|m| m.platform.as_ref().unwrap().to_string()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!((index.annotations["k"].as_str(), image.config_digest), ("v", None));
    assert_eq!(image.blobs.len(), 4, "the layers are shared");
    assert_eq!(image.manifests.last().unwrap().descriptor.digest, image.descriptor.digest);
}

#[test]
fn docker_types_throughout_when_asked() {
    let fixture = Fixture::new();
    let image = image(&fixture, &fixture.source(), &[("oci-mediatypes", "false")]).unwrap();
    let manifest = manifest(&image);
    assert_eq!(image.descriptor.media_type, media::DOCKER_MANIFEST);
    assert_eq!(manifest.config.media_type, media::DOCKER_CONFIG);
    assert_eq!(manifest.layers[0].media_type, media::DOCKER_LAYER_GZIP);
}

#[test]
fn compressions_differ_and_the_archive_inside_does_not() {
    let fixture = Fixture::new();
    let mut diff_ids = Vec::new();
    for (compression, media_type) in
        [("gzip", media::OCI_LAYER_GZIP), ("zstd", media::OCI_LAYER_ZSTD), ("uncompressed", media::OCI_LAYER)]
    {
        let attributes = [("compression", compression), ("force-compression", "true")];
        let image = image(&fixture, &fixture.source(), &attributes).unwrap();
        let manifest = manifest(&image);
        assert_eq!(manifest.layers[0].media_type, media_type);
        diff_ids.push(config(&image).rootfs.diff_ids);
        if compression == "uncompressed" {
            assert_eq!(manifest.layers[0].digest, diff_ids[0][0].0);
        }
    }
    assert!(diff_ids.iter().all(|d| *d == diff_ids[0]));
}

#[test]
fn the_epoch_cuts_times_and_spares_the_base() {
    let fixture = Fixture::new();
    let mut source = fixture.source();
    let plain = image(&fixture, &source, &[]).unwrap();
    let mut base = config(&plain);
    base.rootfs.diff_ids.truncate(1);
    base.history.truncate(1);
    source.entries[0].base_config = Some(base.to_config_json().unwrap().into());
    let with_base_history = r#"{"architecture":"amd64","os":"linux","history":[{"created":"2023-11-14T22:13:20.25Z","created_by":"base","comment":"buildkit.exporter.image.v0"}]}"#;
    source.entries[0].config = Some(Bytes::from_static(with_base_history.as_bytes()));
    source.metadata.insert("source.date.epoch".into(), b"1000".to_vec());
    let cut = image(&fixture, &source, &[("rewrite-timestamp", "true")]).unwrap();
    assert_eq!(manifest(&cut).layers[0], manifest(&plain).layers[0], "the base layer stays");
    assert_ne!(manifest(&cut).layers[1], manifest(&plain).layers[1]);
    let created: Vec<_> = config(&cut).history.into_iter().map(|h| h.created.unwrap()).collect();
    assert_eq!(created, ["2023-11-14T22:13:20.25Z", "1970-01-01T00:16:40Z"]);
    assert_eq!(cut.created, "1970-01-01T00:16:40Z");

    let own = image(&fixture, &source, &[("source-date-epoch", "")]).unwrap();
    assert_eq!(config(&own).history[1].created.as_deref(), Some("2023-11-14T22:13:20.25Z"));
}

#[test]
fn attestations_make_an_index_with_their_manifest_behind() {
    let fixture = Fixture::new();
    let mut source = fixture.source();
    let entry = &mut source.entries[0];
    entry.id = "linux/amd64".into();
    entry.platform = Some(Platform::new("linux", "amd64", ""));
    entry.attestations = vec![Attestation {
        path: "provenance.json".into(),
        predicate_type: "https://slsa.dev/provenance/v1".into(),
        predicate: Bytes::from_static(b"{}"),
        subjects: vec![],
        inline_only: true,
        sbom_core: false,
    }];
    let inline = image(&fixture, &source, &[("name", "a")]).unwrap();
    assert_eq!(inline.descriptor.media_type, media::OCI_MANIFEST, "for the history only");

    source.entries[0].attestations[0].inline_only = false;
    let image = image(&fixture, &source, &[("name", "a")]).unwrap();
    let index = Index::from_json(document(&image, &image.descriptor.digest)).unwrap();
    assert_eq!(index.manifests.len(), 2);
    let [of, attested] = &index.manifests[..] else { panic!() };
    assert_eq!(attested.annotations["vnd.docker.reference.digest"], of.digest.to_string());
    let manifest = Manifest::from_json(document(&image, &attested.digest)).unwrap();
    let statement = String::from_utf8(document(&image, &manifest.layers[0].digest).to_vec()).unwrap();
    assert!(statement.contains("pkg:docker/a@latest?platform=linux%2Famd64"), "{statement}");
    assert!(statement.contains(&of.digest.hex()));
    assert_eq!(image.image_manifests().unwrap().len(), 1);
}

#[test]
fn annotations_go_where_they_are_sent() {
    let fixture = Fixture::new();
    let mut source = fixture.two_platforms();
    source.metadata.insert("annotation.from".into(), b"frontend".to_vec());
    let attributes = [("annotation[linux/arm64].only", "arm"), ("annotation-manifest-descriptor.d", "1")];
    let image = image(&fixture, &source, &attributes).unwrap();
    let index = Index::from_json(document(&image, &image.descriptor.digest)).unwrap();
    let of = |at: usize| {
        let descriptor = &index.manifests[at];
        assert_eq!(descriptor.annotations["d"], "1");
        Manifest::from_json(document(&image, &descriptor.digest)).unwrap().annotations
    };
    assert_eq!(of(0).keys().collect::<Vec<_>>(), ["from"]);
    assert_eq!(of(1)["only"], "arm");
}

#[test]
fn results_that_do_not_fit_are_refused() {
    let fixture = Fixture::new();
    let two = fixture.two_platforms();
    let one = fixture.source();
    let mut loose = two.clone();
    loose.keyed = false;
    for (source, attributes, part) in [
        (&one, &[("annotation-index.k", "v")][..], "index annotations not supported"),
        (&two, &[("annotation[linux/s390x].k", "v")], "no platform linux/s390x"),
        (&two, &[("annotation-index.k", "v"), ("oci-mediatypes", "false")], "oci-mediatypes=false"),
        (&loose, &[], "multiple platforms"),
    ] {
        let error = image(&fixture, source, attributes).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
    let options = CommitOptions::default();
    let error = build(&fixture.context(), ExporterKind::Docker, &options, LayerBytes::Needed, &two).err().unwrap();
    assert_eq!(error.to_string(), "docker exporter does not currently support exporting manifest lists");
}

#[test]
fn nothing_at_all_is_an_image_without_layers() {
    let fixture = Fixture::new();
    let image = image(&fixture, &ExportSource::default(), &[]).unwrap();
    assert_eq!(manifest(&image).layers, []);
    assert_eq!(config(&image).platform(), Platform::host());
}

#[test]
fn a_called_off_build_makes_no_layers() {
    let fixture = Fixture::new();
    let context = fixture.context();
    context.cancel.cancel();
    let result = build(&context, ExporterKind::Oci, &CommitOptions::default(), LayerBytes::Needed, &fixture.source());
    assert!(matches!(result.err(), Some(ExportError::Canceled)));
}
