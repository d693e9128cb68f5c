//! Cache mounts for people who look after them: lists, files, removal.

use std::io::Read;

use kiln_session::proto::kiln_v1::{CacheFile, CacheFileData, CacheFiles, CacheMount, CachePath};
use kiln_store::{MountFile, MountInfo, Store, StoreError};
use tokio::sync::mpsc::Sender;
use tonic::Status;

/// Files in one message of a listing.
const FILES: usize = 256;
/// Bytes in one message of a file.
const CHUNK: usize = 256 << 10;

/// Returns a mount as it is told to clients.
pub fn mount(info: MountInfo) -> CacheMount {
    let (mark, marked_at) = info.mark.map_or_else(Default::default, |mark| (mark.why, mark.at));
    CacheMount {
        id: info.id,
        directory: info.directory,
        platform: info.platform,
        description: info.description,
        created: info.created,
        last_used: info.last_used,
        uses: info.uses,
        size: info.size,
        in_use: info.in_use,
        mark,
        marked_at,
    }
}

/// Returns the status of a call that failed.
pub fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Busy(_) => Status::failed_precondition(error.to_string()),
        StoreError::NotFound(_) => Status::not_found(error.to_string()),
        StoreError::Invalid(_) => Status::invalid_argument(error.to_string()),
        _ => Status::unknown(error.to_string()),
    }
}

/// Sends a listing. Blocking; ends early when nobody listens.
pub fn list(store: &Store, path: &CachePath, to: &Sender<Result<CacheFiles, Status>>) {
    match store.cache_mount_files(&path.directory, &path.path) {
        Ok(files) => {
            let parts = files.chunks(FILES).map(|part| CacheFiles { files: part.iter().map(file).collect() });
            let _ = parts.map(Ok).try_for_each(|part| to.blocking_send(part));
        }
        Err(e) => drop(to.blocking_send(Err(status(&e)))),
    }
}

/// Sends a file. Blocking; ends early when nobody listens.
pub fn read(store: &Store, path: &CachePath, to: &Sender<Result<CacheFileData, Status>>) {
    let mut file = match store.open_cache_file(&path.directory, &path.path) {
        Ok(file) => file,
        Err(e) => return drop(to.blocking_send(Err(status(&e)))),
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let message = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => Ok(CacheFileData { data: buffer[..n].to_vec() }),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => Err(Status::unknown(e.to_string())),
        };
        let is_last = message.is_err();
        if to.blocking_send(message).is_err() || is_last {
            return;
        }
    }
}

fn file(file: &MountFile) -> CacheFile {
    CacheFile {
        name: file.name.clone(),
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        size: file.size,
        mtime: file.mtime,
        target: file.target.clone(),
    }
}
