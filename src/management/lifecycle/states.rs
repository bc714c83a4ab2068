//! The table of a device's life. Every row also writes an audit entry and shows the state on `devices/{d}/onboarding`.

use crate::management::table::{Row, Table, words};

words!(
    /// Where a device is in its life.
    State {
        /// Seen, but not yet known well enough to be offered for approval.
        Discovered = "discovered",
        /// Waits for approval.
        Pending = "pending",
        /// Approved: identity is being pinned, credentials are being made.
        Enrolling = "enrolling",
        /// In service.
        Active = "active",
        /// Taken out of service by an operator; not polled.
        Suspended = "suspended",
        /// Reveals another identity than the pinned one: values are not trusted, a person decides.
        IdentityChanged = "identity-changed",
        /// New hardware under the same id: its configuration is being applied and proven.
        Replacing = "replacing",
        /// Exported to another gateway; still owned and read here.
        Transferring = "transferring",
        /// Owned by another gateway.
        Transferred = "transferred",
        /// Imported from another gateway, which still owns it.
        Receiving = "receiving",
        /// Its credentials, topics and data are being removed.
        Decommissioning = "decommissioning",
        /// Gone; the audit log holds the certificate of erasure.
        Decommissioned = "decommissioned",
        /// Not wanted.
        Rejected = "rejected",
    }
);

words!(
    /// What can happen to a device.
    Event {
        /// Known well enough to be offered for approval.
        Offer = "offer",
        /// A person, a token or the policy trusts it.
        Approve = "approve",
        /// A person does not want it.
        Reject = "reject",
        /// Identity pinned and credentials made.
        Enrolled = "enrolled",
        /// Credentials could not be made.
        EnrolFailed = "enrol-failed",
        /// An operator takes it out of service.
        Suspend = "suspend",
        /// An operator puts it back into service.
        Resume = "resume",
        /// It reveals another identity than the pinned one.
        IdentityMismatch = "identity-mismatch",
        /// A person trusts the identity that it reveals now.
        AcceptIdentity = "accept-identity",
        /// A person says that the hardware is or will be replaced.
        Replace = "replace",
        /// The new hardware showed itself.
        ReplacementSeen = "replacement-seen",
        /// Its configuration works on the new hardware.
        Proven = "proven",
        /// Its configuration does not work on the new hardware.
        ProofFailed = "proof-failed",
        /// An operator takes back a replacement or a transfer.
        Cancel = "cancel",
        /// Exported to another gateway.
        Export = "export",
        /// The other gateway's signed receipt came back.
        Receipt = "receipt",
        /// The earlier owner's signed release came.
        Release = "release",
        /// Imported from another gateway.
        Import = "import",
        /// A person ends its life here.
        Decommission = "decommission",
        /// Everything the policy names is removed.
        Erased = "erased",
        /// Something could not be removed.
        EraseFailed = "erase-failed",
        /// A person wants it after all.
        Readmit = "readmit",
    }
);

words!(
    /// Conditions of rows.
    Guard {
        /// No other fingerprint was demanded than the one that the device reveals.
        ExpectedFits = "the expected fingerprint",
        /// What the device revealed last is the pinned identity.
        IdentityFits = "the pinned identity",
        /// No identity was pinned yet.
        NotPinned = "no pinned identity",
        /// The device revealed something that can be pinned.
        IdentitySeen = "a revealed identity",
    }
);

words!(
    /// What follows when the new state is durable.
    Action {
        /// Pin the identity that the device reveals.
        Pin = "pin",
        /// Forget the pinned identity, so that the next one can be pinned.
        Unpin = "unpin",
        /// Pin again what was pinned before the replacement.
        Restore = "restore-pin",
        /// Ask the device who it is.
        Identify = "identify",
        /// Run what the plan says now: poll, poll without trust, or not at all.
        Plan = "apply-plan",
        /// Make credentials, if the device connects by itself.
        Issue = "issue-credentials",
        /// Take its credentials back.
        Revoke = "revoke-credentials",
        /// Raise an alarm.
        Alarm = "alarm",
        /// Apply its configuration again and prove it.
        Reapply = "reapply-configuration",
        /// The transfer that it is part of is void.
        VoidTransfer = "void-transfer",
        /// Remove topics, credentials, configuration and, as the policy says, stored values.
        Erase = "erase",
        /// Write the certificate of erasure.
        Certificate = "certificate-of-erasure",
    }
);

use Action as A;
use Event as E;
use Guard as G;
use State as S;

type R = Row<State, Event, Guard, Action>;

const fn row(from: S, event: E, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: None, to, effects }
}

const fn when(from: S, event: E, guard: G, to: S, effects: &'static [A]) -> R {
    Row { from, event, guard: Some(guard), to, effects }
}

/// Rows for ending a life from a state in which nobody else has a part in the device.
const fn end(from: S) -> R {
    row(from, E::Decommission, S::Decommissioning, &[A::Plan, A::Revoke, A::Erase])
}

/// The life of a device.
pub static TABLE: Table<State, Event, Guard, Action> = Table {
    name: "device",
    initial: &[S::Discovered, S::Receiving],
    terminal: &[S::Transferred, S::Decommissioned, S::Rejected],
    rows: &[
        row(S::Discovered, E::Offer, S::Pending, &[]),
        row(S::Discovered, E::Reject, S::Rejected, &[]),
        row(S::Discovered, E::Import, S::Receiving, &[]),
        end(S::Discovered),
        when(S::Pending, E::Approve, G::ExpectedFits, S::Enrolling, &[A::Pin, A::Plan, A::Issue, A::Identify]),
        row(S::Pending, E::Reject, S::Rejected, &[]),
        row(S::Pending, E::Import, S::Receiving, &[]),
        end(S::Pending),
        row(S::Enrolling, E::Enrolled, S::Active, &[]),
        row(S::Enrolling, E::EnrolFailed, S::Pending, &[A::Plan, A::Alarm]),
        row(S::Enrolling, E::IdentityMismatch, S::IdentityChanged, &[A::Plan, A::Alarm]),
        row(S::Enrolling, E::Suspend, S::Suspended, &[A::Plan]),
        end(S::Enrolling),
        row(S::Active, E::Suspend, S::Suspended, &[A::Plan]),
        row(S::Active, E::IdentityMismatch, S::IdentityChanged, &[A::Plan, A::Alarm]),
        row(S::Active, E::Replace, S::Replacing, &[A::Unpin, A::Identify]),
        row(S::Active, E::Export, S::Transferring, &[]),
        end(S::Active),
        when(S::Suspended, E::Resume, G::NotPinned, S::Enrolling, &[A::Plan, A::Issue, A::Identify]),
        when(S::Suspended, E::Resume, G::IdentityFits, S::Active, &[A::Plan, A::Identify]),
        row(S::Suspended, E::Replace, S::Replacing, &[A::Unpin, A::Plan, A::Identify]),
        row(S::Suspended, E::IdentityMismatch, S::IdentityChanged, &[A::Plan, A::Alarm]),
        end(S::Suspended),
        when(S::IdentityChanged, E::AcceptIdentity, G::IdentitySeen, S::Active, &[A::Pin, A::Plan]),
        when(S::IdentityChanged, E::Resume, G::IdentityFits, S::Active, &[A::Plan]),
        when(S::IdentityChanged, E::Replace, G::ExpectedFits, S::Replacing, &[A::Pin, A::Plan, A::Reapply]),
        row(S::IdentityChanged, E::Suspend, S::Suspended, &[A::Plan]),
        row(S::IdentityChanged, E::IdentityMismatch, S::IdentityChanged, &[A::Alarm]),
        end(S::IdentityChanged),
        when(S::Replacing, E::ReplacementSeen, G::ExpectedFits, S::Replacing, &[A::Pin, A::Plan, A::Reapply]),
        row(S::Replacing, E::ReplacementSeen, S::IdentityChanged, &[A::Plan, A::Alarm]),
        row(S::Replacing, E::IdentityMismatch, S::IdentityChanged, &[A::Plan, A::Alarm]),
        row(S::Replacing, E::Proven, S::Active, &[]),
        row(S::Replacing, E::ProofFailed, S::Suspended, &[A::Plan, A::Alarm]),
        row(S::Replacing, E::Cancel, S::Active, &[A::Restore, A::Plan, A::Identify]),
        row(S::Replacing, E::Suspend, S::Suspended, &[A::Plan]),
        end(S::Replacing),
        row(S::Transferring, E::Receipt, S::Transferred, &[A::Plan, A::Revoke]),
        row(S::Transferring, E::Cancel, S::Active, &[]),
        row(S::Transferring, E::IdentityMismatch, S::IdentityChanged, &[A::VoidTransfer, A::Plan, A::Alarm]),
        row(S::Transferring, E::Decommission, S::Decommissioning, &[A::VoidTransfer, A::Plan, A::Revoke, A::Erase]),
        row(S::Transferred, E::Import, S::Receiving, &[]),
        end(S::Transferred),
        row(S::Receiving, E::Release, S::Enrolling, &[A::Plan, A::Issue, A::Identify]),
        row(S::Receiving, E::Reject, S::Rejected, &[A::VoidTransfer]),
        row(S::Receiving, E::Decommission, S::Decommissioning, &[A::VoidTransfer, A::Plan, A::Revoke, A::Erase]),
        row(S::Decommissioning, E::Erased, S::Decommissioned, &[A::Certificate]),
        row(S::Decommissioning, E::EraseFailed, S::Decommissioning, &[A::Alarm]),
        row(S::Decommissioned, E::Readmit, S::Discovered, &[]),
        row(S::Decommissioned, E::Import, S::Receiving, &[]),
        row(S::Rejected, E::Readmit, S::Discovered, &[]),
        row(S::Rejected, E::Import, S::Receiving, &[]),
        end(S::Rejected),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        assert_eq!(TABLE.problems(), Vec::<String>::new());
    }

    #[test]
    fn any_living_device_can_be_decommissioned() {
        use crate::management::table::Word;
        for &state in State::ALL {
            let over = matches!(state, State::Decommissioning | State::Decommissioned);
            assert_eq!(TABLE.decide(state, Event::Decommission, |_| false).is_err(), over, "{state}");
        }
    }
}
