//! Finds files, reads each once, and lays the points of a device on those of its profile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::csv_list::parse_csv;
use crate::config::problem::Place;
use crate::config::reader::Context;
use crate::config::secret::{path, twice};
use crate::config::suggest;
use crate::config::tree::{Item, Node, Table, parse_toml};
use crate::config::value;

/// Largest file that is read; a larger one is no configuration.
const MAX_FILE: u64 = 16 << 20;

/// All `*.toml` in a directory, sorted by name; hidden files are left out. The directory may be absent.
pub(super) fn toml_files(context: &Context<'_>, dir: &Path) -> Vec<PathBuf> {
    context.files.borrow_mut().insert(dir.to_owned());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            context.error(&Place::file(dir), "", format!("cannot be listed: {e}"));
            return Vec::new();
        }
    };
    let visible = |p: &PathBuf| {
        p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(".toml") && !n.starts_with('.'))
    };
    let mut files: Vec<_> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(visible).collect();
    files.sort();
    files
}

/// The octets of a file; a problem when it cannot be read.
fn read_file(context: &Context<'_>, file: &Path) -> Option<Vec<u8>> {
    context.files.borrow_mut().insert(file.to_owned());
    let size = std::fs::metadata(file).map(|m| m.len());
    let text = match size {
        Ok(size) if size > MAX_FILE => format!("has {size} octets; at most {MAX_FILE} are read"),
        Ok(_) => match std::fs::read(file) {
            Ok(octets) => return Some(octets),
            Err(e) => format!("cannot be read: {e}"),
        },
        Err(e) => format!("cannot be read: {e}"),
    };
    context.error(&Place::file(file), "", text);
    None
}

/// A TOML file as a table; every syntax error becomes a problem.
pub(in crate::config) fn read_toml(context: &Context<'_>, file: &Path) -> Option<Table> {
    let octets = read_file(context, file)?;
    let Ok(text) = std::str::from_utf8(&octets) else {
        context.error(&Place::file(file), "", "is not UTF-8");
        return None;
    };
    match parse_toml(file, text) {
        Ok(table) => Some(table),
        Err(errors) => {
            errors.into_iter().for_each(|(place, text)| context.error(&place, "", text));
            None
        }
    }
}

/// Profiles and lists, each read once.
pub(super) struct Layers<'a> {
    context: &'a Context<'a>,
    profiles_dir: PathBuf,
    /// `None` for a profile that could not be read.
    profiles: BTreeMap<String, Option<Arc<Table>>>,
    lists: BTreeMap<PathBuf, Arc<Vec<Table>>>,
}

impl<'a> Layers<'a> {
    pub fn new(context: &'a Context<'a>, dir: &Path) -> Self {
        Self { context, profiles_dir: dir.join("profiles"), profiles: BTreeMap::new(), lists: BTreeMap::new() }
    }

    /// The profile that a device names.
    pub fn profile_of(&mut self, device: &Table) -> Option<Arc<Table>> {
        let item = device.get("profile")?;
        let name = match value::line(64)(item) {
            Ok(name) if name.chars().all(crate::model::is_unreserved) => name,
            Ok(name) => {
                self.context.error(
                    &item.place,
                    "profile",
                    format!("\"{name}\" is no name of a profile; write the file's name without .toml"),
                );
                return None;
            }
            Err(text) => {
                self.context.error(&item.place, "profile", text);
                return None;
            }
        };
        if !self.profiles.contains_key(&name) {
            let profile = self.read_profile(&name, item);
            self.profiles.insert(name.clone(), profile);
        }
        self.profiles.get(&name).cloned().flatten()
    }

    fn read_profile(&self, name: &str, asked: &Item) -> Option<Arc<Table>> {
        let file = self.profiles_dir.join(format!("{name}.toml"));
        if !file.is_file() {
            let known = toml_files(self.context, &self.profiles_dir);
            let known: Vec<_> = known.iter().filter_map(|p| p.file_stem()?.to_str()).collect();
            let meant = suggest::nearest(name, known.iter().copied()).map_or_else(
                || format!("known: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") }),
                |near| format!("did you mean \"{near}\"?"),
            );
            self.context.error(&asked.place, "profile", format!("there is no {}; {meant}", file.display()));
            return None;
        }
        let profile = read_toml(self.context, &file)?;
        for (key, why) in [
            ("id", "belongs to a device"),
            ("profile", "cannot name another profile"),
            ("enabled", "belongs to a device"),
        ] {
            if let Some(entry) = profile.entries.get(key) {
                self.context.error(&entry.key_place, key, format!("`{key}` {why}; remove it from the profile"));
            }
        }
        Some(Arc::new(profile))
    }

    /// Profiles that no device names and that are no types are parsed all the same, so that a mistake shows before it is
    /// needed.
    pub fn warn_unused(&self, is_type: impl Fn(&str) -> bool) {
        for file in toml_files(self.context, &self.profiles_dir) {
            let name = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            if !self.profiles.contains_key(name) && !is_type(name) && read_toml(self.context, &file).is_some() {
                self.context.warn(
                    &Place::file(&file),
                    "",
                    format!("no device says profile = \"{name}\", and it is not whole enough to be a type for devices without a file; its keys are not checked"),
                );
            }
        }
    }

    /// The points of a device: those of its profile, overridden and extended by its own.
    pub fn points(&mut self, profile: Option<&Table>, own: &Table) -> Vec<Table> {
        let mut merged = profile.map_or_else(Vec::new, |p| self.rows(p));
        for row in self.rows(own) {
            let same = |other: &&mut Table| id_of(other).is_some() && id_of(other) == id_of(&row);
            match merged.iter_mut().find(same) {
                Some(below) => *below = below.overlaid(&row),
                None => merged.push(row),
            }
        }
        merged
    }

    /// `points` of one file: tables, the path of a list, or both in one array. The same id twice is a mistake here.
    fn rows(&mut self, file: &Table) -> Vec<Table> {
        let Some(item) = file.get("points") else { return Vec::new() };
        let items = match &item.node {
            Node::List(items) => items.as_slice(),
            _ => std::slice::from_ref(item),
        };
        let mut rows = Vec::new();
        for item in items {
            match &item.node {
                Node::Table(table) => rows.push(table.clone()),
                Node::Text(_) => rows.extend(self.list(item).iter().cloned()),
                other => {
                    let text =
                        format!("is {}; write [[points]] before each point, or the path of a list", other.what());
                    self.context.error(&item.place, "points", text);
                }
            }
        }
        self.refuse_duplicates(&rows);
        rows
    }

    fn refuse_duplicates(&self, rows: &[Table]) {
        let mut seen: BTreeMap<&str, &Place> = BTreeMap::new();
        for row in rows {
            let (Some(id), Some(item)) = (id_of(row), row.get("id")) else { continue };
            match seen.get(id) {
                Some(first) => self.context.error(&item.place, format!("points.{id}.id"), twice("point", id, first)),
                None => {
                    seen.insert(id, &item.place);
                }
            }
        }
    }

    fn list(&mut self, item: &Item) -> Arc<Vec<Table>> {
        let file = match path(item) {
            Ok(file) => file,
            Err(text) => {
                self.context.error(&item.place, "points", text);
                return Arc::default();
            }
        };
        if let Some(rows) = self.lists.get(&file) {
            return rows.clone();
        }
        let rows = Arc::new(self.read_list(&file, item));
        self.lists.insert(file, rows.clone());
        rows
    }

    fn read_list(&self, file: &Path, item: &Item) -> Vec<Table> {
        if !file.is_file() {
            self.context.files.borrow_mut().insert(file.to_owned());
            let text = format!("there is no list {}; paths are relative to the file they stand in", file.display());
            self.context.error(&item.place, "points", text);
            return Vec::new();
        }
        let Some(octets) = read_file(self.context, file) else { return Vec::new() };
        let list = parse_csv(file, &octets);
        list.errors.into_iter().for_each(|(place, text)| self.context.error(&place, "", text));
        list.rows
    }
}

fn id_of(row: &Table) -> Option<&str> {
    match &row.get("id")?.node {
        Node::Text(id) | Node::Cell(id) if !id.trim().is_empty() => Some(id.trim()),
        _ => None,
    }
}
