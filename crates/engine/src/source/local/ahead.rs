//! Work done ahead of the one that needs its results, on other threads, with the results taken in order.

use std::sync::mpsc::{Receiver, sync_channel};

/// Results per thread that wait to be taken.
const WAITING: usize = 64;

/// Gives the results of `make` over `items`, in their order, to `body`, while threads make the next ones.
///
/// `body` gets a function that returns the next result; it is none after the last and may be left uncalled, which ends
/// the threads.
pub fn ahead<I: Sync, T: Send, R>(
    items: &[I],
    make: impl Fn(&I) -> T + Sync,
    body: impl FnOnce(&mut dyn FnMut() -> Option<T>) -> R,
) -> R {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(items.len().div_ceil(16));
    if threads == 0 {
        return body(&mut || None);
    }
    std::thread::scope(|scope| {
        let make = &make;
        let results: Vec<Receiver<T>> = (0..threads)
            .map(|thread| {
                let (give, take) = sync_channel(WAITING);
                scope.spawn(move || {
                    for item in items.iter().skip(thread).step_by(threads) {
                        // The other side is gone: nobody wants the rest.
                        if give.send(make(item)).is_err() {
                            return;
                        }
                    }
                });
                take
            })
            .collect();
        let mut turn = (0..threads).cycle();
        body(&mut || turn.next().and_then(|thread| results[thread].recv().ok()))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::ahead;

    #[test]
    fn results_come_in_order_and_end() {
        let items: Vec<usize> = (0..1000).collect();
        let taken = ahead(
            &items,
            |n| n * 2,
            |next| {
                let mut taken = Vec::new();
                while let Some(n) = next() {
                    taken.push(n);
                }
                taken
            },
        );
        assert_eq!(taken, items.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(ahead(&[] as &[u8], |n| *n, |next| next()), None);
    }

    #[test]
    fn what_nobody_takes_is_not_made() {
        let items: Vec<usize> = (0..100_000).collect();
        let made = AtomicUsize::new(0);
        let first = ahead(&items, |n| (made.fetch_add(1, Ordering::Relaxed), *n).1, |next| next());
        assert_eq!(first, Some(0));
        assert!(made.load(Ordering::Relaxed) < 10_000, "the threads end when the taker does");
    }
}
