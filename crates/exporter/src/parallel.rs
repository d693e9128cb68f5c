//! A few things at once on threads of their own; blocking work has no place on the async ones.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

/// Most threads of one call. Compression has its own parallelism; these overlap reading, hashing and waiting.
const THREADS: usize = 4;

/// Returns the results of `work` on each item, in order. After a failure nothing more is begun.
pub(crate) fn map<T: Sync, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let results: Vec<Mutex<Option<Result<R, E>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return };
            let result = work(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            *results[at].lock() = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..THREADS.min(items.len()) {
            scope.spawn(run);
        }
        run();
    });
    let mut done = Vec::with_capacity(items.len());
    let mut error = None;
    for result in results {
        match result.into_inner() {
            Some(Ok(value)) => done.push(value),
            Some(Err(e)) => error = error.or(Some(e)),
            None => {}
        }
    }
    error.map_or(Ok(done), Err)
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_keep_their_order_and_errors_win() {
        let items: Vec<u32> = (0..50).collect();
        assert_eq!(super::map(&items, |n| Ok::<_, ()>(n * 2)).unwrap(), (0..50).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(super::map(&items, |n| if *n == 9 { Err("nine") } else { Ok(()) }), Err("nine"));
        assert_eq!(super::map(&[] as &[u32], |_| Ok::<u8, ()>(1)), Ok(vec![]));
    }
}
