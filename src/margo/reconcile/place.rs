//! Where a deployment goes.

use std::collections::{BTreeMap, BTreeSet};

use super::record::ReadyPart;
use crate::margo::api::StatusError;
use crate::margo::component::Work;
use crate::margo::component::compose::Allowed;
use crate::margo::plant::{Functions, Identity};
use crate::margo::words::{DevicePath, Digest, Target};
use crate::model::DeviceId;

/// What `gateway/*` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wildcard {
    /// The gateway chooses one child that it fits, and stays with it.
    #[default]
    One,
    /// Every child that it fits.
    Every,
    /// Nothing: the fleet manager names devices (103).
    Refused,
}

/// What the client speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Path of the device that the client is.
    pub top: DevicePath,
    /// Whether everything goes to one device, and every deployment is placed by the gateway.
    pub opaque: bool,
    /// What `…/*` means.
    pub wildcard: Wildcard,
}

/// One device as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceView {
    /// The device; `None` is the gateway itself.
    pub device: Option<DeviceId>,
    /// Who it is.
    pub identity: Identity,
    /// Names the piece of hardware; empty when nobody knows.
    pub hardware: String,
    /// Protocol.
    pub protocol: String,
    /// What it can take and what the configuration delegates.
    pub functions: Functions,
    /// What it can take.
    pub able: Functions,
    /// Whether it answers.
    pub reachable: bool,
    /// Whether it will have answered in a moment, or be known as unreachable.
    pub connecting: bool,
    /// What its container engine allows; `None` when it has none.
    pub engine: Option<Allowed>,
    /// Compose projects of which the containers are gone.
    pub lost: BTreeSet<String>,
}

impl DeviceView {
    /// Why this work cannot go there; `None` when it can.
    pub(super) fn objection(&self, part: &ReadyPart, work: &Work) -> Option<(&'static str, String)> {
        let has = |functions: Functions| match work {
            Work::Configuration { .. } => functions.configuration,
            Work::Recipe { .. } => functions.recipe,
            Work::Firmware { .. } => functions.firmware,
            // An engine is configured for nothing else.
            Work::Compose(_) => self.engine.is_some(),
        };
        let (what, name) = (work.name(), &part.name);
        if !has(self.able) {
            return Some(("not-supported", format!("{name}: this device cannot take {what}")));
        }
        if !has(self.functions) {
            return Some((
                "not-delegated",
                format!("{name}: the gateway's configuration does not delegate {what} of this device to Margo"),
            ));
        }
        if let Work::Compose(project) = work
            && let Some(need) = self.engine.as_ref().and_then(|engine| engine.refuses(&project.needs))
        {
            return Some(("not-allowed", format!("{name}: {need} of this gateway's configuration")));
        }
        if !part.fits.matches(self.identity.vendor.as_deref(), self.identity.model.as_deref(), &self.protocol) {
            return Some(("does-not-fit", format!("{name}: it is made for another vendor, model or protocol")));
        }
        None
    }
}

/// Where to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Placed {
    /// These devices.
    On(BTreeSet<DevicePath>),
    /// Not known before the components are.
    Later,
    /// Nowhere.
    Nowhere(StatusError),
}

/// Everything that placement looks at.
pub(super) struct Look<'a> {
    pub scope: &'a Scope,
    pub devices: &'a BTreeMap<DevicePath, DeviceView>,
    /// Components with their work, once they were fetched.
    pub parts: Option<Vec<(&'a ReadyPart, &'a Work)>>,
    /// Devices that were chosen before.
    pub chosen: &'a [DevicePath],
    /// Whether something was begun there already.
    pub begun: bool,
    /// What other deployments hold of devices, or are about to.
    pub held: &'a BTreeMap<DevicePath, BTreeSet<String>>,
    /// Deployments per device, for an even choice.
    pub load: &'a BTreeMap<DevicePath, usize>,
}

/// Resolves a target.
pub(super) fn place(target: Option<&Target>, look: &Look<'_>) -> Placed {
    let scope = look.scope;
    let own = Target::Device(scope.top.clone());
    match target.unwrap_or(&own) {
        Target::Device(path) if scope.opaque && *path == scope.top => choose(look, |_| true, Wildcard::One),
        Target::Device(_) if scope.opaque => unknown(scope),
        Target::Below(path) if scope.opaque && *path == scope.top => choose(look, |_| true, Wildcard::One),
        Target::Device(path) if look.devices.contains_key(path) => Placed::On([path.clone()].into()),
        Target::Device(_) => unknown(scope),
        Target::Below(_) if scope.wildcard == Wildcard::Refused => {
            Placed::Nowhere(StatusError::no_placement(&scope.top))
        }
        Target::Below(path) if look.devices.contains_key(path) => {
            choose(look, |found| found.is_below(path), scope.wildcard)
        }
        Target::Below(_) => unknown(scope),
    }
}

fn unknown(scope: &Scope) -> Placed {
    Placed::Nowhere(StatusError::unknown_child(&scope.top))
}

fn choose(look: &Look<'_>, within: impl Fn(&DevicePath) -> bool, how: Wildcard) -> Placed {
    let Some(parts) = &look.parts else { return Placed::Later };
    let fits = |view: &DeviceView| parts.iter().all(|(part, work)| view.objection(part, work).is_none());
    let fitting: BTreeMap<&DevicePath, &DeviceView> =
        look.devices.iter().filter(|(path, view)| within(path) && fits(view)).collect();
    if how == Wildcard::Every && !fitting.is_empty() {
        return Placed::On(fitting.into_keys().cloned().collect());
    }
    let ours: BTreeSet<String> = parts.iter().flat_map(|(_, work)| work.claims()).collect();
    let taken = |path: &DevicePath| look.held.get(path).is_some_and(|held| !held.is_disjoint(&ours));
    // A choice stays: moving a workload because another device is idler now would undo it for nothing. Only where another
    // deployment stands in the way of one that has begun nothing, and does not elsewhere, is there something to gain.
    let kept = look.chosen.iter().find(|path| fitting.contains_key(path));
    if let Some(kept) = kept.filter(|kept| look.begun || !taken(kept) || fitting.keys().all(|path| taken(path))) {
        return Placed::On([kept.clone()].into());
    }
    let load = |path: &DevicePath| look.load.get(path).copied().unwrap_or(0);
    let best =
        fitting.iter().min_by_key(|(path, view)| (taken(path), !view.reachable && !view.connecting, load(path), *path));
    match best {
        Some((path, _)) => Placed::On([(*path).clone()].into()),
        None => Placed::Nowhere(StatusError::of(
            &look.scope.top,
            "no-device-fits",
            "no device of this gateway fits the components and delegates them to Margo",
        )),
    }
}

/// Names of the works, for looking them up.
pub(super) type Works = BTreeMap<Digest, std::sync::Arc<Work>>;
