//! Answers `GET /metrics` and `GET /healthz`, and nothing else.

use crate::figures::{Figures, Labels};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use web::{Answer, Limits, Request, Server};

/// To send a request; for the daemon to tell its figures; to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);
pub(crate) const LIMITS: Limits = Limits { connections: 16, patience: PATIENCE };

/// Asks the daemon, for so long at most. `None`: it does not answer, or does not serve yet.
pub type Source = Box<dyn Fn(Duration) -> Option<Figures> + Send + Sync>;

/// A port that was taken.
pub struct Door(pub(crate) Server);

impl Door {
    /// Answers, on threads of its own, until the process ends. `labels` go with every line.
    pub fn open(self, labels: Labels, source: Source) {
        let shop = Shop { labels, source };
        self.0.open(Box::new(move |request| shop.answer(request)));
    }
}

/// Asks by `ask`, whose receiver of the figures may be dropped by who has none.
pub fn asking<T>(patience: Duration, ask: impl FnOnce(SyncSender<T>)) -> Option<T> {
    let (sender, answer) = sync_channel(1);
    ask(sender);
    answer.recv_timeout(patience).ok()
}

struct Shop {
    labels: Labels,
    source: Source,
}

impl Shop {
    fn answer(&self, request: &Request) -> Answer {
        let figures = || (self.source)(PATIENCE);
        let unwell = || Answer::plain(503, "the server starts, or does not answer\n");
        match request.path.as_str() {
            "/metrics" => match figures().map(|figures| figures.text(&self.labels)) {
                Some(Ok(text)) => Answer::new(
                    200,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    text.into_bytes(),
                ),
                Some(Err(_)) => Answer::plain(500, "the figures can't be written\n"),
                None => unwell(),
            },
            "/healthz" => figures().map_or_else(unwell, |_| Answer::plain(200, "ok\n")),
            _ => Answer::plain(404, "here are /metrics and /healthz\n"),
        }
    }
}
