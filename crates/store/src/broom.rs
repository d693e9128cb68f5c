//! The thread that deletes what nobody waits for. Deleting a directory costs as much as making it, and a step's
//! result should not wait for that.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::disk;

/// Deletes directories in the background, one after the other; started by the first.
#[derive(Default)]
pub(crate) struct Broom(Mutex<Option<Running>>);

struct Running {
    queue: Sender<PathBuf>,
    thread: JoinHandle<()>,
}

impl Broom {
    /// Deletes `victim` some time from now, at the latest when the broom is finished with.
    pub fn take(&self, victim: PathBuf) {
        let mut running = self.0.lock();
        let running = running.get_or_insert_with(|| {
            let (queue, victims) = channel();
            Running { queue, thread: std::thread::spawn(move || work(&victims)) }
        });
        // Only a thread that panicked takes nothing; the next opening of the store sweeps its directory of victims.
        let _ = running.queue.send(victim);
    }

    /// Waits until all that was taken is deleted.
    pub fn finish(&self) {
        let running = self.0.lock().take();
        if let Some(Running { queue, thread }) = running {
            drop(queue);
            let _ = thread.join();
        }
    }
}

impl Drop for Broom {
    fn drop(&mut self) {
        self.finish();
    }
}

fn work(victims: &Receiver<PathBuf>) {
    while let Ok(victim) = victims.recv() {
        disk::remove_or_warn(&victim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_gone_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let broom = Broom::default();
        for number in 0..20 {
            let victim = dir.path().join(number.to_string());
            std::fs::create_dir_all(victim.join("a/b")).unwrap();
            broom.take(victim);
        }
        broom.finish();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // It can be taken up again, and what is missing is no trouble.
        broom.take(dir.path().join("missing"));
        broom.take(dir.path().to_owned());
        drop(broom);
        assert!(!dir.path().exists());
    }
}
