//! Reading and verifying everything, for `kiln cache verify`.

use kiln_snapshot::layer as snapshot;
use kiln_stdx::Digest;

use crate::blob::matches_digest;
use crate::check::Depth;
use crate::error::{Result, StoreError};
use crate::layer::Layer;
use crate::layout::LayerDir;
use crate::repair::RepairAction;
use crate::store::Store;

/// Something that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What: `layer <id>`, `blob <digest>`, `cache mount <id>`, `meta.db`, `images`.
    pub subject: String,
    /// In which way.
    pub what: String,
    /// What was done; nothing without `repair`.
    pub action: Option<RepairAction>,
}

/// What was verified and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Number of blobs read.
    pub blobs: u64,
    /// Number of unpacked layers read.
    pub layers: u64,
    /// Number of cache mounts looked at.
    pub mounts: u64,
    /// Rows of metadata read.
    pub rows: u64,
    /// Bytes of blobs and layers read.
    pub bytes: u64,
    /// What was wrong.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Reads every blob, every layer, every manifest and every row of metadata. With `repair` what is damaged is made good
    /// again or dropped; without it nothing changes.
    ///
    /// # Errors
    /// The store cannot be read or written at all; damage is no error.
    pub fn verify(&self, repair: bool) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let before = self.repairs().total();
        self.verify_blobs(repair, &mut report);
        self.verify_layers(repair, &mut report)?;
        self.verify_mounts(repair, &mut report);
        self.0.recount();
        let (rows, bad) = self.0.meta.verify(repair);
        report.rows = rows;
        if repair {
            for lost in self.0.repair_images(self)? {
                self.0.log.add("images", format!("{lost} is lost"), RepairAction::Dropped);
            }
            report.problems.extend(self.repairs().since(before).into_iter().map(|event| Problem {
                subject: event.subject,
                what: event.damage,
                action: Some(event.action),
            }));
        } else if bad > 0 {
            report.problems.push(Problem {
                subject: "meta.db".into(),
                what: format!("{bad} rows fail their checksum"),
                action: None,
            });
        }
        Ok(report)
    }

    fn verify_blobs(&self, repair: bool, report: &mut VerifyReport) {
        for digest in self.0.all_blobs() {
            report.blobs += 1;
            let path = self.0.layout.blob(&digest);
            report.bytes += crate::disk::Stamp::of(&path).map_or(0, |s| s.size);
            if repair {
                // Finds, rescues or drops, and logs.
                self.verify_blob(&digest);
            } else if let Some(what) = self.examine_blob(&digest) {
                report.problems.push(Problem { subject: format!("blob {digest}"), what: what.into(), action: None });
            }
        }
    }

    /// Verifies a blob without changing anything, and returns what is wrong.
    fn examine_blob(&self, digest: &Digest) -> Option<&'static str> {
        let path = self.0.layout.blob(digest);
        if matches_digest(&path, digest) {
            return None;
        }
        if path.exists() {
            return Some("content differs");
        }
        // One that is collected meanwhile is forgotten before its file goes.
        self.0.knows_blob(digest).then_some("file is missing")
    }

    fn verify_layers(&self, repair: bool, report: &mut VerifyReport) -> Result<()> {
        for layer in self.layers() {
            if layer.is_gone() || !layer.is_unpacked() {
                continue;
            }
            report.layers += 1;
            report.bytes += layer.size();
            if repair {
                match self.0.check_layer(self, &layer, Depth::Digest) {
                    Err(e) if e.class() != kiln_stdx::ErrorClass::Damage => return Err(e),
                    _ => {}
                }
            } else if let Err(e) = self.examine(&layer)
                && !layer.is_gone()
            {
                report.problems.push(Problem {
                    subject: format!("layer {}", layer.id()),
                    what: e.to_string(),
                    action: None,
                });
            }
        }
        Ok(())
    }

    /// What steps left in cache mounts is theirs; that directory and record are there is all there is to check.
    fn verify_mounts(&self, repair: bool, report: &mut VerifyReport) {
        let (looked_at, problems) = self.0.check_mounts(repair);
        report.mounts = looked_at;
        if !repair {
            let problem = |(subject, what)| Problem { subject, what, action: None };
            report.problems.extend(problems.into_iter().map(problem));
        }
    }

    /// Verifies a layer without changing anything.
    fn examine(&self, layer: &Layer) -> Result<()> {
        let dir = LayerDir(self.0.layout.layer(layer.id()));
        let record = layer.cell.record();
        let manifest = self.0.manifest(&layer.cell)?;
        snapshot::verify_digest(&manifest, &dir.fs())?;
        let expected = record.unpacked.as_ref().map(|u| u.manifest);
        if crate::disk::read(&dir.manifest()).map(Digest::of) != expected {
            return Err(StoreError::damage("its manifest's file"));
        }
        if !crate::disk::read(&dir.info()).is_some_and(|bytes| record.is_akin(&bytes)) {
            return Err(StoreError::damage("its record's file"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::testing::{fixture, one_file, open};

    #[test]
    fn what_was_collected_since_it_was_listed_is_no_damage() {
        let fixture = fixture(Duration::ZERO);
        let store = &fixture.store;
        let [kept, collected] = [b"kept", b"gone"].map(|bytes| store.put_blob(bytes).unwrap().digest());
        let listed = store.0.all_blobs();
        store.0.forget_blob(&collected);
        assert!(listed.iter().all(|digest| store.examine_blob(digest).is_none()), "{listed:?}");
        std::fs::remove_file(store.0.layout.blob(&kept)).unwrap();
        assert_eq!(store.examine_blob(&kept), Some("file is missing"));
        assert_eq!(store.verify(false).unwrap().problems.len(), 1);
    }

    #[test]
    fn a_record_that_is_newer_than_its_row_is_no_damage() {
        let fixture = fixture(Duration::ZERO);
        let (layer, _) = one_file(&fixture.store.scratch(), "a", b"one");
        let info = fixture.store.0.layout.layer(layer.id()).join("info");
        fixture.store.meta().flush();
        let old = std::fs::read(fixture.dir.path().join("root/meta.db")).unwrap();
        let wal = std::fs::read(fixture.dir.path().join("root/meta.db-wal")).ok();
        fixture.store.describe(&layer, "two", crate::RecordType::Internal).unwrap();
        let newer = std::fs::read(&info).unwrap();
        let (dir, clock, id) = (fixture.dir, fixture.clock, layer.id());
        drop((layer, fixture.store));
        // The machine died before the row was written.
        std::fs::write(dir.path().join("root/meta.db"), old).unwrap();
        if let Some(wal) = wal {
            std::fs::write(dir.path().join("root/meta.db-wal"), wal).unwrap();
        }
        let store = open(&dir, &clock, Duration::ZERO);
        assert_eq!(store.layer(id).unwrap().description(), "a");
        assert_eq!(store.verify(false).unwrap().problems, []);
        assert_eq!(store.verify(true).unwrap().problems, []);
        assert_ne!(std::fs::read(&info).unwrap(), newer);
        let mut flipped = newer;
        flipped[7] ^= 1;
        std::fs::write(&info, flipped).unwrap();
        assert_eq!(store.verify(false).unwrap().problems.len(), 1);
    }
}
