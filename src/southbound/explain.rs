//! The read plan of a configuration, told before anything is sent: requests, rates, and what they ask of each link.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::{DeviceId, PointId};

use super::{DeviceConfig, DriverConfig, LinkKey};

/// The plan of all links.
#[derive(Debug, Clone, PartialEq)]
pub struct Explain {
    /// By name of the link.
    pub links: Vec<LinkPlan>,
}

/// What will happen on one physical link.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkPlan {
    /// The link.
    pub link: String,
    /// The devices on it.
    pub devices: Vec<DevicePlan>,
    /// What the times are based on.
    pub basis: String,
}

/// What will be asked of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct DevicePlan {
    /// The device.
    pub device: DeviceId,
    /// One for each rate group.
    pub groups: Vec<GroupPlan>,
}

/// One poll cycle.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupPlan {
    /// Poll interval.
    pub every: Duration,
    /// Requests of one cycle.
    pub requests: Vec<PlannedRequest>,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRequest {
    /// The protocol's name of the operation, such as `FC 3`.
    pub function: String,
    /// The table or area.
    pub area: &'static str,
    /// First item, as it goes over the wire.
    pub first: u32,
    /// Items read.
    pub count: u32,
    /// Items read that no point wants.
    pub wasted: u32,
    /// The points it serves.
    pub points: Vec<PointId>,
    /// Time that it occupies the link.
    pub time: Duration,
}

/// Plans `devices` as a start would. `round_trip` gives the measured mean round trip of a device, if there is one.
pub fn explain(devices: &[DeviceConfig], round_trip: impl Fn(&DeviceId) -> Option<Duration>) -> Explain {
    let mut links: BTreeMap<LinkKey, LinkPlan> = BTreeMap::new();
    for device in devices {
        let (groups, basis) = match &device.driver {
            #[cfg(feature = "modbus")]
            DriverConfig::Modbus(config) => {
                super::modbus::explain::groups(device, config, round_trip(&device.device.id))
            }
        };
        let key = device.link();
        let link = links.entry(key.clone()).or_insert_with(|| LinkPlan { link: key.0, devices: Vec::new(), basis });
        link.devices.push(DevicePlan { device: device.device.id.clone(), groups });
    }
    Explain { links: links.into_values().collect() }
}

impl GroupPlan {
    /// Requests a second.
    pub fn requests_per_second(&self) -> f64 {
        self.requests.len() as f64 / self.every.as_secs_f64()
    }

    /// Points read in a cycle.
    pub fn points(&self) -> usize {
        self.requests.iter().map(|request| request.points.len()).sum()
    }

    /// Share of the link's time, 1 being all of it.
    pub fn load(&self) -> f64 {
        let cycle: Duration = self.requests.iter().map(|request| request.time).sum();
        cycle.as_secs_f64() / self.every.as_secs_f64()
    }
}

impl LinkPlan {
    fn groups(&self) -> impl Iterator<Item = &GroupPlan> {
        self.devices.iter().flat_map(|device| &device.groups)
    }

    /// Requests a second.
    pub fn requests_per_second(&self) -> f64 {
        self.groups().map(GroupPlan::requests_per_second).sum()
    }

    /// Share of the link's time, 1 being all of it. Above about 0.8 cycles will be left out now and then.
    pub fn load(&self) -> f64 {
        self.groups().map(GroupPlan::load).sum()
    }
}

impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, link) in self.links.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            link.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for LinkPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points: usize = self.groups().map(GroupPlan::points).sum();
        let (requests, load) = (self.requests_per_second(), self.load() * 100.0);
        writeln!(f, "{}", self.link)?;
        writeln!(
            f,
            "  {} devices, {points} points, {requests:.1} requests/s, {load:.0} % of the link ({})",
            self.devices.len(),
            self.basis
        )?;
        if load > 100.0 {
            writeln!(f, "  ! more than the link can carry: cycles will be left out. Poll slower, or use fewer points")?;
        } else if load > 80.0 {
            writeln!(f, "  ! close to what the link can carry: cycles will be left out now and then")?;
        }
        writeln!(
            f,
            "  {:<20} {:>8}  {:<6} {:<9} {:>6} {:>6} {:>7} {:>7} {:>10}",
            "device", "every", "call", "table", "first", "count", "points", "wasted", "time"
        )?;
        for device in &self.devices {
            for group in &device.groups {
                for request in &group.requests {
                    row(f, device, group, request)?;
                }
            }
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, device: &DevicePlan, group: &GroupPlan, request: &PlannedRequest) -> fmt::Result {
    writeln!(
        f,
        "  {:<20} {:>8}  {:<6} {:<9} {:>6} {:>6} {:>7} {:>7} {:>10}",
        device.device.as_str(),
        format!("{:?}", group.every),
        request.function,
        request.area,
        request.first,
        request.count,
        request.points.len(),
        request.wasted,
        format!("{:.1} ms", request.time.as_secs_f64() * 1e3)
    )
}
