//! One deployment on one device: what comes next, and what an answer means.

use std::sync::Arc;

use super::core::{JOBS, Job, PlacementKey, Reconciler, Retry, Running};
use super::place::Works;
use super::record::{Begun, CONFLICT, Part, Placement};
use super::report;
use crate::margo::api::{State, StatusError};
use crate::margo::component::{PointValue, Work};
use crate::margo::plant::{Act, Before, Order, Refusal};
use crate::margo::words::Digest;

impl Placement {
    /// Whether everything was undone.
    pub(super) fn is_gone(&self) -> bool {
        self.leaving && self.parts.iter().all(|part| part.state == State::Removed && part.order.is_none())
    }
}

impl Part {
    fn needs_work(&self) -> bool {
        self.wanted.is_some() && (self.wanted != self.applied || self.touched.is_some())
    }
}

impl Reconciler {
    /// Whether nothing is left to do, but by an update.
    pub(super) fn settled(&self, placement: &Placement) -> bool {
        let aligned = self.records.get(&placement.deployment).is_some_and(|record| {
            let ready = record.ready.as_ref().map(|ready| ready.digest);
            ready.is_none_or(|ready| record.wanted != Some(ready)) || placement.aligned == ready
        });
        let rests = |part: &Part| part.order.is_none() && part.wanted.is_some() && !part.needs_work();
        let same = self.other_hardware(placement).is_none();
        let there = !placement.parts.iter().any(|part| self.is_lost(placement, part));
        aligned && same && there && !placement.leaving && placement.parts.iter().all(rests)
    }

    /// The piece that is there now, if it is not the one that the parts were brought to.
    fn other_hardware(&self, placement: &Placement) -> Option<&str> {
        let found = self.devices.get(&placement.path)?.hardware.as_str();
        (!found.is_empty() && found != placement.hardware).then_some(found)
    }

    /// Whether the containers of a part that was installed are gone.
    fn is_lost(&self, placement: &Placement, part: &Part) -> bool {
        let lost = self.devices.get(&placement.path).map(|view| &view.lost);
        let Some(lost) = lost.filter(|lost| !lost.is_empty()) else { return false };
        match part.applied.and_then(|work| self.works.get(&work)).map(AsRef::as_ref) {
            Some(Work::Compose(project)) => lost.contains(&project.owner),
            _ => false,
        }
    }

    /// Whether a placement can do nothing without a job: it knows its components, and its device answers.
    pub(super) fn waits(&self, key: &PlacementKey) -> bool {
        let placement = self.placements.get(key);
        let aligned = placement.is_some_and(|placement| {
            let ready = self.records.get(&key.0).and_then(|record| record.ready.as_ref()).map(|ready| ready.digest);
            placement.leaving || placement.aligned == ready
        });
        aligned && self.devices.get(&key.1).is_some_and(|view| view.reachable)
    }

    fn is_busy(&self, path: &crate::margo::words::DevicePath) -> bool {
        self.running.values().any(|job| matches!(job, Running::Part((_, busy), _) if busy == path))
    }

    /// Takes the next step of a placement, if there is one now.
    pub(super) fn step_placement(&mut self, key: &PlacementKey, now_ns: u64) {
        let Some(mut placement) = self.placements.remove(key) else { return };
        let before = placement.clone();
        self.align(&mut placement);
        self.follow_hardware(&mut placement);
        self.follow_engine(&mut placement);
        if !self.is_busy(&placement.path) {
            self.next_act(key, &mut placement, now_ns);
        }
        if placement != before {
            self.changed.insert(key.clone());
        }
        self.placements.insert(key.clone(), placement);
    }

    /// Holds the parts against the newest components. Not while an order is under way: its answer is about the old ones.
    fn align(&mut self, placement: &mut Placement) {
        let Some(record) = self.records.get(&placement.deployment) else { return };
        let Some(ready) = record.ready.as_ref().filter(|ready| record.wanted == Some(ready.digest)) else { return };
        let waiting = placement.parts.iter().any(|part| part.order.is_some());
        if placement.leaving || waiting || placement.aligned == Some(ready.digest) {
            return;
        }
        let mut old = std::mem::take(&mut placement.parts);
        for wanted in &ready.parts {
            let known = old.iter().position(|part| part.name == wanted.name);
            let mut part = known.map_or_else(|| Part::new(&wanted.name), |at| old.remove(at));
            part.wanted = Some(wanted.work);
            part.is_now(if part.needs_work() { State::Pending } else { State::Installed });
            placement.parts.push(part);
        }
        // What the new revision leaves out is undone first, so that it cannot undo what the new one does.
        for mut part in old.into_iter().filter(|part| part.in_force().is_some()) {
            part.wanted = None;
            part.is_now(part.state);
            placement.parts.push(part);
        }
        placement.aligned = Some(ready.digest);
        if placement.parts.iter().all(|part| part.wanted.is_some() && !part.needs_work()) {
            placement.begun = Some(Begun { digest: ready.digest, version: self.head });
        }
    }

    /// What was written to hardware that was replaced is not in the new one: it is written again, and what was there before
    /// is what the new one holds. Configurations are this gateway's and stay. An order that was given ends first.
    fn follow_hardware(&self, placement: &mut Placement) {
        let Some(found) = self.other_hardware(placement) else { return };
        if placement.parts.iter().any(|part| part.order.is_some()) {
            return;
        }
        let known = !placement.hardware.is_empty();
        for part in placement.parts.iter_mut().filter(|_| known) {
            let lies_there = |work: &Digest| self.works.get(work).is_some_and(|work| work.lies_in_hardware());
            if part.in_force().as_ref().is_some_and(lies_there) {
                *part = Part { wanted: part.wanted, ..Part::new(&part.name) };
            }
        }
        found.clone_into(&mut placement.hardware);
    }

    /// Containers that are gone from their engine are brought back, as into hardware that was replaced.
    fn follow_engine(&self, placement: &mut Placement) {
        if placement.leaving {
            return;
        }
        for at in 0..placement.parts.len() {
            let part = &placement.parts[at];
            if part.order.is_none() && part.wanted.is_some() && self.is_lost(placement, part) {
                let part = &mut placement.parts[at];
                part.touched = part.applied.take();
                part.is_now(State::Pending);
            }
        }
    }

    fn next_act(&mut self, key: &PlacementKey, placement: &mut Placement, now_ns: u64) {
        if placement.leaving && !self.devices.contains_key(&placement.path) {
            // The device is gone for good: there is nothing left to undo anything on.
            for part in &mut placement.parts {
                part.is_now(State::Removed);
                part.order = None;
            }
            return;
        }
        if let Some(at) = placement.parts.iter().position(|part| part.order.is_some()) {
            return self.give_again(key, placement, at);
        }
        match self.devices.get(&placement.path) {
            Some(view) if view.reachable => {}
            // It has not had the time to answer yet: nothing is known, and nothing is told.
            Some(view) if view.connecting => return,
            _ => return self.unreachable(placement),
        }
        if self.undo_next(key, placement, now_ns) {
            return;
        }
        self.apply_next(key, placement, now_ns);
    }

    fn unreachable(&self, placement: &mut Placement) {
        let error = StatusError::unreachable(&self.scope.top);
        let leaving = placement.leaving;
        for part in &mut placement.parts {
            let undo = leaving || part.wanted.is_none();
            match part.in_force() {
                None if undo => part.is_now(State::Removed),
                _ if undo => (part.state, part.error) = (State::Removing, Some(error.clone())),
                _ if part.needs_work() && (part.state != State::Failed || part.passing) => part.wait(error.clone()),
                _ => {}
            }
        }
        if !leaving {
            placement.parts.retain(|part| part.wanted.is_some() || part.state != State::Removed);
        }
    }

    /// Undoes the last part that is to go; whether there is one, so that nothing is applied before.
    fn undo_next(&mut self, key: &PlacementKey, placement: &mut Placement, now_ns: u64) -> bool {
        let leaving = placement.leaving;
        for part in &mut placement.parts {
            if (leaving || part.wanted.is_none()) && part.in_force().is_none() {
                part.is_now(State::Removed);
            }
        }
        if !leaving {
            placement.parts.retain(|part| part.wanted.is_some() || part.in_force().is_some());
        }
        let goes = |part: &Part| (leaving || part.wanted.is_none()) && part.in_force().is_some();
        let Some(at) = placement.parts.iter().rposition(goes) else { return leaving };
        let retry = Retry::Part(key.clone(), placement.parts[at].name.clone());
        if self.running.len() < JOBS && self.may_try(&retry, now_ns) {
            let name = placement.parts[at].name.clone();
            let order = self.next_order(placement, &name);
            let part = &mut placement.parts[at];
            part.is_now(State::Removing);
            part.order = Some((order, true));
            self.give_again(key, placement, at);
        }
        true
    }

    fn apply_next(&mut self, key: &PlacementKey, placement: &mut Placement, now_ns: u64) {
        let Some(at) = placement.parts.iter().position(Part::needs_work) else { return };
        let path = placement.path.clone();
        let part = &mut placement.parts[at];
        if part.state == State::Failed && !part.passing {
            return;
        }
        let retry = Retry::Part(key.clone(), part.name.clone());
        if let Some((code, why)) = self.objection(key, part) {
            if code == CONFLICT && part.error.as_ref().is_none_or(|error| error.code != CONFLICT) {
                // Another device may be free meanwhile.
                self.stirred.insert(key.0.clone());
            }
            part.wait(report::error(&self.scope.top, code, &why));
            return;
        }
        if self.running.len() >= JOBS || !self.may_try(&retry, now_ns) {
            return;
        }
        let Some(work) = part.wanted.and_then(|work| self.works.get(&work)).cloned() else { return };
        part.is_now(State::Pending);
        let device = self.devices.get(&path).and_then(|view| view.device.clone());
        self.begin(Running::Part(key.clone(), part.name.clone()), Job::Before { device, work });
    }

    /// Why a part cannot be applied on its device now.
    fn objection(&self, key: &PlacementKey, part: &Part) -> Option<(&'static str, String)> {
        let digest = part.wanted?;
        let work = self.works.get(&digest)?;
        let record = self.records.get(&key.0)?;
        let ready = record.ready.as_ref()?.parts.iter().find(|ready| ready.name == part.name)?;
        if let Some(objection) = self.devices.get(&key.1)?.objection(ready, work) {
            return Some(objection);
        }
        let claims = work.claims();
        let others = self.placements.values().filter(|other| other.path == key.1 && other.deployment != key.0);
        for other in others {
            let held = other.parts.iter().filter_map(|part| self.works.get(&part.in_force()?));
            let taken = held.flat_map(|work| work.claims()).find(|claim| claims.contains(claim));
            if let Some(claim) = taken {
                let name = &part.name;
                return Some((CONFLICT, format!("{name}: {claim} is held by deployment {}", other.deployment)));
            }
        }
        None
    }

    /// The key of a new order. No two orders share one, also when a deployment is removed and comes again: whoever carries
    /// orders out answers one that he knows without doing anything.
    fn next_order(&mut self, placement: &Placement, part: &str) -> String {
        self.orders += 1;
        placement.order_key(part, self.orders)
    }

    /// Gives the order of a part, for the first time or after a restart.
    fn give_again(&mut self, key: &PlacementKey, placement: &Placement, at: usize) {
        let part = &placement.parts[at];
        let Some((order, undo)) = &part.order else { return };
        let work = if *undo { part.in_force() } else { part.wanted };
        let Some(work) = work.and_then(|work| self.works.get(&work)).cloned() else { return };
        let act = match undo {
            true => Act::Undo { work: work.as_ref().clone(), before: part.before.clone() },
            false => {
                let work = effective(&work, &part.before);
                let applied = part.applied.and_then(|applied| self.works.get(&applied));
                Act::Apply { back: back(&work, applied.map(AsRef::as_ref), &part.before), work }
            }
        };
        let device =
            self.devices.get(&placement.path).map_or_else(|| placement.device.clone(), |view| view.device.clone());
        let actor = format!("margo:{}", placement.deployment);
        self.begin(
            Running::Part(key.clone(), part.name.clone()),
            Job::Order(Order { key: order.clone(), device, actor, act }),
        );
    }

    /// The plant said what is in force: the order can be given.
    pub(super) fn prepared(&mut self, key: &PlacementKey, name: &str, before: Result<Before, Refusal>, now_ns: u64) {
        let Some(mut placement) = self.placements.remove(key) else { return };
        // An answer about hardware that was replaced meanwhile, or for a revision of before, is asked for again.
        let current = self.other_hardware(&placement).is_none()
            && placement
                .aligned
                .is_some_and(|aligned| self.records.get(&key.0).is_some_and(|record| record.wanted == Some(aligned)));
        if let Some(at) = placement.parts.iter().position(|part| part.name == name && part.needs_work())
            && current
            && !placement.leaving
        {
            match before {
                Ok(before) => {
                    let order = self.next_order(&placement, name);
                    let digest = placement.aligned;
                    let part = &mut placement.parts[at];
                    let is_first = part.in_force().is_none();
                    part.before = merged(std::mem::take(&mut part.before), before, is_first);
                    part.touched = part.wanted;
                    part.is_now(State::Installing);
                    part.order = Some((order, false));
                    placement.begun = digest.map(|digest| Begun { digest, version: self.head });
                    self.give_again(key, &placement, at);
                }
                Err(refusal) => self.refused(key, &mut placement.parts[at], &refusal, false, now_ns),
            }
            self.changed.insert(key.clone());
        }
        self.placements.insert(key.clone(), placement);
    }

    /// The plant answered an order.
    pub(super) fn answered(&mut self, key: &PlacementKey, name: &str, done: Result<(), Refusal>, now_ns: u64) {
        let Some(mut placement) = self.placements.remove(key) else { return };
        let (works, leaving) = (std::mem::take(&mut self.works), placement.leaving);
        if let Some(part) = placement.parts.iter_mut().find(|part| part.name == name)
            && let Some((_, undo)) = part.order.take()
        {
            match done {
                Ok(()) if undo => {
                    (part.applied, part.touched, part.before) = (None, None, Before::default());
                    part.is_now(if leaving || part.wanted.is_none() { State::Removed } else { State::Pending });
                    self.forget_retry(&Retry::Part(key.clone(), name.to_owned()));
                }
                Ok(()) => {
                    (part.applied, part.touched) = (part.wanted, None);
                    part.is_now(State::Installed);
                    keep_only_written(part, &works);
                    if let Some(Work::Compose(project)) =
                        part.applied.and_then(|work| works.get(&work)).map(AsRef::as_ref)
                        && let Some(view) = self.devices.get_mut(&key.1)
                    {
                        view.lost.remove(&project.owner);
                    }
                    self.forget_retry(&Retry::Part(key.clone(), name.to_owned()));
                }
                Err(refusal) => {
                    if refusal.untouched && !undo {
                        part.touched = None;
                        keep_only_written(part, &works);
                    }
                    self.refused(key, part, &refusal, undo, now_ns);
                }
            }
            self.changed.insert(key.clone());
        }
        self.works = works;
        self.placements.insert(key.clone(), placement);
    }

    fn refused(&mut self, key: &PlacementKey, part: &mut Part, refusal: &Refusal, undo: bool, now_ns: u64) {
        match (refusal.unreachable, undo) {
            (true, true) => {
                (part.state, part.error) = (State::Removing, Some(StatusError::unreachable(&self.scope.top)));
            }
            (true, false) => part.wait(StatusError::unreachable(&self.scope.top)),
            (false, false) if refusal.passing => part.wait(report::error(&key.1, &refusal.code, &refusal.message)),
            (false, _) => part.fail(report::error(&key.1, &refusal.code, &refusal.message)),
        }
        // An undo is tried again whatever it was: nobody can ask for it a second time.
        if refusal.unreachable || refusal.passing || undo {
            self.later(Retry::Part(key.clone(), part.name.clone()), now_ns);
        }
    }
}

/// What was there before the first revision, and of points that a later one adds, before that.
fn merged(old: Before, new: Before, is_first: bool) -> Before {
    if is_first {
        return new;
    }
    let mut values = new.values;
    values.extend(old.values);
    Before { values, token: old.token.or(new.token) }
}

/// A recipe with what an older revision wrote and this one does not, put back.
fn effective(work: &Arc<Work>, before: &Before) -> Work {
    match work.as_ref() {
        Work::Recipe { values } => {
            let dropped = before.values.iter().filter(|(point, _)| values.iter().all(|value| value.point != **point));
            let back = dropped.map(|(point, value)| PointValue { point: point.clone(), value: value.clone() });
            Work::Recipe { values: back.chain(values.iter().cloned()).collect() }
        }
        other => other.clone(),
    }
}

/// What is in force of the points that a recipe writes: of the revision before, or of before the first one.
fn back(work: &Work, applied: Option<&Work>, before: &Before) -> Before {
    let Work::Recipe { values } = work else { return Before::default() };
    let held = |point: &String| match applied {
        Some(Work::Recipe { values }) => values.iter().find(|value| value.point == *point).map(|value| &value.value),
        _ => None,
    };
    let value = |wanted: &PointValue| {
        let value = held(&wanted.point).or_else(|| before.values.get(&wanted.point))?;
        Some((wanted.point.clone(), value.clone()))
    };
    Before { values: values.iter().filter_map(value).collect(), token: None }
}

/// Points that are not written any more are not ours any more.
fn keep_only_written(part: &mut Part, works: &Works) {
    let Some(applied) = part.applied else {
        part.before = Before::default();
        return;
    };
    if let Some(Work::Recipe { values }) = works.get(&applied).map(AsRef::as_ref) {
        part.before.values.retain(|point, _| values.iter().any(|value| value.point == *point));
    }
}
