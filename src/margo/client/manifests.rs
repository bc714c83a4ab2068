//! What a poll changes: the manifest in force, and what follows from it.

use std::collections::BTreeSet;

use super::engine::{Client, ClientError, nanos};
use crate::margo::desired::{AcceptError, Accepted, Exchange, HeadStore, Polled};
use crate::margo::plant::Plant;
use crate::margo::storage::{Storage, sweep_blobs};
use crate::margo::words::Digest;

impl<P: Plant, S: Storage + Clone, X: Exchange> Client<P, S, X> {
    pub(super) async fn polled(&mut self, outcome: Result<Polled, AcceptError>) -> Result<(), ClientError> {
        let interval = nanos(self.parts.config.polling.every);
        self.poll_due_ns = self.parts.clock.mono_ns().saturating_add(interval);
        let error = match outcome {
            Ok(polled) => {
                self.works();
                self.status.send_modify(|status| status.polled_ms = self.parts.clock.wall_ms());
                self.raised.retain(|code| !code.starts_with("margo-manifest"));
                return self.desired(polled).await;
            }
            Err(error) => error,
        };
        match &error {
            AcceptError::Exchange(error) => self.unanswered(error),
            AcceptError::Retired(problem) => self.retire(problem).await,
            AcceptError::Later(problem) => {
                self.pause(Some(problem));
                self.problem(error.to_string());
            }
            AcceptError::NotAvailable { problem, .. } => {
                // Never before the server allows, and not faster than usual.
                self.pause(Some(problem));
                self.problem(error.to_string());
            }
            _ => {
                // An answer came; what it says is refused.
                self.backoff.reset();
                self.problem(error.to_string());
                let security = error.is_security_event();
                let code = if security { "margo-manifest-security" } else { "margo-manifest-refused" };
                self.alert(code, security, error.to_string()).await;
            }
        }
        if !matches!(error, AcceptError::NotAvailable { .. } | AcceptError::Refused(_)) && self.not_before_ns > 0 {
            // A poll that failed on its way is due again as soon as something may be sent.
            let failed_on_its_way = matches!(error, AcceptError::Exchange(_) | AcceptError::Later(_));
            if failed_on_its_way {
                self.poll_due_ns = self.not_before_ns.min(self.poll_due_ns);
            }
        }
        Ok(())
    }

    pub(super) async fn desired(&mut self, polled: Polled) -> Result<(), ClientError> {
        match (polled, &self.head) {
            (Polled::NotModified, _) => Ok(()),
            (Polled::Unchanged(etag), Some(head)) if etag != head.etag => {
                self.head = Some(HeadStore(&self.parts.storage).set_etag(head, etag).await?);
                Ok(())
            }
            (Polled::Unchanged(_), _) => Ok(()),
            (Polled::Accepted(accepted), _) => self.accept(*accepted).await,
        }
    }

    pub(super) async fn accept(&mut self, accepted: Accepted) -> Result<(), ClientError> {
        let Accepted { manifest, body, etag, yamls } = accepted;
        let known: BTreeSet<Digest> = self.held.keys().copied().collect();
        let head =
            HeadStore(&self.parts.storage).advance(self.head.as_ref(), &manifest, &body, etag, &yamls, &known).await?;
        tracing::info!(
            version = head.version,
            deployments = manifest.deployments.len(),
            "manifest of the fleet manager accepted"
        );
        let step = self.reconciler.accept(&manifest, head.previous, &yamls, self.parts.clock.mono_ns())?;
        self.head = Some(head);
        self.held = yamls.into_values().map(|yaml| (Digest::of(&yaml), yaml)).collect();
        self.take(step).await?;
        self.sweep().await
    }

    /// Removes what nobody names any more.
    pub(super) async fn sweep(&self) -> Result<(), ClientError> {
        let mut named = self.reconciler.named_works();
        named.extend(self.held.keys().copied());
        named.extend(self.head.as_ref().map(|head| head.body));
        if self.jobs.is_empty() {
            self.parts.source.sweep(&self.reconciler.named_images());
        }
        Ok(sweep_blobs(&self.parts.storage, &named).await?)
    }
}
