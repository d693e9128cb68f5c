//! Shows the pull of an image that is not here yet. Runs of images that are here show nothing.

use kiln_session::progress::Progress;
use kiln_session::proto::control::StatusRequest;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::solve::ended;
use crate::launch::Engine;
use crate::progress::display::{self, Outcome};
use crate::progress::{Feed, Mode, ProgressEnv};

/// Follows what the engine does until the process runs.
pub struct Pull {
    task: JoinHandle<()>,
    over: CancellationToken,
}

impl Pull {
    /// Begins to follow the run `reference`.
    pub fn watch(engine: &Engine, reference: &str, mode: Mode, env: ProgressEnv) -> Pull {
        let over = CancellationToken::new();
        let mut control = engine.control();
        let request = StatusRequest { r#ref: reference.to_owned() };
        let stop = over.clone();
        let task = tokio::spawn(async move {
            let mut shown = Shown { mode, env, held: Vec::new(), display: None };
            let follow = async {
                let mut stream = match control.status(request).await {
                    Ok(answer) => answer.into_inner(),
                    Err(status) => return ended(&status),
                };
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => shown.take(Progress::from(message)).await,
                        Ok(None) => return,
                        Err(status) => return ended(&status),
                    }
                }
            };
            tokio::select! {
                () = follow => {}
                () = stop.cancelled() => {}
            }
            shown.end().await;
        });
        Pull { task, over }
    }

    /// Ends the display: from here on the terminal is the process's.
    pub async fn end(self) {
        self.over.cancel();
        // It ends at once, or has failed, and then nothing is on the terminal.
        let _ = self.task.await;
    }
}

/// What is shown from the first byte of a download on.
struct Shown {
    mode: Mode,
    env: ProgressEnv,
    /// News from before it was known that there is something to show.
    held: Vec<Progress>,
    display: Option<(Feed, tokio::sync::oneshot::Receiver<Outcome>)>,
}

impl Shown {
    async fn take(&mut self, news: Progress) {
        let pulls = news.statuses.iter().any(|status| status.total > 0);
        if self.display.is_none() && (pulls || self.mode == Mode::RawJson) {
            self.display = Some(display::start(self.mode, &self.env, ""));
        }
        self.held.push(news);
        if let Some((feed, _)) = &self.display {
            for news in self.held.drain(..) {
                feed.send(news).await;
            }
        }
    }

    async fn end(self) {
        if let Some((feed, outcome)) = self.display {
            drop(feed);
            let _ = outcome.await;
        }
    }
}
