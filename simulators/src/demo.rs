//! The gateway's configuration for the built-in pump station, as `fieldgate demo` writes it out. It reads the ports that
//! stand in the scenario; a test holds every point against the scenario's own.

/// Path below the configuration directory, and text.
pub const FILES: &[(&str, &str)] = &[
    ("fieldgate.toml", include_str!("../demo/fieldgate.toml")),
    ("devices/station.toml", include_str!("../demo/devices/station.toml")),
    ("devices/pump-1.toml", include_str!("../demo/devices/pump-1.toml")),
    ("devices/pump-2.toml", include_str!("../demo/devices/pump-2.toml")),
    ("devices/flow-meter.toml", include_str!("../demo/devices/flow-meter.toml")),
    ("devices/energy-meter.toml", include_str!("../demo/devices/energy-meter.toml")),
    ("devices/gas.toml", include_str!("../demo/devices/gas.toml")),
    ("devices/weather.toml", include_str!("../demo/devices/weather.toml")),
    ("devices/analyser.toml", include_str!("../demo/devices/analyser.toml")),
    ("profiles/nd500.toml", include_str!("../demo/profiles/nd500.toml")),
    ("points/station.csv", include_str!("../demo/points/station.csv")),
];

#[cfg(test)]
mod tests;
