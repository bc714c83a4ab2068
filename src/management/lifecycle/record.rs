//! What is kept of one device, and how it is shown.

use serde::{Deserialize, Serialize};

use super::identity::{Claim, Pin};
use super::states::{State, TABLE};
use super::types::Declaration;
use crate::contract::{timestamp, v1};
use crate::management::table::Word;
use crate::model::DeviceId;

/// How a device became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A file declares it.
    Declared,
    /// It announced itself over MQTT.
    Announced,
    /// A scan found it.
    Found,
    /// Another gateway handed it over.
    Received,
}

impl Source {
    /// The text in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Source::Declared => "declared",
            Source::Announced => "announced",
            Source::Found => "found",
            Source::Received => "received",
        }
    }
}

/// One device in the registry. Plain data; the key is its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Where it is in its life.
    pub state: State,
    /// When that began, milliseconds since 1970.
    pub since_ms: i64,
    /// Why it is in this state, for people.
    #[serde(default)]
    pub reason: String,
    /// How it became known.
    pub source: Source,
    /// Such as `modbus-tcp` or `mqtt`.
    pub protocol: String,
    /// Where it is reached, without secrets.
    pub address: String,
    /// Margo tier.
    pub tier: u8,
    /// Type of the device, for one that no file declares.
    #[serde(default)]
    pub profile: String,
    /// The identity that it was approved with.
    #[serde(default)]
    pub pinned: Option<Pin>,
    /// What it revealed last.
    #[serde(default)]
    pub claim: Option<Claim>,
    /// The only fingerprint that may be pinned next.
    #[serde(default)]
    pub expected: Option<String>,
    /// The identity that was pinned before a replacement began.
    #[serde(default)]
    pub replaced: Option<Pin>,
    /// Which piece of hardware it is under this id: one more with each that was accepted in place of another.
    #[serde(default)]
    pub piece: u32,
    /// Who approved it.
    #[serde(default)]
    pub approved_by: String,
    /// When.
    #[serde(default)]
    pub approved_ms: i64,
    /// Credentials were made for it (devices that connect by themselves).
    #[serde(default)]
    pub credentials: bool,
    /// Certificate signing request that waits for a signature, in PEM; public data.
    #[serde(default)]
    pub signing_request: String,
    /// The chain that answered its last signing request, in PEM; public data.
    #[serde(default)]
    pub certificate: String,
    /// Whether decommissioning erases stored values at once.
    #[serde(default)]
    pub erase_data: bool,
    /// The transfer that it is part of.
    #[serde(default)]
    pub transfer: String,
}

impl DeviceRecord {
    /// A device that was seen for the first time.
    pub fn new(state: State, source: Source, now_ms: i64) -> Self {
        Self {
            state,
            since_ms: now_ms,
            reason: String::new(),
            source,
            protocol: String::new(),
            address: String::new(),
            tier: 1,
            profile: String::new(),
            pinned: None,
            claim: None,
            expected: None,
            replaced: None,
            piece: 0,
            approved_by: String::new(),
            approved_ms: 0,
            credentials: false,
            signing_request: String::new(),
            certificate: String::new(),
            erase_data: false,
            transfer: String::new(),
        }
    }

    /// Whether it connects to the broker by itself, with credentials of its own.
    pub fn connects(&self) -> bool {
        self.protocol == "mqtt"
    }

    /// Whether its life here has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Transferred | State::Decommissioning | State::Decommissioned | State::Rejected)
    }

    /// The identity that it was approved with; while it is being replaced, that of the old hardware.
    pub fn approved(&self) -> Option<&Pin> {
        self.pinned.as_ref().or(self.replaced.as_ref())
    }

    /// Whether it was approved with an identity and still belongs to this gateway, in service or not.
    pub fn is_held(&self) -> bool {
        use State as S;
        let held = matches!(self.state, S::Active | S::Suspended | S::IdentityChanged | S::Replacing | S::Transferring);
        held && self.approved().is_some()
    }

    /// Who the approved hardware is. What reveals nothing of itself until later says it when it does.
    pub fn name_plate(&self) -> Claim {
        self.approved().and_then(Pin::name_plate).or_else(|| self.claim.clone()).unwrap_or_default()
    }

    /// Whether nothing may be left of it here but its entry, or everything is about to be removed.
    pub fn is_gone(&self) -> bool {
        matches!(self.state, State::Decommissioning | State::Decommissioned)
    }

    /// The retained message.
    pub fn message(&self, id: &DeviceId, declared: Option<&Declaration>) -> v1::Onboarding {
        let claim = self.claim.clone().unwrap_or_default();
        let pinned = self.pinned.as_ref();
        let seen = self.claim.as_ref().filter(|c| !c.is_empty() && pinned.is_none_or(|p| !p.fits(c)));
        let mut possible: Vec<String> = Vec::new();
        for row in TABLE.rows.iter().filter(|r| r.from == self.state && is_request(r.event)) {
            if !possible.iter().any(|p| p == row.event.as_str()) {
                possible.push(row.event.as_str().to_owned());
            }
        }
        v1::Onboarding {
            device: id.as_str().to_owned(),
            state: self.state.as_str().to_owned(),
            since: Some(timestamp(self.since_ms)),
            protocol: self.protocol.clone(),
            address: self.address.clone(),
            tier: u32::from(self.tier),
            fingerprint: pinned.map(|p| p.value.clone()).unwrap_or_default(),
            approved_by: self.approved_by.clone(),
            approved_at: (self.approved_ms != 0).then(|| timestamp(self.approved_ms)),
            reason: self.reason.clone(),
            source: self.source.as_str().to_owned(),
            seen_fingerprint: seen.map(Claim::fingerprint).unwrap_or_default(),
            delegated: declared.map(|d| d.delegated.iter().map(|f| (*f).to_owned()).collect()).unwrap_or_default(),
            possible,
            vendor: claim.vendor,
            model: claim.model,
            serial: claim.serial,
            firmware: claim.firmware,
            profile: self.profile.clone(),
            certificate: self.certificate.clone(),
        }
    }
}

/// Events that a client may ask for on `onboarding/request`.
pub(super) fn is_request(event: super::states::Event) -> bool {
    use super::states::Event as E;
    matches!(
        event,
        E::Offer
            | E::Approve
            | E::Reject
            | E::Suspend
            | E::Resume
            | E::AcceptIdentity
            | E::Replace
            | E::Cancel
            | E::Decommission
            | E::Readmit
    )
}
