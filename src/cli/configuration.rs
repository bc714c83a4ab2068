//! Commands about the configuration: `check`, `explain`, `init`, `hash-password`.

use std::io::{IsTerminal, Read};
use std::path::Path;

use super::CliError;
use crate::app;
use crate::app::certificates::pki_config;
use crate::config::{self, starter, summary::Summary};
use crate::management::roles::make_claim_code;
use crate::platform::clock::SystemClock;
use crate::security::pki::{Pki, PkiError};
use crate::security::{Secret, hash_password as hash};
use crate::southbound::explain;

/// `fieldgate check`
pub fn check(path: &Path) -> Result<(), CliError> {
    let loaded = config::load(path)?;
    println!("{}", Summary(&loaded));
    Ok(())
}

/// `fieldgate explain`
pub fn explain(path: &Path, device: Option<&str>) -> Result<(), CliError> {
    let devices = config::load(path)?.devices.iter().map(|d| d.southbound()).collect::<Vec<_>>();
    if let Some(name) = device
        && !devices.iter().any(|d| d.device.id.as_str() == name)
    {
        let known: Vec<_> = devices.iter().map(|d| d.device.id.as_str()).collect();
        return Err(CliError::Other(format!("there is no device {name:?}; configured are: {}", known.join(", "))));
    }
    let wanted: Vec<_> =
        devices.into_iter().filter(|d| device.is_none_or(|name| d.device.id.as_str() == name)).collect();
    print!("{}", explain::explain(&wanted, |_| None));
    Ok(())
}

/// `fieldgate init`
pub fn init(directory: &Path, options: &starter::Options, authority: bool) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Other(error.to_string());
    for file in starter::write(directory, options).map_err(|e| failed(&e))? {
        println!("wrote {}", file.display());
    }
    if authority {
        let gateway = config::load(directory)?.gateway;
        let (pki, clock) = (pki_config(&gateway), SystemClock::shared());
        let place = pki.directory.join("ca");
        let made = match Pki::create(pki, &gateway.pki.name, clock) {
            Ok(made) => Some(made.authority().fingerprint()),
            // An earlier gateway's data directory: its authority goes on.
            Err(PkiError::Exists(place)) => {
                println!("kept the certificate authority that is in {}", place.display());
                None
            }
            Err(error) => return Err(failed(&error)),
        };
        if let Some(made) = made {
            println!("made the plant's certificate authority in {} (SHA-256 {made})", place.display());
            println!("  keep a copy of it in a safe place: whoever has ca.key can make certificates");
        }
    }
    let code = claim(&config::find_data_dir(directory)?)?;
    let directory = directory.display();
    println!("\nClaim code: {code}");
    println!(
        "Whoever sends it first over MQTT becomes the administrator (docs/device-management.md); it works once and is"
    );
    println!("not shown again. `fieldgate claim` makes another one.");
    println!("\nNext: edit the files in {directory}/devices, then");
    println!("  fieldgate --config {directory} check");
    println!("  fieldgate --config {directory} run");
    Ok(())
}

/// `fieldgate claim`: counts from the next start of the gateway.
pub fn new_claim(data_dir: &Path) -> Result<(), CliError> {
    println!("Claim code: {}", claim(data_dir)?);
    println!("It counts from the next start of the gateway, works once and is not shown again.");
    Ok(())
}

fn claim(data_dir: &Path) -> Result<String, CliError> {
    let other = |e: &dyn std::fmt::Display| CliError::Other(format!("make a claim code: {e}"));
    let (code, hash) = make_claim_code().map_err(|e| other(&e))?;
    app::leave_claim_code(data_dir, &hash).map_err(|e| other(&e))?;
    Ok(code)
}

/// `fieldgate hash-password`: the password is read from standard input, so that it stands in no process list.
pub fn hash_password() -> Result<(), CliError> {
    let mut input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("Type the password, then Enter and Ctrl-D (it is shown):");
    }
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(|e| CliError::Other(format!("read the password: {e}")))?;
    let password = Secret::new(text.trim_end_matches(['\r', '\n']));
    println!("{}", hash(&password).map_err(|e| CliError::Other(e.to_string()))?.as_str());
    Ok(())
}
