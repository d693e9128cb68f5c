//! Networks that are ready before a step asks for them, since making one takes the kernel a while.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Namespace, Network, NetworkProvider};
use crate::ExecError;

/// A network as it is made.
pub(super) struct Made {
    /// The namespace.
    pub namespace: OwnedFd,
    /// Whatever has to live as long as it is used.
    pub guard: Box<dyn Send + Sync>,
}

/// Makes networks, one at a time or several at once.
pub(super) trait Maker: Send + Sync + 'static {
    /// Returns the name of this kind of network.
    fn name(&self) -> &'static str;

    /// Makes one; this may take a while.
    fn make(&self) -> io::Result<Made>;

    /// Returns what `/etc/resolv.conf` says in it.
    fn resolv_conf(&self) -> Vec<u8>;
}

/// Gives each run a network of its own, from a few that are ready. None is used twice.
pub(super) struct Pool<M> {
    shared: Arc<Shared<M>>,
}

struct Shared<M> {
    maker: M,
    size: usize,
    ready: Mutex<Ready>,
}

#[derive(Default)]
struct Ready {
    networks: VecDeque<Made>,
    /// Networks that are being made.
    coming: usize,
}

impl<M: Maker> Pool<M> {
    pub(super) fn new(maker: M, size: usize) -> Self {
        Self { shared: Arc::new(Shared { maker, size, ready: Mutex::default() }) }
    }

    /// Makes what is missing, beside everything else.
    fn fill(&self) {
        let missing = {
            let mut ready = self.shared.lock();
            let missing = self.shared.size.saturating_sub(ready.networks.len() + ready.coming);
            ready.coming += missing;
            missing
        };
        for _ in 0..missing {
            let shared = self.shared.clone();
            tokio::task::spawn_blocking(move || {
                let made = shared.maker.make();
                let mut ready = shared.lock();
                ready.coming -= 1;
                match made {
                    Ok(network) => ready.networks.push_back(network),
                    // Whoever needs one makes it and hears the reason.
                    Err(error) => tracing::debug!(%error, "no network could be made in advance"),
                }
            });
        }
    }
}

impl<M> Shared<M> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl<M: Maker> NetworkProvider for Pool<M> {
    fn name(&self) -> &str {
        self.shared.maker.name()
    }

    async fn acquire(&self, _hostname: &str) -> Result<Network, ExecError> {
        let ready = self.shared.lock().networks.pop_front();
        let made = match ready {
            Some(made) => made,
            None => {
                let shared = self.shared.clone();
                let made = tokio::task::spawn_blocking(move || shared.maker.make()).await;
                let made = made.unwrap_or_else(|e| Err(io::Error::other(e)));
                made.map_err(|error| ExecError::network(self.name(), &error))?
            }
        };
        self.fill();
        let resolv_conf = Some(self.shared.maker.resolv_conf());
        Ok(Network { namespace: Namespace::Existing(made.namespace), resolv_conf, guard: Some(made.guard) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Counting(AtomicUsize);

    impl Maker for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn make(&self) -> io::Result<Made> {
            if self.0.fetch_add(1, Ordering::SeqCst) >= 4 {
                return Err(io::Error::other("no more"));
            }
            let namespace = std::fs::File::open("/dev/null")?.into();
            Ok(Made { namespace, guard: Box::new(()) })
        }

        fn resolv_conf(&self) -> Vec<u8> {
            b"here".to_vec()
        }
    }

    #[tokio::test]
    async fn networks_are_made_in_advance_until_none_can_be() {
        let pool = Pool::new(Counting(AtomicUsize::new(0)), 2);
        let first = pool.acquire("").await.unwrap();
        assert_eq!(first.resolv_conf.as_deref(), Some(&b"here"[..]));
        while pool.shared.lock().networks.len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.shared.maker.0.load(Ordering::SeqCst), 3);
        for _ in 0..3 {
            assert!(pool.acquire("").await.is_ok());
            while pool.shared.lock().coming > 0 {
                tokio::task::yield_now().await;
            }
        }
        let error = pool.acquire("").await.err().unwrap();
        assert!(error.to_string().contains("no more"), "{error}");
    }
}
