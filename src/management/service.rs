//! The tokio shell round the [`Core`]: one task takes what happened from a bounded queue, commits each step to the journal,
//! and then carries out its effects.
//!
//! Promise:
//! - Up to 256 inputs that wait together are one step and one commit: a thousand approvals cost a few synced writes.
//! - An effect begins only after the commit of its step. A failed commit ends in the state on disk: the core is loaded
//!   again, as after a crash, with growing pauses while the medium refuses.
//! - The queue holds 1,024 inputs. [`Management::request`] waits when it is full, so the broker's back-pressure reaches the
//!   sender; reports of the app ([`Management::report`]) wait, too, and are never dropped.
//! - At most 32 slow effects (identify, erase, clocks, credentials) run at a time, and one plan is applied at a time: the
//!   newest. Effects on topics are done in order.

mod run;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::clock::ClockForm;
use super::command::Receipt;
use super::core::{Core, Input, Plan, Request, Settings};
use super::desired::{GatewayOverlay, Watcher};
use super::journal::{Journal, JournalError};
use super::lifecycle::{Claim, Erasure, Stored};
use super::request::{Actor, Ask, Refusal, is_correlation_id};
use super::step::Shown;
use crate::contract::v1;
use crate::model::{DeviceId, Value};
use crate::platform::clock::SharedClock;

/// Inputs that may wait.
const QUEUE: usize = 1_024;

/// What management asks of devices and of the gateway. `app` implements it on the drivers, the security module and the
/// store. Every call may come again after a crash; errors are words for people.
pub trait World: Send + Sync + 'static {
    /// Makes what runs equal to the plan; devices that did not change keep polling. Gives the devices that could not be set
    /// up, and why.
    fn apply(&self, plan: Arc<Plan>) -> impl Future<Output = BTreeMap<DeviceId, String>> + Send;

    /// Settings of the gateway itself; `Ok` once they are in force and the gateway is healthy.
    fn apply_gateway(&self, settings: GatewayOverlay) -> impl Future<Output = Result<(), String>> + Send;

    /// Asks a device who it is; an empty claim when it says nothing.
    fn identify(&self, device: &DeviceId) -> impl Future<Output = Result<Claim, String>> + Send;

    /// Asks whatever answers at an address who it is, with one short request; `None` when nothing answers.
    fn probe(&self, host: Ipv4Addr, port: u16, unit: u8) -> impl Future<Output = Option<Claim>> + Send;

    /// Makes credentials for a device that connects by itself and hands them to it; its ACL lets it touch only its own
    /// topics. `signing_request` is PEM, empty for a device that asks for none. The chain that answers it, in PEM, or nothing
    /// when the device keeps what it has.
    fn issue(&self, device: &DeviceId, signing_request: &str) -> impl Future<Output = Result<String, String>> + Send;

    /// Takes its credentials back.
    fn revoke(&self, device: &DeviceId) -> impl Future<Output = Result<(), String>> + Send;

    /// Waits until the device does not run any more, takes its credentials back, and removes what is kept of it, its values
    /// in the store as `stored` says.
    fn erase(&self, device: &DeviceId, stored: Stored) -> impl Future<Output = Result<Erasure, String>> + Send;

    /// How a device holds its clock.
    fn clock_form(&self, device: &DeviceId) -> Option<ClockForm>;

    /// Reads points now, unscaled by any filter.
    fn read(
        &self,
        device: &DeviceId,
        points: &[&str],
    ) -> impl Future<Output = Result<BTreeMap<String, Value>, String>> + Send;

    /// Writes points in order.
    fn write(&self, device: &DeviceId, values: Vec<(String, Value)>)
    -> impl Future<Output = Result<(), String>> + Send;
}

/// Where management speaks. `app` implements it on the state board, the event log and the store.
pub trait Outlet: Send + Sync + 'static {
    /// Sets or clears a retained topic, relative to the root.
    fn show(&self, topic: &str, shown: Shown);

    /// Publishes the final answer to a request on `topic` (relative to the root); `Ok` once it is durable or handed over.
    fn answer(&self, topic: &str, body: &v1::ManagementResult) -> impl Future<Output = Result<(), String>> + Send;

    /// Stores and publishes an event.
    fn raise(&self, event: v1::Event) -> impl Future<Output = ()> + Send;

    /// Appends audit entries to the log; durable before `Ok`. After a crash entries may come again with the same `id`.
    fn audit(&self, entries: Vec<v1::AuditEntry>) -> impl Future<Output = Result<(), String>> + Send;
}

/// The service has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gateway is stopping and takes no requests; send it again later")]
pub struct Stopped;

enum Message {
    Input(Box<Input>),
    /// A request whose carrier keeps it until its outcome is durable.
    Stored(Box<Input>, Receipt),
    /// From the admin socket: the answer also goes back to the caller.
    Ask(Box<Request>, oneshot::Sender<v1::ManagementResult>),
    Look(Box<dyn FnOnce(&Core) + Send>),
    /// Arms the claim code with its hash.
    Arm(String),
}

/// Handle of the running service; cheap to clone. The task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Management {
    messages: mpsc::Sender<Message>,
    changes: watch::Receiver<u64>,
}

impl Management {
    /// Reads the journal and starts. Nothing runs before the first [`Input::Files`].
    ///
    /// # Errors
    /// [`JournalError`] when the state cannot be read: without it nothing can be promised.
    pub async fn start<J: Journal + Sync, W: World, O: Outlet>(
        settings: Settings,
        journal: J,
        world: W,
        outlet: O,
        watcher: Watcher,
        clock: SharedClock,
    ) -> Result<(Self, JoinHandle<()>), JournalError> {
        let core = Core::load(&journal.load().await?, settings.clone(), watcher.clone())?;
        let (messages, inbox) = mpsc::channel(QUEUE);
        let task = run::Task::new(core, settings, journal, Arc::new(world), Arc::new(outlet), watcher, clock);
        let changes = task.changes();
        Ok((Self { messages, changes }, tokio::spawn(task.run(inbox))))
    }

    /// A message of a client on a topic relative to the root. `false` when the topic is none of management's.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn request(
        &self,
        actor: Actor,
        topic: &str,
        encoding: crate::contract::Encoding,
        payload: &[u8],
    ) -> Result<bool, Stopped> {
        match read(actor, topic, encoding, payload) {
            None => Ok(false),
            Some(input) => self.report(input).await.map(|()| true),
        }
    }

    /// As [`Self::request`]; `stored` is told once the outcome of the request is durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn request_stored(
        &self,
        actor: Actor,
        topic: &str,
        encoding: crate::contract::Encoding,
        payload: &[u8],
        stored: Receipt,
    ) -> Result<bool, Stopped> {
        let Some(input) = read(actor, topic, encoding, payload) else { return Ok(false) };
        self.messages.send(Message::Stored(Box::new(input), stored)).await.map_err(|_| Stopped)?;
        Ok(true)
    }

    /// A request that somebody else carried out: its outcome is kept, audited and answered; `stored` is told once that is
    /// durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn carried(
        &self,
        request: Request,
        outcome: Result<String, Refusal>,
        stored: Receipt,
    ) -> Result<(), Stopped> {
        let input = Input::Carried { request: Box::new(request), outcome };
        self.messages.send(Message::Stored(Box::new(input), stored)).await.map_err(|_| Stopped)
    }

    /// A request of the admin socket; gives its final answer.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn ask(&self, request: Request) -> Result<v1::ManagementResult, Stopped> {
        if !is_correlation_id(&request.ask.correlation_id()) {
            return Ok(malformed(&Refusal::new("invalid", "`correlation_id` must be 1 to 64 printable characters")));
        }
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Ask(Box::new(request), reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// The app reports what happened: files read, identities seen.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report(&self, input: Input) -> Result<(), Stopped> {
        self.messages.send(Message::Input(Box::new(input))).await.map_err(|_| Stopped)
    }

    /// Arms the claim code: `hash` is the second part of [`super::roles::make_claim_code`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn arm_claim_code(&self, hash: String) -> Result<(), Stopped> {
        self.messages.send(Message::Arm(hash)).await.map_err(|_| Stopped)
    }

    /// Counts up when something of the registry, of configurations or of the plan changed, for whoever then looks.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Looks into the core, for lists and tables.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Core) -> T + Send + 'static) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let look = move |core: &Core| {
            // A caller that went away needs no answer.
            let _gone = reply.send(look(core));
        };
        self.messages.send(Message::Look(Box::new(look))).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

/// A message as an input; `None` when its topic is none of management's.
fn read(actor: Actor, topic: &str, encoding: crate::contract::Encoding, payload: &[u8]) -> Option<Input> {
    Some(match Ask::parse(topic, encoding, payload)? {
        Ok(ask) => Input::Request(Box::new(Request { actor, ask })),
        Err(refusal) => Input::Malformed { actor, refusal },
    })
}

/// The refusal that a client gets when a message is no request.
pub fn malformed(refusal: &Refusal) -> v1::ManagementResult {
    v1::ManagementResult {
        outcome: v1::management_result::Outcome::Rejected.into(),
        code: refusal.code.to_owned(),
        message: refusal.message.clone(),
        ..v1::ManagementResult::default()
    }
}
