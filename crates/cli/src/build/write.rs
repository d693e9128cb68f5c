//! Files that appear whole or not at all: written aside in the same directory, then renamed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file being written beside its destination; dropping it leaves no trace.
#[derive(Debug)]
pub struct AsideFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl AsideFile {
    /// Begins a file for `path`, making its directory.
    pub fn create(path: &Path) -> io::Result<AsideFile> {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".part").tempfile_in(dir)?;
        Ok(AsideFile { temporary, path: path.to_owned() })
    }

    /// Returns another handle of the file.
    pub fn handle(&self) -> io::Result<fs::File> {
        self.temporary.as_file().try_clone()
    }

    /// Puts the file in place, with the mode a new file gets from the umask.
    pub fn commit(mut self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        self.temporary.flush()?;
        let mode = match fs::metadata(&self.path) {
            Ok(meta) => meta.permissions().mode() & 0o777,
            Err(_) => 0o666 & !umask(),
        };
        self.temporary.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        self.temporary.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

impl Write for AsideFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.temporary.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

/// Returns the umask of the process without changing it.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    line.and_then(|v| u32::from_str_radix(v.trim(), 8).ok()).unwrap_or(0o022)
}

/// Writes a whole file.
pub fn atomically(path: &Path, data: &[u8]) -> io::Result<()> {
    // A device or a pipe cannot be replaced.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return fs::write(path, data);
    }
    let mut file = AsideFile::create(path)?;
    file.write_all(data)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_dropped_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("new/out.tar");
        let mut file = AsideFile::create(&path).expect("create");
        file.write_all(b"half").expect("write");
        drop(file);
        assert_eq!(fs::read_dir(path.parent().expect("parent")).expect("list").count(), 0);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        fs::write(&path, b"old").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        atomically(&path, b"new").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
