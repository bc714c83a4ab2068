//! Reads devices: `[defaults]` of the gateway, then the profile, then the device's own file, each laid on the one before.

mod address;
pub(super) mod firmware;
mod layers;
mod link;
mod management;
mod modbus;
mod point;
mod types;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::checked::{Device, Group};
use super::problem::Place;
use super::reader::{Context, Reader};
use super::secret::twice;
use super::tree::{Item, Node, Table};
use super::value::{boolean, cell_number, choice, duration, id, line, millis, number, unsigned};
use crate::model::{self, DeviceId, Tier};
use crate::pipeline::{BatchLimits, Deadband};
use crate::southbound::{self, DriverConfig};
use layers::Layers;
pub(super) use layers::read_toml;
use point::{CheckedPoint, When};

const DAY: u64 = 86_400_000;

/// Devices of a configuration: those to run, and those that are switched off.
pub(super) struct Devices {
    pub enabled: Vec<Device>,
    pub disabled: Vec<DeviceId>,
    /// For devices that no file declares, by the names of their profiles.
    pub types: BTreeMap<String, Device>,
}

/// Settings of a device that its points take when they have none of their own. All of them may stand in `[defaults]`.
pub(super) struct Common {
    rate: Duration,
    deadband: Deadband,
    heartbeat: Duration,
    on_change: bool,
    stale_after: Option<Duration>,
    batch: BatchLimits,
    tier: Tier,
    groups: BTreeMap<String, (Duration, Place)>,
}

/// Reads every file in `devices/`.
pub(super) fn read_all(context: &Context<'_>, dir: &Path, defaults: Option<&Table>) -> Devices {
    let empty = Table::empty(Place::file(dir));
    let defaults = defaults.unwrap_or(&empty);
    check_defaults(context, defaults);
    let mut layers = Layers::new(context, dir);
    let mut read = Vec::new();
    for file in layers::toml_files(context, &dir.join("devices")) {
        if let Some((device, link_place, enabled)) = read_device(context, &mut layers, defaults, &file) {
            read.push((device, link_place, enabled));
        }
    }
    let types = types::read_types(context, dir, defaults);
    layers.warn_unused(|name| types.contains_key(name));
    check_unique(context, &read);
    check_links(context, &read);
    let (enabled, disabled): (Vec<_>, Vec<_>) = read.into_iter().partition(|(_, _, enabled)| *enabled);
    Devices {
        types,
        enabled: enabled.into_iter().map(|(d, ..)| d).collect(),
        disabled: disabled.into_iter().map(|(d, ..)| d.model.id.clone()).collect(),
    }
}

/// `[defaults]` may hold what several devices can share, and nothing else.
fn check_defaults(context: &Context<'_>, defaults: &Table) {
    let reader = Reader::new(context, defaults, "defaults", "defaults");
    common(&reader);
    modbus::settings(&reader.section("modbus", "defaults.modbus"));
}

/// The device, the place of its link, and whether it is enabled.
fn read_device(
    context: &Context<'_>,
    layers: &mut Layers<'_>,
    defaults: &Table,
    file: &Path,
) -> Option<(Device, Place, bool)> {
    let own = layers::read_toml(context, file)?;
    read_table(context, layers, defaults, own, file)
}

/// The same of a table that stands, or could stand, in `file`.
fn read_table(
    context: &Context<'_>,
    layers: &mut Layers<'_>,
    defaults: &Table,
    own: Table,
    file: &Path,
) -> Option<(Device, Place, bool)> {
    let profile = layers.profile_of(&own);
    let mut table = defaults.clone();
    if let Some(profile) = &profile {
        table = table.overlaid(profile);
    }
    table = table.overlaid(&own);
    let reader = Reader::new(context, &table, "device", "");

    let enabled = reader.or("enabled", true, boolean);
    let description = reader.optional("description", line(1000)).unwrap_or_default();
    let common = common(&reader);
    let id = device_id(&reader, file);
    reader.has("profile");
    reader.has("points");
    let modbus = modbus::read(&reader, file);
    let mut managed = management::read(&reader, common.tier, profile_name(&own));
    let rows = layers.points(profile.as_deref(), &own);
    let points = checked_points(context, &rows, &common, &modbus);
    management::check(&reader, &mut managed, &points);
    let groups = groups(&points, &common);
    warn_unused_groups(&reader, &common, &groups);
    if rows.is_empty() {
        context.error(
            &Place::file(file),
            "points",
            "the device has no points; add [[points]], points = \"list.csv\" or a profile that has some",
        );
    }
    let link_place = modbus.link_place.clone();
    let link = modbus.link.as_ref()?;
    let device = model::Device {
        id: id?,
        description,
        protocol: link::protocol(link),
        address: format!("{} unit {}", link::written(link), modbus.unit),
        tier: common.tier,
        points: points.iter().map(|p| p.model.clone()).collect::<Vec<_>>().into(),
    };
    let checked = Device {
        model: Arc::new(device),
        file: file.to_owned(),
        groups,
        rules: points.iter().map(|p| p.rule.clone()).collect(),
        batch: common.batch,
        management: managed,
        driver: DriverConfig::Modbus(modbus.with_points(points.into_iter().map(|p| p.driver).collect())?),
    };
    Some((checked, link_place, enabled))
}

/// The name that was looked up before; whatever else stands there was refused then.
fn profile_name(own: &Table) -> Option<&str> {
    match &own.get("profile")?.node {
        Node::Text(name) => Some(name),
        _ => None,
    }
}

fn common(reader: &Reader<'_>) -> Common {
    let groups = reader.names("groups").into_iter().filter_map(|(name, place, item)| {
        let Node::Table(table) = &item.node else {
            reader.context.error(
                &item.place,
                reader.key("groups"),
                format!("write [groups.{name}] with rate = \"1 s\""),
            );
            return None;
        };
        let group = Reader::new(reader.context, table, "group", &reader.key(&format!("groups.{name}")));
        Some((name.to_owned(), (group.required("rate", "rate = \"1 s\"", rate)?, place.clone())))
    });
    Common {
        rate: reader.or("rate", Duration::from_secs(1), rate),
        deadband: reader.or("deadband", Deadband::None, deadband),
        heartbeat: reader.or("heartbeat", Duration::from_secs(60), heartbeat),
        on_change: reader.or("on_change", true, boolean),
        stale_after: reader.optional("stale_after", millis(100, 7 * DAY)),
        batch: BatchLimits {
            max_samples: reader.or("batch_samples", 1_000, unsigned(1..=10_000)),
            max_delay: reader.or("batch_delay", Duration::ZERO, millis(0, 60_000)),
        },
        tier: reader.or("tier", Tier::One, tier),
        groups: groups.collect(),
    }
}

fn tier(item: &Item) -> Result<Tier, String> {
    Ok(if unsigned::<u8>(1..=2)(item)? == 1 { Tier::One } else { Tier::Two })
}

/// Time from scan to scan.
pub(super) fn rate(item: &Item) -> Result<Duration, String> {
    duration(southbound::FASTEST..=southbound::SLOWEST)(item)
}

/// Longest silence of an unchanged value.
pub(super) fn heartbeat(item: &Item) -> Result<Duration, String> {
    millis(100, 7 * DAY)(item)
}

/// `0.5`, `"0.5"` or `"2 %"`.
pub(super) fn deadband(item: &Item) -> Result<Deadband, String> {
    let (value, percent) = match &item.node {
        Node::Text(text) | Node::Cell(text) => match text.trim().strip_suffix('%') {
            Some(percent) => (cell_number(percent)?, true),
            None => (cell_number(text)?, false),
        },
        _ => (number(item)?, false),
    };
    match (value, percent) {
        (v, _) if !v.is_finite() || v < 0.0 => Err(format!("is {v}; a deadband is at least 0")),
        (v, true) if v > 100.0 => Err(format!("is {v} %; a percentage is at most 100")),
        (0.0, _) => Ok(Deadband::None),
        (v, true) => Ok(Deadband::Percent(v)),
        (v, false) => Ok(Deadband::Absolute(v)),
    }
}

/// The id of a device is that of its file when it does not say.
fn device_id(reader: &Reader<'_>, file: &Path) -> Option<DeviceId> {
    if reader.has("id") {
        return reader.optional("id", id);
    }
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    match DeviceId::new(stem) {
        Ok(id) => Some(id),
        Err(e) => {
            reader.context.error(
                &Place::file(file),
                "id",
                format!("is missing, and the name of the file cannot serve: {e}; write id = \"pump-1\""),
            );
            None
        }
    }
}

fn checked_points(
    context: &Context<'_>,
    rows: &[Table],
    common: &Common,
    modbus: &modbus::Settings,
) -> Vec<CheckedPoint> {
    let named = |(i, row): (usize, &Table)| match row.get("id").map(|item| &item.node) {
        Some(Node::Text(id) | Node::Cell(id)) if !id.is_empty() => format!("points.{id}"),
        _ => format!("points[{}]", i + 1),
    };
    let read = |(i, row)| point::read(&Reader::new(context, row, "point", &named((i, row))), common, modbus);
    rows.iter().enumerate().filter_map(read).collect()
}

/// Points by rate: one group per name, and one per rate of points without a group.
fn groups(points: &[CheckedPoint], common: &Common) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let (name, every) = match &point.when {
            When::Never => continue,
            When::Every(every) => (None, *every),
            When::Group(name) => (Some(name.clone()), common.groups.get(name).map_or(common.rate, |(every, _)| *every)),
        };
        match groups.iter_mut().find(|g| g.name == name && g.every == every) {
            Some(group) => group.points.push(index as u32),
            None => groups.push(Group { name, every, points: vec![index as u32] }),
        }
    }
    groups
}

fn warn_unused_groups(reader: &Reader<'_>, common: &Common, used: &[Group]) {
    for (name, (_, place)) in &common.groups {
        if place.file == reader.table.place.file && !used.iter().any(|g| g.name.as_deref() == Some(name)) {
            reader.context.warn(
                place,
                reader.key(&format!("groups.{name}")),
                format!("no point says group = \"{name}\""),
            );
        }
    }
}

fn check_unique(context: &Context<'_>, devices: &[(Device, Place, bool)]) {
    let mut seen: BTreeMap<&DeviceId, &Path> = BTreeMap::new();
    for (device, ..) in devices {
        if let Some(first) = seen.insert(&device.model.id, &device.file) {
            context.error(
                &Place::file(&device.file),
                "id",
                twice("device", device.model.id.as_str(), &Place::file(first)),
            );
        }
    }
}

/// Devices that name the same socket or port share one link, so they must agree on how it is treated.
fn check_links(context: &Context<'_>, devices: &[(Device, Place, bool)]) {
    let mut seen: BTreeMap<String, (&southbound::modbus::Config, &Place)> = BTreeMap::new();
    for (device, place, _) in devices {
        let DriverConfig::Modbus(modbus) = &device.driver;
        let (first, first_place) = *seen.entry(link::medium(&modbus.link)).or_insert((modbus, place));
        if let Some(difference) = link::difference(first, modbus) {
            let text = format!(
                "shares its link with the device at {first_place}, but {difference}; make them equal ([defaults.modbus] or a profile can hold them once)"
            );
            context.error(place, "modbus.link", text);
        }
    }
}

/// The words for [`model::Access`].
pub(super) fn access(item: &Item) -> Result<model::Access, String> {
    use model::Access::{Read, ReadWrite, Write};
    choice(&[("read", Read), ("read-write", ReadWrite), ("write", Write)])(item)
}
