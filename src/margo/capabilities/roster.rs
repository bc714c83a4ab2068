//! What the fleet manager knows of us, and the next thing to tell it.

use std::collections::BTreeMap;

use super::DeviceCapabilities;
use crate::margo::storage::{Change, StorageError, read};
use crate::margo::words::{DevicePath, Digest};

const KEY: &str = "reported/";

/// One thing to do at the fleet manager.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Report a device; `first` when none was ever confirmed.
    Report {
        /// What.
        device: Box<DeviceCapabilities>,
        /// For the older interface, which creates and updates by different methods.
        first: bool,
    },
    /// Take one back.
    Forget(DevicePath),
}

/// What the fleet manager knows, or may know, is durable; what is wanted comes from the plant each time.
#[derive(Debug, Default)]
pub struct Roster {
    /// What was confirmed last; `None` while no answer to the first report was heard.
    known: BTreeMap<DevicePath, Option<Digest>>,
    /// Whose first report is being sent for the first time.
    first: Option<DevicePath>,
    wanted: BTreeMap<DevicePath, (DeviceCapabilities, Digest)>,
    /// Refused by the fleet manager as they are: not sent again until they change.
    refused: BTreeMap<DevicePath, Digest>,
}

impl Roster {
    /// The storage's prefix.
    pub const PREFIX: &'static str = KEY;

    /// Reads what was reported before the restart.
    ///
    /// # Errors
    /// [`StorageError::Damaged`].
    pub fn load(entries: &[(String, bytes::Bytes)]) -> Result<Self, StorageError> {
        let mut roster = Self::default();
        for (key, value) in entries {
            let path = key.strip_prefix(KEY).and_then(|path| DevicePath::new(path).ok());
            let path = path.ok_or_else(|| StorageError::Damaged { what: key.clone(), reason: "no path".to_owned() })?;
            roster.known.insert(path, read(key, value)?);
        }
        Ok(roster)
    }

    /// What is there now.
    pub fn want(&mut self, devices: Vec<DeviceCapabilities>) {
        let digested = |device: DeviceCapabilities| {
            let digest = Digest::of(device.to_json().to_string().as_bytes());
            (device.id.clone(), (device, digest))
        };
        self.wanted = devices.into_iter().map(digested).collect();
        let wanted = &self.wanted;
        self.refused.retain(|path, digest| wanted.get(path).is_some_and(|(_, now)| now == digest));
    }

    /// The next thing to do; `None` when both sides agree. Devices that are gone come first, children before parents; then
    /// reports, parents before children. A child whose parent was refused waits.
    pub fn next(&self) -> Option<Act> {
        let gone = self.known.keys().filter(|path| !self.wanted.contains_key(*path));
        if let Some(path) = gone.max_by_key(|path| path.depth()) {
            return Some(Act::Forget(path.clone()));
        }
        let due = |path: &DevicePath, digest: &Digest| {
            self.confirmed(path) != Some(digest) && self.refused.get(path) != Some(digest)
        };
        let parent_known = |path: &DevicePath| match path.parent() {
            Some(parent) if self.wanted.contains_key(&parent) => self.confirmed(&parent).is_some(),
            _ => true,
        };
        let waiting = self.wanted.iter().filter(|(path, (_, digest))| due(path, digest) && parent_known(path));
        waiting.min_by_key(|(path, _)| path.depth()).map(|(path, (device, _))| Act::Report {
            device: Box::new(device.clone()),
            first: self.confirmed(path).is_none(),
        })
    }

    fn confirmed(&self, path: &DevicePath) -> Option<&Digest> {
        self.known.get(path).and_then(Option::as_ref)
    }

    /// Whether the fleet manager knows of a device of ours, or may know.
    pub fn is_known(&self) -> bool {
        !self.known.is_empty()
    }

    /// How many it knows of, or may know.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// How many devices are confirmed as they are now, and how many there are.
    pub fn progress(&self) -> (usize, usize) {
        let confirmed =
            |(path, (_, digest)): &(&DevicePath, &(DeviceCapabilities, Digest))| self.confirmed(path) == Some(digest);
        (self.wanted.iter().filter(confirmed).count(), self.wanted.len())
    }

    /// It is about to be sent. Gives what to make durable before: from a first report on the fleet manager may know the
    /// device, whether its answer arrives or not, and it is taken back when it leaves.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when it cannot be written as JSON.
    pub fn asked(&mut self, act: &Act) -> Result<Option<Change>, StorageError> {
        self.first = None;
        let Act::Report { device, .. } = act else { return Ok(None) };
        if self.known.contains_key(&device.id) {
            return Ok(None);
        }
        self.known.insert(device.id.clone(), None);
        self.first = Some(device.id.clone());
        Change::put(format!("{KEY}{}", device.id), &None::<Digest>).map(Some)
    }

    /// What was asked last had no effect: nobody listened, or it was refused.
    pub fn without_effect(&mut self) -> Option<Change> {
        let path = self.first.take()?;
        Some(self.drop_known(&path))
    }

    fn drop_known(&mut self, path: &DevicePath) -> Change {
        self.known.remove(path);
        Change::Delete(format!("{KEY}{path}"))
    }

    /// The fleet manager confirmed. Gives what to make durable.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when it cannot be written as JSON.
    pub fn done(&mut self, act: &Act) -> Result<Change, StorageError> {
        match act {
            Act::Report { device, .. } => {
                let digest = Digest::of(device.to_json().to_string().as_bytes());
                self.known.insert(device.id.clone(), Some(digest));
                Change::put(format!("{KEY}{}", device.id), &digest)
            }
            Act::Forget(path) => Ok(self.drop_known(path)),
        }
    }

    /// The fleet manager will not have it as it is.
    pub fn refuse(&mut self, act: &Act) -> Option<Change> {
        match act {
            Act::Report { device, .. } => {
                let digest = Digest::of(device.to_json().to_string().as_bytes());
                self.refused.insert(device.id.clone(), digest);
                self.without_effect()
            }
            // It cannot be taken back: it counts as gone, or the roster would ask for ever.
            Act::Forget(path) => Some(self.drop_known(path)),
        }
    }

    /// The fleet manager does not know what we thought it knows: the tree above `path` is reported anew.
    pub fn parent_missing(&mut self, path: &DevicePath) -> Vec<Change> {
        let lost: Vec<DevicePath> = self.known.keys().filter(|known| path.is_below(known)).cloned().collect();
        lost.iter().map(|known| self.drop_known(known)).collect()
    }

    /// Forgets every confirmation: another fleet manager, or another client id.
    pub fn forget_all(&mut self) -> Vec<Change> {
        self.refused.clear();
        let all = std::mem::take(&mut self.known);
        all.into_keys().map(|path| Change::Delete(format!("{KEY}{path}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::device;
    use super::*;

    fn said(act: &Act) -> String {
        match act {
            Act::Report { device, first } => format!("{}{}", if *first { "+" } else { "=" }, device.id),
            Act::Forget(path) => format!("-{path}"),
        }
    }

    fn run(roster: &mut Roster) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(act) = roster.next() {
            roster.done(&act).unwrap();
            all.push(said(&act));
        }
        all
    }

    #[test]
    fn the_parent_comes_before_its_children_and_leaves_after_them() {
        let mut roster = Roster::default();
        roster.want(["gw/line/a", "gw/line", "gw", "gw/b"].map(device).into());
        assert_eq!(run(&mut roster), ["+gw", "+gw/b", "+gw/line", "+gw/line/a"]);
        roster.want(Vec::new());
        let gone = run(&mut roster);
        assert_eq!(gone[0], "-gw/line/a");
        assert_eq!(gone.last().unwrap(), "-gw");
    }

    #[test]
    fn a_change_is_reported_and_what_did_not_change_is_not() {
        let mut roster = Roster::default();
        roster.want(vec![device("gw"), device("gw/a")]);
        run(&mut roster);
        roster.want(vec![device("gw"), device("gw/a")]);
        assert_eq!(roster.next(), None);
        roster.want(vec![device("gw"), DeviceCapabilities { serial: "4712".to_owned(), ..device("gw/a") }]);
        assert_eq!(run(&mut roster), ["=gw/a"]);
        roster.want(vec![device("gw")]);
        assert_eq!(run(&mut roster), ["-gw/a"], "a child that goes away is deleted");
    }

    #[test]
    fn what_was_confirmed_survives_a_restart() {
        let mut roster = Roster::default();
        roster.want(vec![device("gw"), device("gw/a")]);
        let act = roster.next().unwrap();
        let Change::Put(key, value) = roster.done(&act).unwrap() else { panic!() };
        let mut again = Roster::load(&[(key, value)]).unwrap();
        again.want(vec![device("gw"), device("gw/a")]);
        assert_eq!(run(&mut again), ["+gw/a"]);
    }

    #[test]
    fn a_device_whose_report_was_sent_is_taken_back_even_if_no_answer_was_heard() {
        let mut roster = Roster::default();
        roster.want(vec![device("gw")]);
        let act = roster.next().unwrap();
        let Some(Change::Put(key, value)) = roster.asked(&act).unwrap() else { panic!() };
        assert_eq!(roster.asked(&act).unwrap(), None, "once is enough");
        // The answer is lost with the process; the report is a first one until it is confirmed.
        let mut again = Roster::load(&[(key.clone(), value)]).unwrap();
        assert_eq!(again.progress(), (0, 0));
        again.want(vec![device("gw")]);
        let repeated = again.next().unwrap();
        assert_eq!(said(&repeated), "+gw");
        assert_eq!(again.asked(&repeated).unwrap(), None);
        assert_eq!(again.without_effect(), None, "an earlier one may have had an effect");
        again.want(Vec::new());
        assert_eq!(run(&mut again), ["-gw"]);
        // Nobody listened to the only one: there is nothing to take back.
        roster = Roster::default();
        roster.want(vec![device("gw")]);
        roster.asked(&act).unwrap();
        assert_eq!(roster.without_effect(), Some(Change::Delete(key)));
        roster.want(Vec::new());
        assert_eq!(roster.next(), None);
    }

    #[test]
    fn a_child_before_its_parent_reports_the_parent_again() {
        let mut roster = Roster::default();
        roster.want(vec![device("gw"), device("gw/a")]);
        let act = roster.next().unwrap();
        roster.done(&act).unwrap();
        // The fleet manager lost the gateway.
        assert_eq!(roster.parent_missing(&DevicePath::new("gw/a").unwrap()).len(), 1);
        assert_eq!(run(&mut roster), ["+gw", "+gw/a"]);
    }

    #[test]
    fn what_is_refused_is_not_sent_again_until_it_changes() {
        let mut roster = Roster::default();
        roster.want(vec![device("gw"), device("gw/a")]);
        let act = roster.next().unwrap();
        assert_eq!(roster.refuse(&act), None);
        assert_eq!(roster.next(), None, "a child does not come before its parent");
        roster.want(vec![DeviceCapabilities { vendor: "B".to_owned(), ..device("gw") }, device("gw/a")]);
        assert_eq!(run(&mut roster), ["+gw", "+gw/a"]);
    }

    #[test]
    fn a_thousand_children_are_reported_once_each() {
        let mut roster = Roster::default();
        let all: Vec<_> = (0..1_000).map(|i| device(&format!("gw/d{i}"))).chain([device("gw")]).collect();
        roster.want(all);
        let told = run(&mut roster);
        assert_eq!((told.len(), told[0].as_str()), (1_001, "+gw"));
        assert_eq!(roster.progress(), (1_001, 1_001));
    }
}
