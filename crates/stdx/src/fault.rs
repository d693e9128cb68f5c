//! Fault hooks: named places where tests make an operation fail, run out of space, or kill the process.
//!
//! A hook costs one relaxed atomic load while nothing is armed. Hooks are armed by [`arm`] in the same process
//! or by the variable `KILN_FAULT` (`name:action[:nth]`, several separated by `,`), read once. Actions are
//! `error` (EIO), `enospc` and `kill` (SIGKILL to this process). `nth` counts from 1; the default is 1; the hook
//! disarms itself when it fires. A simulator watches the hooks of its own threads with [`observe`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

/// What an armed hook does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Fails with EIO.
    Error,
    /// Fails with ENOSPC.
    NoSpace,
    /// Kills the process as SIGKILL does.
    Kill,
}

const UNREAD: u8 = 0;
const IDLE: u8 = 1;
const ARMED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNREAD);
static HOOKS: Mutex<BTreeMap<String, (Action, u32)>> = Mutex::new(BTreeMap::new());

/// Hears of every hook that a thread passes, and may make it fail.
pub type Observer = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Has `observer` called at every hook that this thread passes from now on, before what is armed; `None` ends that.
pub fn observe(observer: Option<Observer>) {
    if observer.is_some() {
        read_environment();
        STATE.store(ARMED, Ordering::SeqCst);
    }
    OBSERVER.with(|slot| *slot.borrow_mut() = observer);
}

/// Passes, unless a test armed the hook of this name.
///
/// # Errors
/// The error the hook was armed with, or that the thread's observer returned.
pub fn point(name: &str) -> io::Result<()> {
    match STATE.load(Ordering::Relaxed) {
        IDLE => Ok(()),
        UNREAD => {
            read_environment();
            fire(name)
        }
        _ => fire(name),
    }
}

/// Arms `name` to act at its `nth` passing (1 is the next one).
pub fn arm(name: &str, action: Action, nth: u32) {
    HOOKS.lock().insert(name.to_owned(), (action, nth.max(1)));
    STATE.store(ARMED, Ordering::SeqCst);
}

/// Disarms every hook.
pub fn disarm_all() {
    HOOKS.lock().clear();
    STATE.store(IDLE, Ordering::SeqCst);
}

fn read_environment() {
    let mut hooks = HOOKS.lock();
    if STATE.load(Ordering::SeqCst) != UNREAD {
        return;
    }
    for spec in std::env::var("KILN_FAULT").unwrap_or_default().split(',') {
        let mut parts = spec.split(':');
        let (Some(name), Some(action)) = (parts.next(), parts.next()) else { continue };
        let action = match action {
            "error" => Action::Error,
            "enospc" => Action::NoSpace,
            "kill" => Action::Kill,
            _ => continue,
        };
        let nth = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
        hooks.insert(name.to_owned(), (action, nth));
    }
    let state = if hooks.is_empty() { IDLE } else { ARMED };
    STATE.store(state, Ordering::SeqCst);
}

fn fire(name: &str) -> io::Result<()> {
    if let Some(observer) = OBSERVER.with(|slot| slot.borrow().clone()) {
        observer(name)?;
    }
    let action = {
        let mut hooks = HOOKS.lock();
        match hooks.get_mut(name) {
            None => return Ok(()),
            Some((_, nth)) if *nth > 1 => {
                *nth -= 1;
                return Ok(());
            }
            Some((action, _)) => {
                let action = *action;
                hooks.remove(name);
                action
            }
        }
    };
    match action {
        Action::Error => Err(io::Error::from_raw_os_error(libc::EIO)),
        Action::NoSpace => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        Action::Kill => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_at_its_count_and_only_once() {
        arm("test.point", Action::NoSpace, 2);
        assert!(point("test.point").is_ok());
        assert!(point("test.other").is_ok());
        assert_eq!(point("test.point").unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(point("test.point").is_ok());
    }

    #[test]
    fn an_observer_hears_its_own_thread_only() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        observe(Some(Arc::new(move |name| {
            log.lock().push(name.to_owned());
            if name == "test.bad" { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        })));
        assert!(point("test.good").is_ok());
        assert!(point("test.bad").is_err());
        std::thread::spawn(|| point("test.bad")).join().unwrap().unwrap();
        observe(None);
        assert!(point("test.bad").is_ok());
        assert_eq!(*heard.lock(), ["test.good", "test.bad"]);
    }
}
