//! The configuration: `fieldgate.toml`, `devices/*.toml`, `profiles/*.toml` and lists of points.
//!
//! **Promise.** [`load`] either gives a configuration of which every value is legal and complete, or every problem in it
//! (not only the first), each with file, line, column, key, what is wrong and what to do. A key that is not known is
//! refused wherever it stands. Durations and sizes carry their units. Nothing is changed by a load that fails.
//!
//! **Form.** A file is parsed to a tree whose keys and values know their places; layers (defaults, profile, device) are
//! laid on each other; a [`reader`] takes keys out one by one into the types of [`checked`] and reports every key that
//! nobody took. Derived deserialisers are not used: they stop at the first problem and lose the place of a merged value.
//!
//! **Paths** are relative to the file they stand in. For a list the column of a place is the number of the cell.
//!
//! **Limits.** Files up to 16 MiB; ranges of values are in `docs/configuration.md`, which is tested against this code.
//!
//! **Must not** open sockets or ports, resolve names, create the data directory or change any file ([`starter`] alone
//! writes, and never over a file that is there).

pub mod checked;
mod csv_list;
mod device;
pub mod diff;
mod gateway;
mod into_broker;
mod into_store;
mod problem;
mod reader;
mod secret;
pub mod starter;
mod suggest;
pub mod summary;
mod tree;
mod units;
mod value;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use crate::security::Secret;
pub use checked::{Device, Gateway};
pub use diff::{Changes, diff};
pub use gateway::{LOCAL, SYSTEM_CA};
pub use into_broker::{IntoBrokerError, PLANT_SLOT, TlsContext};
pub use problem::{Place, Problem, Problems, Severity};
pub use summary::Summary;
pub use units::{format_duration, format_size, parse_duration, parse_size};

use crate::model::DeviceId;
use reader::{Context, Environment, Reader};

/// Name of the gateway's own file in a configuration directory.
pub const MAIN_FILE: &str = "fieldgate.toml";

/// A configuration that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The gateway's own file.
    pub main_file: PathBuf,
    /// Everything in it but the defaults of devices, which are part of the devices here.
    pub gateway: Gateway,
    /// Devices to run, in the order of their files' names.
    pub devices: Vec<Device>,
    /// Devices that say `enabled = false`.
    pub disabled: Vec<DeviceId>,
    /// Types for devices that no file declares, by the names of their profiles: each needs nothing but a place
    /// ([`Device::placed`]).
    pub types: BTreeMap<String, Device>,
    /// What a person should look at, sorted by place.
    pub warnings: Vec<Problem>,
    /// Every file and directory that was read or looked for, sorted: when none of them changes, neither does the
    /// configuration.
    pub files: Vec<PathBuf>,
}

/// Loads a configuration directory, or the gateway's file in it.
///
/// # Errors
/// Every problem of the configuration, when at least one of them is an error.
pub fn load(dir_or_file: &Path) -> Result<Loaded, Problems> {
    load_with(dir_or_file, &|name| std::env::var(name).ok())
}

/// The gateway's data directory, also when the configuration is refused: who looks at a running gateway, whose
/// configuration in force is an older one, needs no more. The files of its devices are not read: there may be thousands.
///
/// # Errors
/// As [`load`], when not even that can be told.
pub fn find_data_dir(dir_or_file: &Path) -> Result<PathBuf, Problems> {
    let main_file = if dir_or_file.is_dir() { dir_or_file.join(MAIN_FILE) } else { dir_or_file.to_owned() };
    let text = std::fs::read_to_string(&main_file).ok();
    let Some(main) = text.and_then(|text| text.parse::<toml::Table>().ok()) else {
        return load(dir_or_file).map(|loaded| loaded.gateway.identity.data_dir);
    };
    let dir = main_file.parent().unwrap_or(Path::new(""));
    let named = main.get("gateway").and_then(|gateway| gateway.get("data_dir")).and_then(toml::Value::as_str);
    Ok(named.map_or_else(|| dir.join("data"), |named| secret::without_parents(&dir.join(named.trim()))))
}

/// [`load`] with another source of environment variables.
///
/// # Errors
/// As [`load`].
pub fn load_with(dir_or_file: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    load_recording(dir_or_file, environment).map(|(loaded, _)| loaded)
}

/// Keys that the program knows, by kind of table (`store`, `device.modbus`, `point`, …).
pub type KnownKeys = BTreeMap<&'static str, BTreeSet<&'static str>>;

/// [`load_with`], and the keys that were looked for: for tests that hold the documentation and the examples against them.
///
/// # Errors
/// As [`load`].
pub fn load_recording(dir_or_file: &Path, environment: Environment<'_>) -> Result<(Loaded, KnownKeys), Problems> {
    let main_file = if dir_or_file.is_dir() { dir_or_file.join(MAIN_FILE) } else { dir_or_file.to_owned() };
    let dir = main_file.parent().unwrap_or(Path::new("")).to_owned();
    let context = Context::new(&main_file, environment);
    let read = read(&context, &main_file, &dir);
    let refused = context.errors() > 0;
    let (problems, files, known) = context.finish();
    match read {
        Some((gateway, devices)) if !refused => {
            let device::Devices { enabled, disabled, types } = devices;
            Ok((Loaded { main_file, gateway, devices: enabled, disabled, types, warnings: problems, files }, known))
        }
        _ => Err(Problems(problems)),
    }
}

fn read(context: &Context<'_>, main_file: &Path, dir: &Path) -> Option<(Gateway, device::Devices)> {
    if !main_file.is_file() {
        let start = if main_file.extension().is_some_and(|e| e == "toml") { dir } else { main_file };
        let text = format!("is not there; `fieldgate init {}` writes a configuration to start from", start.display());
        context.error(&Place::file(main_file), "", text);
        return None;
    }
    let main = device::read_toml(context, main_file);
    let defaults = main.as_ref().and_then(|main| match main.get("defaults").map(|item| &item.node) {
        Some(tree::Node::Table(table)) => Some(table),
        _ => None,
    });
    let devices = device::read_all(context, dir, defaults);
    let main = main.as_ref()?;
    let root = Reader::new(context, main, "fieldgate.toml", "");
    if root.has("defaults") && defaults.is_none() {
        root.error("defaults", "must be a table: write [defaults] on a line of its own");
    }
    let gateway = gateway::read(&root, main_file);
    device::firmware::check_broker(context, gateway.broker.is_some(), &devices.enabled);
    Some((gateway, devices))
}

#[cfg(test)]
mod tests;
