//! Desired configuration laid on a device of the files.
//!
//! A key of the overlay takes the place of the file's; what it does not name stays. `rate` of the device holds for all points
//! outside named groups, a point's own `rate` takes it out of its group. For writes an overlay can only narrow: it was
//! checked so when it was accepted, and what no longer fits the files is left out as a whole.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Device;
use crate::config::checked::Group;
use crate::management::desired::{DeadbandOverlay, DeviceOverlay, LimitsOverlay, PointOverlay};
use crate::model::{Access, Limits, Point};
use crate::pipeline::{Deadband, PointRule};

/// A value that missed three scans, and at least 5 s, is stale.
const LEAST_STALE: Duration = Duration::from_secs(5);

/// The device as it shall run.
pub fn overlaid(file: &Device, overlay: &DeviceOverlay) -> Device {
    if *overlay == DeviceOverlay::default() {
        return file.clone();
    }
    let untouched = PointOverlay::default();
    let of = |index: usize| overlay.points.get(file.model.points[index].id.as_str()).unwrap_or(&untouched);
    let points: Vec<Point> = file.model.points.iter().enumerate().map(|(i, p)| point(p, of(i))).collect();
    let whens: Vec<When> = (0..points.len()).map(|i| when(file, i, &points[i], of(i), overlay)).collect();
    let rules = file.rules.iter().enumerate().map(|(i, r)| rule(r, of(i), overlay, whens[i].every())).collect();
    // Most overlays leave the points alone: everyone who knows the device then sees that it is the same.
    let model = match *points == *file.model.points {
        true => file.model.clone(),
        false => Arc::new(crate::model::Device { points: points.into(), ..(*file.model).clone() }),
    };
    Device { model, groups: groups(&whens), rules, ..file.clone() }
}

/// When a point is read, and in which named group.
#[derive(Debug, Clone, PartialEq)]
enum When {
    Never,
    Every(Option<String>, Duration),
}

impl When {
    const fn every(&self) -> Option<Duration> {
        match self {
            When::Never => None,
            When::Every(_, every) => Some(*every),
        }
    }
}

fn when(file: &Device, index: usize, point: &Point, own: &PointOverlay, overlay: &DeviceOverlay) -> When {
    let group = file.groups.iter().find(|g| g.points.contains(&(index as u32)));
    let Some(group) = group.filter(|_| own.enabled != Some(false) && point.access != Access::Write) else {
        return When::Never;
    };
    match (own.rate, &group.name) {
        (Some(rate), _) => When::Every(None, rate),
        (None, Some(name)) => When::Every(Some(name.clone()), overlay.groups.get(name).copied().unwrap_or(group.every)),
        (None, None) => When::Every(None, overlay.rate.unwrap_or(group.every)),
    }
}

fn groups(whens: &[When]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, when) in whens.iter().enumerate() {
        let When::Every(name, every) = when else { continue };
        match groups.iter_mut().find(|g| g.name == *name && g.every == *every) {
            Some(group) => group.points.push(index as u32),
            None => groups.push(Group { name: name.clone(), every: *every, points: vec![index as u32] }),
        }
    }
    groups
}

fn point(file: &Point, own: &PointOverlay) -> Point {
    Point {
        access: own.access.unwrap_or(file.access),
        limits: own.limits.map_or(file.limits, |limits| narrowed(file.limits, limits)),
        ..file.clone()
    }
}

fn narrowed(file: Option<Limits>, wanted: LimitsOverlay) -> Option<Limits> {
    let (low, high) = file.map_or((f64::NEG_INFINITY, f64::INFINITY), |l| (l.min, l.max));
    let limits = Limits { min: wanted.min.unwrap_or(low).max(low), max: wanted.max.unwrap_or(high).min(high) };
    (limits.min.is_finite() || limits.max.is_finite()).then_some(limits)
}

fn rule(file: &PointRule, own: &PointOverlay, overlay: &DeviceOverlay, every: Option<Duration>) -> PointRule {
    let deadband = own.deadband.or(overlay.deadband).map_or(file.deadband, |wanted| match wanted {
        DeadbandOverlay::Absolute(0.0) | DeadbandOverlay::Percent(0.0) => Deadband::None,
        DeadbandOverlay::Absolute(by) => Deadband::Absolute(by),
        DeadbandOverlay::Percent(by) => Deadband::Percent(by),
    });
    // A point that is read less often must not look stale between two scans.
    let slow = every.map(|every| (every * 3).max(LEAST_STALE));
    let stale = overlay.stale_after.or_else(|| file.stale_after.map(|file| slow.map_or(file, |slow| slow.max(file))));
    PointRule {
        deadband,
        heartbeat: own.heartbeat.or(overlay.heartbeat).or(file.heartbeat),
        on_change: own.on_change.or(overlay.on_change).unwrap_or(file.on_change),
        stale_after: stale,
        ..file.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::app::management::declare::profile;
    use crate::management::desired::parse_device;

    fn device() -> Device {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("devices")).unwrap();
        fs::write(dir.path().join("fieldgate.toml"), "[gateway]\nid = \"g\"\n").unwrap();
        let text = "rate = \"1 s\"\n[groups.fast]\nrate = \"200 ms\"\n[modbus]\nlink = \"tcp://h\"\n\
            [[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\ndeadband = 0.5\n\
            [[points]]\nid = \"b\"\ntable = \"holding\"\naddress = 2\ngroup = \"fast\"\n\
            [[points]]\nid = \"c\"\ntable = \"holding\"\naddress = 3\naccess = \"read-write\"\nmin = 0\nmax = 10\n";
        fs::write(dir.path().join("devices/pump.toml"), text).unwrap();
        crate::config::load(dir.path()).unwrap_or_else(|p| panic!("{p}")).devices.remove(0)
    }

    fn with(settings: serde_json::Value) -> Device {
        let device = device();
        let overlay = parse_device(&settings, &profile(&device)).unwrap();
        overlaid(&device, &overlay)
    }

    #[test]
    fn an_empty_overlay_changes_nothing() {
        let file = Device { file: "pump.toml".into(), ..device() };
        assert_eq!(Device { file: file.file.clone(), ..with(json!({})) }, file);
        assert_eq!(Device { file: file.file.clone(), ..with(json!({"time": {"set": true}})) }, file);
    }

    #[test]
    fn rates_of_device_group_and_point() {
        let got =
            with(json!({"rate": "5 s", "groups": {"fast": {"rate": "300 ms"}}, "points": {"c": {"rate": "7 s"}}}));
        let groups: Vec<_> =
            got.groups.iter().map(|g| (g.name.as_deref(), g.every.as_millis(), g.points.clone())).collect();
        assert_eq!(groups, [(None, 5_000, vec![0]), (Some("fast"), 300, vec![1]), (None, 7_000, vec![2])]);
        assert_eq!(got.rules[0].stale_after, Some(Duration::from_secs(15)), "three scans");
        assert!(got.southbound().check().is_ok());
        assert_eq!(with(json!({"points": {"b": {"enabled": false}}})).groups.len(), 1);
    }

    #[test]
    fn filters_access_and_limits() {
        let got = with(json!({
            "deadband": "2 %", "heartbeat": "10 s", "stale_after": "1 min",
            "points": {"a": {"deadband": 0, "on_change": false}, "c": {"limits": {"max": 4}}},
        }));
        assert_eq!((got.rules[0].deadband, got.rules[1].deadband), (Deadband::None, Deadband::Percent(2.0)));
        assert!(!got.rules[0].on_change && got.rules[1].on_change);
        assert_eq!(got.rules[2].heartbeat, Some(Duration::from_secs(10)));
        assert_eq!(got.rules[2].stale_after, Some(Duration::from_secs(60)));
        assert_eq!(got.model.points[2].limits, Some(Limits { min: 0.0, max: 4.0 }));
        assert_eq!(with(json!({"points": {"c": {"access": "read"}}})).model.points[2].access, Access::Read);
        let written = with(json!({"points": {"c": {"access": "write"}}}));
        assert!(written.groups.iter().all(|g| !g.points.contains(&2)), "what is only written is not read");
    }
}
