//! The attributes of cache exports.

use std::collections::BTreeMap;

use kiln_exporter::cacheconfig::CacheForm;
use kiln_exporter::{CacheCompression, Exporter};

use crate::error::EngineError;
use crate::request::CacheSpec;

/// Which results keep their layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Those that consist of layers of the build's result.
    Min,
    /// All.
    Max,
}

/// What attributes say of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportSpec {
    pub mode: Mode,
    pub form: CacheForm,
    pub compression: CacheCompression,
}

/// Attributes of layers, which mean the same as for images.
const COMPRESSION: &[&str] = &["compression", "compression-level", "force-compression"];

impl ExportSpec {
    /// Reads the attributes that all kinds of caches have in common.
    ///
    /// # Errors
    /// An invalid value.
    pub fn parse(spec: &CacheSpec) -> Result<Self, EngineError> {
        let mode = match spec.attrs.get("mode").map_or("", String::as_str) {
            "" | "min" => Mode::Min,
            "max" => Mode::Max,
            other => {
                let error = EngineError::user(format!("invalid cache export mode {other:?}"));
                return Err(error.with_hint("use mode=min or mode=max"));
            }
        };
        let own = spec.attrs.iter().filter(|(name, _)| COMPRESSION.contains(&name.as_str()));
        let own: BTreeMap<_, _> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        let exporter = Exporter::parse("oci", &own)?;
        let commit = &exporter.options().commit;
        let compression = CacheCompression { compression: commit.compression, force: commit.force_compression };
        Ok(Self { mode, form: form(spec)?, compression })
    }
}

fn form(spec: &CacheSpec) -> Result<CacheForm, EngineError> {
    let oci = boolean(spec, "oci-mediatypes")?.unwrap_or(true);
    // An image manifest is always OCI's.
    Ok(match boolean(spec, "image-manifest")?.unwrap_or(oci) {
        true if !oci => {
            let why = "image-manifest=true requires oci-mediatypes=true";
            return Err(EngineError::user(format!("cache of type {}: {why}", spec.kind)));
        }
        true => CacheForm::ImageManifest,
        false if oci => CacheForm::Index,
        false => CacheForm::DockerIndex,
    })
}

fn boolean(spec: &CacheSpec, name: &str) -> Result<Option<bool>, EngineError> {
    match spec.attrs.get(name).map(String::as_str) {
        None => Ok(None),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(value) => Err(EngineError::user(format!("failed to parse {name}: {value:?} is not true or false"))),
    }
}

#[cfg(test)]
mod tests {
    use kiln_snapshot::compress::Compression;

    use super::*;

    fn parsed(attrs: &[(&str, &str)]) -> Result<ExportSpec, String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ExportSpec::parse(&CacheSpec { kind: "local".into(), attrs }).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let compression = CacheCompression { compression: Compression::GZIP, force: false };
        let want = ExportSpec { mode: Mode::Min, form: CacheForm::ImageManifest, compression };
        assert_eq!(parsed(&[("dest", "c"), ("tag", "t")]), Ok(want));
    }

    #[test]
    fn values() {
        let form = |attrs: &[(&str, &str)]| parsed(attrs).map(|spec| spec.form);
        assert_eq!(form(&[("oci-mediatypes", "false")]), Ok(CacheForm::DockerIndex));
        assert_eq!(form(&[("image-manifest", "false")]), Ok(CacheForm::Index));
        assert_eq!(parsed(&[("mode", "max")]).map(|spec| spec.mode), Ok(Mode::Max));
        let zstd = parsed(&[("compression", "zstd"), ("force-compression", "true")]).unwrap().compression;
        assert_eq!(zstd, CacheCompression { compression: Compression::ZSTD, force: true });
        for (attrs, want) in [
            (vec![("mode", "all")], "invalid cache export mode"),
            (vec![("image-manifest", "perhaps")], "failed to parse image-manifest"),
            (vec![("oci-mediatypes", "0"), ("image-manifest", "1")], "requires oci-mediatypes=true"),
            (vec![("compression", "lz4")], "lz4"),
        ] {
            let error = parsed(&attrs).unwrap_err();
            assert!(error.contains(want), "{attrs:?}: {error}");
        }
    }
}
