//! Where sessions read from: the store, seen through a trait that northbound owns.

use crate::model::{Delivery, Depth, Lane, Order, Seq};

/// The source ended: the store is closing. The session ends too; nothing unconfirmed is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed")]
pub struct SourceClosed;

/// The records of one consumer, in the shape of `store::Consumer`. All futures are cancel safe.
pub trait RecordSource: Send + 'static {
    /// Starts a session: everything handed out but not confirmed is handed out again.
    fn begin_session(&mut self, order: Order);

    /// Waits for and takes up to `max` records appended since the session began (with [`Order::InOrder`]: from the
    /// consumer's cursor on).
    fn live(&mut self, max: usize) -> impl Future<Output = Result<Vec<Delivery>, SourceClosed>> + Send;

    /// Takes up to `max` older records, critical lane and oldest first; waits while there is none.
    fn backlog(&mut self, max: usize) -> impl Future<Output = Result<Vec<Delivery>, SourceClosed>> + Send;

    /// Confirms records; in any order, never blocks.
    fn ack(&self, lane: Lane, first: Seq, last: Seq);

    /// What is not confirmed; cheap.
    fn depth(&self) -> Depth;
}
