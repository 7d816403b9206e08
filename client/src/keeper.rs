//! Keeps a client's session: opens it, sees it end, and opens the next one, with pauses in between.

use crate::client::ClientConfig;
use crate::connection::Connection;
use crate::error::Absence;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Between the beginnings of two attempts, at least; and the longest pause, of those that double.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Of one attempt, which has the memory for saves made, and may take longer than a call.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// How things stand with the sidecar.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// The first attempt since a session ended, or ever, is under way: worth a wait.
    Opening,
    /// The last attempt has failed; others follow.
    Absent(Arc<Absence>),
    Open(Arc<Connection>),
}

/// Goes on until no client watches any more. `now` ends a pause.
pub(crate) async fn keep(config: ClientConfig, link: watch::Sender<Link>, now: Arc<Notify>) {
    tokio::select! {
        () = link.closed() => {}
        () = keep_open(&config, &link, &now) => {}
    }
}

async fn keep_open(config: &ClientConfig, link: &watch::Sender<Link>, now: &Notify) {
    let (mut generation, mut pause) = (0, PAUSE_MIN);
    loop {
        generation += 1;
        // A sidecar may take sessions and drop them, too.
        let apart = tokio::time::sleep(PAUSE_MIN);
        let opening = Connection::open(config, generation);
        let late = Absence::Late { limit: ATTEMPT_LIMIT };
        match tokio::time::timeout(ATTEMPT_LIMIT, opening).await.unwrap_or(Err(late)) {
            Ok(connection) => {
                let connection = Arc::new(connection);
                link.send_replace(Link::Open(Arc::clone(&connection)));
                connection.lost().await;
                pause = PAUSE_MIN;
                link.send_replace(Link::Opening);
                apart.await;
            }
            Err(absence) => {
                link.send_replace(Link::Absent(Arc::new(absence)));
                // Somebody who asks now, or the end of the pause.
                let _ = tokio::time::timeout(pause, now.notified()).await;
                pause = PAUSE_MAX.min(pause * 2);
            }
        }
    }
}
