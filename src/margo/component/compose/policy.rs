//! By what a compose file would reach beyond its own containers. Each key that is let pass is known here; one that is not needs
//! [`Privilege::Everything`]. Files are judged one by one: what merging puts together was judged in its parts.
//!
//! A value that comes from a variable is not known before it runs. Where a value decides what is reached, one with a `$` counts
//! as the worst that it could be.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Needs that are kept; each is the same to the one who reads the first.
const MOST: usize = 20;

/// Something that a host allows, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Privilege {
    /// Images are built on the host.
    Build,
    /// Privileged containers.
    Privileged,
    /// Network, processes, IPC, host name, cgroups or users of the host or of foreign containers.
    HostNamespaces,
    /// Paths of the host, among them the engine's socket.
    HostPaths,
    /// Devices of the host.
    Devices,
    /// Capabilities beyond the engine's defaults.
    Capabilities,
    /// Security options: seccomp, AppArmor, SELinux.
    SecurityOptions,
    /// Volumes, networks and containers that the project does not own.
    External,
    /// Runtimes, kernel parameters, drivers of volumes, networks and logs.
    EngineOptions,
    /// Whatever a compose file can say: it is not judged.
    Everything,
    /// Files of the package in a container: allowed where the engine sees this gateway's files, never elsewhere.
    PackageFiles,
}

/// What `allow` may name.
pub const PRIVILEGES: &[(&str, Privilege)] = &[
    ("build", Privilege::Build),
    ("privileged", Privilege::Privileged),
    ("host-namespaces", Privilege::HostNamespaces),
    ("host-paths", Privilege::HostPaths),
    ("devices", Privilege::Devices),
    ("capabilities", Privilege::Capabilities),
    ("security-options", Privilege::SecurityOptions),
    ("external", Privilege::External),
    ("engine-options", Privilege::EngineOptions),
    ("everything", Privilege::Everything),
];

/// Something that a compose file needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Need {
    /// What.
    pub what: Privilege,
    /// Where it stands, such as `services.web.privileged`.
    pub place: String,
}

/// What a host allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// By name.
    pub privileges: BTreeSet<Privilege>,
    /// The engine sees the files of this gateway.
    pub is_local: bool,
}

impl Allowed {
    /// The first need that is not allowed.
    pub fn refuses<'a>(&self, needs: &'a [Need]) -> Option<&'a Need> {
        let has = |privilege| self.privileges.contains(&privilege);
        let allowed = |need: &&Need| match need.what {
            Privilege::PackageFiles => self.is_local,
            privilege => has(privilege),
        };
        needs.iter().filter(|_| !has(Privilege::Everything)).find(|need| !allowed(need))
    }

    /// Whether images may be built.
    pub fn builds(&self) -> bool {
        self.privileges.contains(&Privilege::Build) || self.privileges.contains(&Privilege::Everything)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.what == Privilege::PackageFiles {
            let place = &self.place;
            return write!(
                f,
                "{place} takes a file of the package, which an engine elsewhere does not see; write `content`"
            );
        }
        let name = PRIVILEGES.iter().find(|(_, what)| *what == self.what).map_or("", |(name, _)| name);
        write!(f, "{} needs \"{name}\" in `allow`", self.place)
    }
}

/// Each need once, and not too many.
pub(super) fn few(needs: Vec<Need>) -> Vec<Need> {
    let once: BTreeSet<Need> = needs.into_iter().collect();
    once.into_iter().take(MOST).collect()
}

/// What a compose file needs.
pub(super) fn needs(file: &Value) -> Vec<Need> {
    let mut found = Found(Vec::new());
    for (key, value) in entries(file) {
        let each = |found: &mut Found, judge: fn(&mut Found, &str, &Map<String, Value>)| {
            if !matches!(value, Value::Object(_) | Value::Null) {
                found.add(Privilege::Everything, key);
            }
            for (name, value) in entries(value) {
                let place = format!("{key}.{name}");
                match value {
                    Value::Object(map) => judge(found, &place, map),
                    Value::Null => {}
                    _ => found.add(Privilege::Everything, &place),
                }
            }
        };
        match key {
            "version" | "name" => {}
            "services" => each(&mut found, service),
            "volumes" => each(&mut found, volume),
            "networks" => each(&mut found, network),
            "configs" | "secrets" => each(&mut found, content),
            key if key.starts_with("x-") => {}
            key => found.add(Privilege::Everything, key),
        }
    }
    found.0
}

struct Found(Vec<Need>);

impl Found {
    fn add(&mut self, what: Privilege, place: &str) {
        // A file can be full of them.
        if self.0.len() < 10 * MOST {
            let place = place.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
            self.0.push(Need { what, place });
        }
    }

    fn unless(&mut self, fine: bool, what: Privilege, place: &str) {
        if !fine {
            self.add(what, place);
        }
    }

    /// A path of a file that is read or mounted.
    fn path(&mut self, path: &str, what: Privilege, place: &str) {
        let inside = is_inside(path);
        self.unless(!inside || what == Privilege::HostPaths, what, place);
        self.unless(inside, Privilege::HostPaths, place);
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// Items of a list; a single value is a list of one.
fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        Value::Null => &[],
        other => std::slice::from_ref(other),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn is_off(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

/// Whether a path stays in the package.
fn is_inside(path: &str) -> bool {
    !path.starts_with(['/', '~']) && !path.contains(['$', '\\', ':']) && path.split('/').all(|part| part != "..")
}

/// Whether a text is a name that the engine gives to a volume, and no path.
fn is_name(text: &str) -> bool {
    // One letter would be a drive elsewhere.
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn service(found: &mut Found, at: &str, service: &Map<String, Value>) {
    use Privilege as P;
    for (key, value) in service {
        let place = &format!("{at}.{key}");
        let text = value.as_str().unwrap_or_default();
        let is_text = value.is_string() || value.is_null();
        match key.as_str() {
            "attach" | "cap_drop" | "command" | "configs" | "container_name" | "cpu_count" | "cpu_percent"
            | "cpu_period" | "cpu_quota" | "cpu_rt_period" | "cpu_rt_runtime" | "cpu_shares" | "cpus" | "cpuset"
            | "depends_on" | "dns" | "dns_opt" | "dns_search" | "domainname" | "entrypoint" | "environment"
            | "expose" | "extra_hosts" | "group_add" | "healthcheck" | "hostname" | "image" | "init" | "labels"
            | "links" | "mac_address" | "mem_limit" | "mem_reservation" | "mem_swappiness" | "memswap_limit"
            | "networks" | "pids_limit" | "platform" | "ports" | "profiles" | "read_only" | "restart" | "scale"
            | "secrets" | "shm_size" | "stdin_open" | "stop_grace_period" | "stop_signal" | "tmpfs" | "tty"
            | "ulimits" | "user" | "working_dir" => {}
            "build" => found.unless(value.is_null(), P::Build, place),
            "pull_policy" => found.unless(is_text && text != "build" && !text.contains('$'), P::Build, place),
            "privileged" => found.unless(is_off(value), P::Privileged, place),
            "post_start" | "pre_stop" => {
                let plain = |hook: &Value| hook.get("privileged").is_none_or(is_off);
                found.unless(items(value).iter().all(plain), P::Privileged, place);
            }
            "network_mode" => found.unless(is_text && is_own(text, &["", "none", "bridge"]), P::HostNamespaces, place),
            "pid" => found.unless(is_text && is_own(text, &[""]), P::HostNamespaces, place),
            "ipc" => {
                found.unless(is_text && is_own(text, &["", "none", "private", "shareable"]), P::HostNamespaces, place);
            }
            "cgroup" => found.unless(is_text && ["", "private"].contains(&text), P::HostNamespaces, place),
            "uts" | "userns_mode" => found.unless(is_text && text.is_empty(), P::HostNamespaces, place),
            "devices" | "device_cgroup_rules" | "gpus" | "credential_spec" => {
                found.unless(is_empty(value), P::Devices, place);
            }
            "blkio_config" => {
                let devices = entries(value).any(|(key, _)| key.contains("device"));
                found.unless(!devices, P::Devices, place);
            }
            "deploy" => deploy(found, place, value),
            "cap_add" => found.unless(is_empty(value), P::Capabilities, place),
            "security_opt" => {
                let harmless = |option: &Value| {
                    option.as_str().is_some_and(|option| {
                        option
                            .strip_prefix("no-new-privileges")
                            .is_some_and(|rest| ["", ":true", "=true"].contains(&rest))
                    })
                };
                found.unless(items(value).iter().all(harmless), P::SecurityOptions, place);
            }
            "annotations" | "cgroup_parent" | "isolation" | "oom_kill_disable" | "oom_score_adj" | "runtime"
            | "storage_opt" | "sysctls" => {
                found.unless(is_empty(value) || is_off(value), P::EngineOptions, place);
            }
            "logging" => {
                let driver = value.get("driver").map_or("json-file", |driver| driver.as_str().unwrap_or("?"));
                found.unless(["json-file", "local", "journald", "none"].contains(&driver), P::EngineOptions, place);
            }
            "external_links" => found.unless(is_empty(value), P::External, place),
            "volumes_from" => {
                let own = |from: &Value| {
                    from.as_str().is_some_and(|from| !from.starts_with("container:") && !from.contains('$'))
                };
                found.unless(items(value).iter().all(own), P::External, place);
            }
            "volumes" => items(value).iter().for_each(|mounted| mount(found, place, mounted)),
            "env_file" | "label_file" => {
                for file in items(value) {
                    let path = file.as_str().or_else(|| file.get("path")?.as_str()).unwrap_or("/");
                    found.path(path, P::HostPaths, place);
                }
            }
            "extends" => found.unless(value.get("file").is_none_or(Value::is_null), P::Everything, place),
            key if key.starts_with("x-") => {}
            _ => found.add(P::Everything, place),
        }
    }
}

/// Whether a namespace is the container's own or that of a service of the project.
fn is_own(text: &str, harmless: &[&str]) -> bool {
    harmless.contains(&text) || text.strip_prefix("service:").is_some_and(|name| !name.contains('$'))
}

fn deploy(found: &mut Found, at: &str, value: &Value) {
    for (key, value) in entries(value) {
        match key {
            "mode" | "replicas" | "labels" | "restart_policy" | "update_config" | "rollback_config"
            | "endpoint_mode" | "placement" => {}
            "resources" => {
                let plain = ["cpus", "memory", "pids"];
                let all = entries(value).flat_map(|(_, resources)| entries(resources));
                for (name, _) in all.filter(|(name, value)| !plain.contains(name) && !is_empty(value)) {
                    found.add(Privilege::Devices, &format!("{at}.{key}.{name}"));
                }
            }
            key if key.starts_with("x-") => {}
            _ => found.add(Privilege::Everything, &format!("{at}.{key}")),
        }
    }
}

fn mount(found: &mut Found, at: &str, mounted: &Value) {
    match mounted {
        Value::String(text) => match text.split_once(':') {
            _ if text.contains('$') => found.add(Privilege::HostPaths, at),
            // A path in the container alone: a volume without a name.
            None => {}
            Some((source, _)) if is_name(source) => {}
            Some((source, _)) if source.starts_with('.') => found.path(source, Privilege::PackageFiles, at),
            Some(_) => found.add(Privilege::HostPaths, at),
        },
        Value::Object(map) => {
            let text = |key: &str| map.get(key).map(|value| value.as_str().unwrap_or("$"));
            let source = text("source");
            match text("type") {
                Some("tmpfs") => {}
                Some("volume") if source.is_none_or(is_name) => {}
                None if source.is_none_or(is_name) => {}
                Some("bind") | None => found.path(source.unwrap_or_default(), Privilege::PackageFiles, at),
                Some("volume") => found.add(Privilege::HostPaths, at),
                Some(_) => found.add(Privilege::Everything, at),
            }
        }
        _ => found.add(Privilege::Everything, at),
    }
}

fn volume(found: &mut Found, at: &str, volume: &Map<String, Value>) {
    for (key, value) in volume {
        let place = &format!("{at}.{key}");
        match key.as_str() {
            "labels" => {}
            "external" => found.unless(is_off(value), Privilege::External, place),
            // A volume of that name may be somebody else's.
            "name" => found.unless(value.is_null(), Privilege::External, place),
            "driver" => found.unless(value.is_null() || value == "local", Privilege::EngineOptions, place),
            // With them the local driver mounts any path.
            "driver_opts" => found.unless(is_empty(value), Privilege::HostPaths, place),
            key if key.starts_with("x-") => {}
            _ => found.add(Privilege::Everything, place),
        }
    }
}

fn network(found: &mut Found, at: &str, network: &Map<String, Value>) {
    for (key, value) in network {
        let place = &format!("{at}.{key}");
        match key.as_str() {
            "labels" | "ipam" | "internal" | "attachable" | "enable_ipv4" | "enable_ipv6" => {}
            "external" => found.unless(is_off(value), Privilege::External, place),
            "name" => found.unless(value.is_null(), Privilege::External, place),
            "driver" => found.unless(value.is_null() || value == "bridge", Privilege::EngineOptions, place),
            "driver_opts" => found.unless(is_empty(value), Privilege::EngineOptions, place),
            key if key.starts_with("x-") => {}
            _ => found.add(Privilege::Everything, place),
        }
    }
}

/// A config or a secret.
fn content(found: &mut Found, at: &str, content: &Map<String, Value>) {
    for (key, value) in content {
        let place = &format!("{at}.{key}");
        match key.as_str() {
            "labels" | "content" | "environment" | "name" => {}
            "external" => found.unless(is_off(value), Privilege::External, place),
            "file" => found.path(value.as_str().unwrap_or("/"), Privilege::PackageFiles, place),
            key if key.starts_with("x-") => {}
            _ => found.add(Privilege::Everything, place),
        }
    }
}

#[cfg(test)]
mod tests;
