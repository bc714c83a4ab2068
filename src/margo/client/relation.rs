//! With whom this client has to do. What it knows of one fleet manager means nothing to another, and nothing under another
//! name: a transfer, and a replacement under a new client id, begin anew.

use super::engine::{Client, ClientError};
use crate::margo::desired::{Exchange, HeadStore};
use crate::margo::plant::Plant;
use crate::margo::storage::{Change, Storage, commit_in_order, read};

/// Key of our name in the storage.
const KEY: &str = "relation";

impl<P: Plant, S: Storage + Clone, X: Exchange> Client<P, S, X> {
    /// Holds our name against the one of before. The name says which fleet manager it is.
    pub(super) async fn relate(&mut self) -> Result<(), ClientError> {
        let name = self.identity.borrow_and_update().clone();
        if name.is_empty() {
            return Ok(());
        }
        let storage = self.parts.storage.clone();
        let known: Option<String> =
            storage.scan(KEY).await?.first().map(|(key, value)| read(key, value)).transpose()?;
        if known.as_ref() == Some(&name) {
            return Ok(());
        }
        let mut changes = Vec::new();
        if let Some(known) = known {
            tracing::info!(%known, %name, "another relationship: what the fleet manager of before knew does not count");
            // A request under the old name says nothing any more.
            self.errands = tokio::task::JoinSet::new();
            changes.extend(self.roster.forget_all());
            changes.extend(self.reconciler.forget_relation()?);
            changes.push(HeadStore::<S>::forget());
            self.head = None;
            self.held.clear();
            self.poll_due_ns = 0;
        }
        // The name comes last: what is cut before it is done again.
        changes.push(Change::put(KEY.to_owned(), &name)?);
        Ok(commit_in_order(&storage, changes).await?)
    }

    pub(super) async fn new_identity(&mut self) -> Result<(), ClientError> {
        self.relate().await?;
        self.status.send_modify(|status| status.retired = false);
        self.not_before_ns = 0;
        self.raised.retain(|raised| !raised.starts_with("margo-retired"));
        self.look().await
    }
}
