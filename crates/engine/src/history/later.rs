//! Work that is done once a build's client has been answered: in order, on a thread of its own. Nothing that was handed in is
//! lost but by a kill: whoever reads what it makes waits for it, and so does whoever drops the last handle.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

type Work = Box<dyn FnOnce() + Send>;

/// How much is left to do.
#[derive(Default)]
struct Left {
    count: Mutex<usize>,
    done: Condvar,
}

/// The handle of whoever hands work in.
pub struct Later {
    queue: Option<Sender<Work>>,
    left: Arc<Left>,
    thread: Option<JoinHandle<()>>,
}

impl Later {
    /// Starts the thread.
    pub fn new() -> Self {
        let (queue, works) = channel();
        let left = Arc::new(Left::default());
        let of_thread = left.clone();
        let thread = std::thread::Builder::new().name("kiln-history".into()).spawn(move || run(&works, &of_thread));
        Self { queue: Some(queue), left, thread: thread.ok() }
    }

    /// Has work done soon; at once where there is no thread for it.
    pub fn add(&self, work: impl FnOnce() + Send + 'static) {
        *self.left.count.lock() += 1;
        let work: Work = Box::new(work);
        let refused = match &self.queue {
            Some(queue) => queue.send(work).err().map(|refused| refused.0),
            None => Some(work),
        };
        if let Some(work) = refused {
            finish(work, &self.left);
        }
    }

    /// Waits until everything that was handed in is done.
    pub fn settle(&self) {
        let mut count = self.left.count.lock();
        while *count > 0 {
            self.left.done.wait(&mut count);
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Panics have been caught.
            let _ = thread.join();
        }
    }
}

fn run(works: &Receiver<Work>, left: &Left) {
    for work in works {
        finish(work, left);
    }
}

fn finish(work: Work, left: &Left) {
    if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("the history of a build was not written");
    }
    *left.count.lock() -= 1;
    left.done.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_in_order_and_whoever_asks_waits_for_it() {
        let (go, wait) = channel::<()>();
        let done = Arc::new(Mutex::new(Vec::new()));
        let later = Later::new();
        let first = done.clone();
        later.add(move || {
            let _ = wait.recv();
            first.lock().push(0);
        });
        later.add(|| panic!("this work fails"));
        for number in 1..5 {
            let done = done.clone();
            later.add(move || done.lock().push(number));
        }
        assert!(done.lock().is_empty(), "handing in waits for nothing");
        go.send(()).expect("the first work waits");
        later.settle();
        assert_eq!(*done.lock(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn nothing_is_lost_when_the_handle_goes() {
        let done = Arc::new(Mutex::new(0));
        let later = Later::new();
        for _ in 0..100 {
            let done = done.clone();
            later.add(move || *done.lock() += 1);
        }
        drop(later);
        assert_eq!(*done.lock(), 100);
    }
}
