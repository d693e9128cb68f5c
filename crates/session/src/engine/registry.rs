//! The sessions that are open, by id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_stdx::limits;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use super::session::Session;
use crate::error::SessionError;
use crate::headers;

/// What a client says of itself when it opens a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionHeaders {
    pub id: String,
    pub name: String,
    /// Lets successive sessions from one working directory reuse what was transferred.
    pub shared_key: String,
    /// `/service/Method` for each method the client serves.
    pub methods: Vec<String>,
    /// The client's own wish for how fast a dead session is noticed.
    pub health_timeout: Option<Duration>,
}

impl SessionHeaders {
    /// Reads the metadata of a `Control.Session` call.
    ///
    /// # Errors
    /// There is no session id.
    pub fn from_metadata(map: &MetadataMap) -> Result<Self, SessionError> {
        let id = headers::get_one(map, headers::SESSION_ID).filter(|id| !id.is_empty());
        let millis = headers::get_one(map, headers::SESSION_HEALTH_TIMEOUT).and_then(|v| v.parse::<u64>().ok());
        Ok(Self {
            id: id.ok_or_else(|| SessionError::Input("the session has no id".into()))?,
            name: headers::get_one(map, headers::SESSION_NAME).unwrap_or_default(),
            shared_key: headers::get_one(map, headers::SESSION_SHARED_KEY).unwrap_or_default(),
            methods: headers::get_all(map, headers::SESSION_METHOD),
            health_timeout: millis.filter(|&ms| ms > 0).map(Duration::from_millis),
        })
    }

    /// Puts these headers into the metadata of a `Control.Session` call.
    pub fn to_metadata(&self, map: &mut MetadataMap) {
        headers::put_one(map, headers::SESSION_ID, &self.id);
        headers::put_one(map, headers::SESSION_SHARED_KEY, &self.shared_key);
        if !self.name.is_empty() {
            headers::put_one(map, headers::SESSION_NAME, &self.name);
        }
        headers::put(map, headers::SESSION_METHOD, &self.methods);
        if let Some(timeout) = self.health_timeout {
            headers::put_one(map, headers::SESSION_HEALTH_TIMEOUT, &timeout.as_millis().to_string());
        }
    }
}

/// The open sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionRegistry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// How long a client may take for an answer.
    patience: Duration,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    /// Changes whenever a session comes.
    changed: watch::Sender<u64>,
}

impl Default for SessionRegistry {
    fn default() -> Self {
        Self::new()
    }
}

/// A session id may be asked for as `prefix:id`.
fn bare(id: &str) -> &str {
    id.split_once(':').map(|(_, rest)| rest).filter(|rest| !rest.is_empty()).unwrap_or(id)
}

impl SessionRegistry {
    /// Makes an empty registry.
    pub fn new() -> Self {
        Self::with_patience(limits::SESSION_CALL)
    }

    /// Makes an empty registry whose clients may take this long for an answer.
    pub fn with_patience(patience: Duration) -> Self {
        Self { inner: Arc::new(Inner { patience, sessions: Mutex::default(), changed: watch::Sender::new(0) }) }
    }

    /// Serves one session over its byte stream until it ends.
    ///
    /// # Errors
    /// The id is taken, or the peer does not speak the protocol. The end of the session is no error.
    pub async fn serve<I>(&self, headers: SessionHeaders, io: I) -> Result<(), SessionError>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let id = headers.id.clone();
        if self.inner.sessions.lock().get(&id).is_some_and(|s| !s.is_closed()) {
            return Err(SessionError::Duplicate { id });
        }
        let session = Session::open(headers, io, self.inner.patience).await?;
        match self.inner.sessions.lock().entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(entry) if !entry.get().is_closed() => {
                session.close("another session has the same id");
                return Err(SessionError::Duplicate { id });
            }
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                entry.insert(session.clone());
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(session.clone());
            }
        }
        // Also when this future is dropped, as it is when the call that carries the session ends.
        let registry = self.clone();
        let leaving = session.clone();
        let _leave = kiln_stdx::Defer::new(move || registry.leave(&leaving));
        self.inner.changed.send_modify(|n| *n += 1);
        session.watch_health().await;
        Ok(())
    }

    fn leave(&self, session: &Arc<Session>) {
        session.close("the connection ended");
        let mut sessions = self.inner.sessions.lock();
        if sessions.get(session.id()).is_some_and(|s| Arc::ptr_eq(s, session)) {
            sessions.remove(session.id());
        }
    }

    /// Returns a session, waiting up to `wait` for it to come.
    ///
    /// # Errors
    /// It does not come.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Arc<Session>, SessionError> {
        let mut changed = self.inner.changed.subscribe();
        let come = async {
            loop {
                if let Some(session) = self.try_get(id) {
                    return session;
                }
                // The sender lives as long as this registry.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(wait, come).await.map_err(|_| SessionError::NotFound { id: bare(id).to_owned() })
    }

    /// Returns a session that is open now.
    pub fn try_get(&self, id: &str) -> Option<Arc<Session>> {
        self.inner.sessions.lock().get(bare(id)).filter(|s| !s.is_closed()).cloned()
    }

    /// Returns the ids of all open sessions.
    pub fn ids(&self) -> Vec<String> {
        self.inner.sessions.lock().values().filter(|s| !s.is_closed()).map(|s| s.id().to_owned()).collect()
    }
}
