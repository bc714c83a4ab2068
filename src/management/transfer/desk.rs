//! Follows the table for each transfer, and moves its devices with it in the same step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::{Document, Kind};
use super::states::{Action, Event, Guard, State, TABLE};
use crate::contract::v1::event::Severity;
use crate::management::journal::{JournalError, Records, Shelf};
use crate::management::lifecycle::{self, Lifecycle};
use crate::management::request::Refusal;
use crate::management::step::{Cause, Step};
use crate::management::table::Word;
use crate::model::{DeviceId, Stamp};

/// Transfers remembered; the oldest ended ones go.
const MAX_TRANSFERS: usize = 64;

/// One transfer, on either side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Where it is.
    pub state: State,
    /// Since when, milliseconds since 1970.
    pub since_ms: i64,
    /// When it began here.
    pub began_ms: i64,
    /// The other side.
    pub partner: String,
    /// SHA-256 of the export's payload.
    pub export: String,
    /// The devices.
    #[serde(with = "ids")]
    pub devices: Vec<DeviceId>,
}

/// What is to be signed as the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::management) enum Sign {
    Receipt,
    Release,
    Nothing,
}

/// All transfers.
#[derive(Debug, Default)]
pub struct Transfers {
    transfers: BTreeMap<String, Transfer>,
}

impl Transfers {
    /// Reads the records.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(records: &Records) -> Result<Self, JournalError> {
        Ok(Self { transfers: records.read_all(Shelf::Transfers)? })
    }

    /// One transfer.
    pub fn transfer(&self, id: &str) -> Option<&Transfer> {
        self.transfers.get(id)
    }

    /// A new transfer begins, on the giving (`Offered`) or the taking side (`Received`).
    pub(in crate::management) fn begin(
        &mut self,
        now: Stamp,
        id: &str,
        transfer: Transfer,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        self.make_room(step)?;
        let what = format!("{} devices, partner {}", transfer.devices.len(), transfer.partner);
        step.audit(now, cause, transfer.state.as_str(), format!("transfers/{id}"), what, "done");
        step.put(Shelf::Transfers, id, &transfer);
        self.transfers.insert(id.to_owned(), transfer);
        Ok(())
    }

    fn make_room(&mut self, step: &mut Step) -> Result<(), Refusal> {
        while self.transfers.len() >= MAX_TRANSFERS {
            let ended = self.transfers.iter().filter(|(_, t)| TABLE.terminal.contains(&t.state));
            let Some(oldest) = ended.min_by_key(|(_, t)| t.began_ms).map(|(id, _)| id.clone()) else {
                return Err(Refusal::new("too-many", "64 transfers are open; finish or cancel some"));
            };
            self.transfers.remove(&oldest);
            step.delete(Shelf::Transfers, oldest);
        }
        Ok(())
    }

    /// A document of a known transfer came from its partner.
    pub(in crate::management) fn document(
        &mut self,
        now: Stamp,
        document: &Document,
        digest: &str,
        lifecycle: &mut Lifecycle,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Sign, Refusal> {
        let (event, export) = match document.kind {
            Kind::Export => (Event::Export, digest),
            Kind::Receipt => (Event::Receipt, document.export.as_str()),
            Kind::Release => (Event::Release, document.export.as_str()),
        };
        let Some(transfer) = self.transfers.get(&document.id) else {
            return Err(Refusal::new("unknown-transfer", "this transfer is not known here; begin with the export"));
        };
        if transfer.partner != document.from {
            return Err(Refusal::new(
                "not-allowed",
                format!("this transfer is with {}, not with {}", transfer.partner, document.from),
            ));
        }
        let same = transfer.export == export;
        self.follow(now, &document.id, event, same, None, lifecycle, cause, step)
    }

    /// An administrator takes a transfer back.
    pub(in crate::management) fn cancel(
        &mut self,
        now: Stamp,
        id: &str,
        lifecycle: &mut Lifecycle,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<(), Refusal> {
        if !self.transfers.contains_key(id) {
            return Err(Refusal::new(
                "unknown-transfer",
                "name the transfer in `document`; see the audit log for its id",
            ));
        }
        self.follow(now, id, Event::Cancel, false, None, lifecycle, cause, step).map(|_| ())
    }

    /// A device that is part of a transfer can only be taken back with the whole of it.
    pub(in crate::management) fn check_cancel(&self, device: &DeviceId, lifecycle: &Lifecycle) -> Result<(), Refusal> {
        match lifecycle.device(device).map(|r| (r.state, r.transfer.as_str())) {
            Some((lifecycle::State::Transferring, id)) => {
                let text =
                    format!("{device} is part of transfer {id}; use cancel-transfer, which takes all of it back");
                Err(Refusal::new("not-possible", text))
            }
            _ => Ok(()),
        }
    }

    /// A device went another way: the transfer as a whole is off, its other devices stay with their owner.
    pub(in crate::management) fn void(
        &mut self,
        now: Stamp,
        device: &DeviceId,
        lifecycle: &mut Lifecycle,
        step: &mut Step,
    ) {
        let cause = Cause::own("gateway");
        let open = |t: &Transfer| !TABLE.terminal.contains(&t.state) && t.devices.contains(device);
        let Some(id) = self.transfers.iter().find(|(_, t)| open(t)).map(|(id, _)| id.clone()) else { return };
        let _taken = self.follow(now, &id, Event::Void, false, Some(device), lifecycle, &cause, step);
        let what = format!("transfer {id} is off because {device} changed; export again");
        step.raise(now, Some(device), Severity::Alarm, "transfer-void", what);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one row's context; the only place where a transfer changes its state"
    )]
    fn follow(
        &mut self,
        now: Stamp,
        id: &str,
        event: Event,
        same_export: bool,
        except: Option<&DeviceId>,
        lifecycle: &mut Lifecycle,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Sign, Refusal> {
        let Some(transfer) = self.transfers.get_mut(id) else { return Ok(Sign::Nothing) };
        let row = TABLE.decide(transfer.state, event, |guard| match guard {
            Guard::SameExport => same_export,
        })?;
        let mut sign = Sign::Nothing;
        for &action in row.effects {
            let life = match action {
                Action::HandOver => lifecycle::Event::Receipt,
                Action::TakeBack => lifecycle::Event::Cancel,
                Action::TakeOver => lifecycle::Event::Release,
                Action::GiveUp => lifecycle::Event::Reject,
                Action::SignReceipt => {
                    sign = Sign::Receipt;
                    continue;
                }
                Action::SignRelease => {
                    sign = Sign::Release;
                    continue;
                }
            };
            for device in transfer.devices.iter().filter(|d| Some(*d) != except) {
                lifecycle.transferred(now, device, life, id, cause, step);
            }
        }
        if row.from != row.to {
            transfer.state = row.to;
            transfer.since_ms = now.wall_ms;
            let detail = format!("{} to {}", row.from, row.to);
            step.audit(now, cause, event.as_str(), format!("transfers/{id}"), detail, "done");
            step.put(Shelf::Transfers, id, transfer);
        }
        Ok(sign)
    }
}

/// Ids as texts.
mod ids {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::DeviceId;

    pub(super) fn serialize<S: Serializer>(ids: &[DeviceId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(DeviceId::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DeviceId>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| DeviceId::new(text).map_err(D::Error::custom)).collect()
    }
}
