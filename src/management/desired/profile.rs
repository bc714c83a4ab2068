//! What the files say of a device: the base that a desired document is laid on, and the frame that it must keep.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json};

use super::document::TimeSettings;
use crate::management::clock::ClockForm;
use crate::model::{Access, DataType, Limits};

/// One point as the files declare it.
#[derive(Debug, Clone, PartialEq)]
pub struct PointProfile {
    /// Type in the device.
    pub data_type: DataType,
    /// The most that a desired document may grant. `Read` locks the point against writes from afar.
    pub max_access: Access,
    /// Range of writes that the file sets; a document can only narrow it.
    pub limits: Option<Limits>,
    /// Whether it is polled.
    pub polled: bool,
    /// Time from scan to scan, milliseconds.
    pub every_ms: u64,
}

/// A device as the files declare it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// The files' settings in the form of a desired document, for `effective`.
    pub base: Map<String, Json>,
    /// Points by id.
    pub points: BTreeMap<String, PointProfile>,
    /// Names of rate groups.
    pub groups: BTreeSet<String>,
    /// Points that hold the device's clock.
    pub clock: Option<ClockForm>,
    /// How the files want the clock to be looked after.
    pub time: Option<TimeSettings>,
    /// Methods of the device's type.
    pub methods: BTreeSet<String>,
    /// Whether it takes firmware here.
    pub firmware: bool,
}
