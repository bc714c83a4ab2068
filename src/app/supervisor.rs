//! Every long-lived task, with its declared answer to failure.
//!
//! A task either must not end (its end ends the process, so that systemd starts a clean one) or may be restarted with
//! back-off. Shutdown is cooperative: the token is cancelled, tasks drain, laggards are named and aborted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

type Name = Cow<'static, str>;

/// What the normal end of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Only right during shutdown.
    TooEarlyUnlessAsked,
    /// Right at any time: its work is done.
    Done,
}

/// How a task ended, unless it was asked to.
#[derive(Debug)]
pub struct Failure {
    /// The task.
    pub task: String,
    /// What it said.
    pub reason: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "task {} ended: {}", self.task, self.reason)
    }
}

/// Owns the tasks of one run.
#[derive(Debug)]
pub struct Supervisor {
    token: CancellationToken,
    tasks: JoinSet<Result<Ended, String>>,
    names: HashMap<Id, Name>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self { token: CancellationToken::new(), tasks: JoinSet::new(), names: HashMap::new() }
    }
}

impl Supervisor {
    /// Cancelled when the run is to end; every task watches it.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task whose end before shutdown ends the run.
    pub fn spawn(&mut self, name: impl Into<Name>, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        let handle = self.tasks.spawn(async move { task.await.map(|()| Ended::TooEarlyUnlessAsked) });
        self.names.insert(handle.id(), name.into());
    }

    /// Starts a task that is made anew after a failure, with back-off from 0.5 s to 30 s. A normal end is final.
    pub fn spawn_restarting<F, T>(&mut self, name: impl Into<Name>, mut make: F)
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (name, token) = (name.into(), self.token.clone());
        let label = name.clone();
        let handle = self.tasks.spawn(async move {
            let mut wait = Duration::from_millis(500);
            loop {
                let outcome = tokio::spawn(make()).await;
                let reason = match outcome {
                    Ok(Ok(())) => return Ok(Ended::Done),
                    Ok(Err(reason)) => reason,
                    Err(error) => describe(error),
                };
                tracing::warn!(task = %label, %reason, "task failed and is started again");
                tokio::select! {
                    () = token.cancelled() => return Ok(Ended::Done),
                    () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(30)),
                }
            }
        });
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task fails that must not.
    pub async fn failure(&mut self) -> Failure {
        loop {
            match self.tasks.join_next_with_id().await {
                None => std::future::pending().await,
                Some(ended) => {
                    if let Some(failure) = self.judge(ended) {
                        return failure;
                    }
                }
            }
        }
    }

    /// Asks every task to end and waits until `limit` has passed; returns the names of those that had to be aborted.
    pub async fn shutdown(mut self, limit: Duration) -> Vec<String> {
        self.token.cancel();
        let deadline = Instant::now() + limit;
        while let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next_with_id()).await {
            if let Some(failure) = self.judge(ended) {
                tracing::warn!(%failure, "during shutdown");
            }
        }
        self.tasks.abort_all();
        let laggards: Vec<_> = self.names.into_values().map(Cow::into_owned).collect();
        if !laggards.is_empty() {
            tracing::error!(tasks = ?laggards, "aborted: these tasks did not end in time");
        }
        laggards
    }

    fn judge(&mut self, ended: Result<(Id, Result<Ended, String>), JoinError>) -> Option<Failure> {
        let (id, reason) = match ended {
            Ok((id, Ok(Ended::Done))) => {
                self.names.remove(&id);
                return None;
            }
            Ok((id, Ok(Ended::TooEarlyUnlessAsked))) => (id, None),
            Ok((id, Err(reason))) => (id, Some(reason)),
            Err(error) => (error.id(), Some(describe(error))),
        };
        let task = self.names.remove(&id).map(Cow::into_owned).unwrap_or_default();
        let reason = match reason {
            None if self.token.is_cancelled() => return None,
            None => "it returned although nobody asked it to".to_owned(),
            Some(reason) => reason,
        };
        Some(Failure { task, reason })
    }
}

fn describe(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            format!("panicked: {}", text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default())
        }
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_named() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("store", async { Err("disk gone".to_owned()) });
        assert_eq!(supervisor.failure().await.to_string(), "task store ended: disk gone");
        supervisor.spawn("broker", async { panic!("boom") });
        assert_eq!(supervisor.failure().await.to_string(), "task broker ended: panicked: boom");
        supervisor.spawn("ingest", async { Ok(()) });
        assert!(supervisor.failure().await.reason.contains("nobody asked"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarting_task_comes_back_until_it_ends_normally() {
        let mut supervisor = Supervisor::default();
        let (tries, token) = (Arc::new(AtomicU32::new(0)), supervisor.token());
        let counter = tries.clone();
        supervisor.spawn_restarting("uplink", move || {
            let (n, token) = (counter.fetch_add(1, Ordering::SeqCst), token.clone());
            async move {
                if n < 3 {
                    return Err("refused".to_owned());
                }
                token.cancelled().await;
                Ok(())
            }
        });
        while tries.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(supervisor.shutdown(Duration::from_secs(1)).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn laggards_are_named() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("deaf", std::future::pending());
        let token = supervisor.token();
        supervisor.spawn("good", async move {
            token.cancelled().await;
            Ok(())
        });
        assert_eq!(supervisor.shutdown(Duration::from_secs(5)).await, ["deaf"]);
    }
}
