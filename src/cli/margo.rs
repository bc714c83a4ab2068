//! `fieldgate margo`: joining a fleet manager, how it stands, and leaving it, in words.

use std::path::Path;

use clap::Subcommand;

use super::CliError;
use super::table::Table;
use crate::config::checked::Est;
use crate::margo::client::ClientStatus;
use crate::margo::config::{Config, Generation, Mode};
use crate::margo::identity::{BundleCache, BundleSource, ClientName, OwnSvid, TrustBundle, make_svid_request};
use crate::platform::clock::{Clock, SystemClock};
use crate::platform::durable::{Access, Disk};
use crate::security::pki::read_clock;

/// What is asked.
#[derive(Debug, Subcommand)]
pub enum MargoCommand {
    /// Make a key and a request for an SVID, and say what to do with them. An identity that is there is only checked.
    Join {
        /// Trust domain, such as plant.example.
        #[arg(long)]
        trust_domain: Option<String>,
        /// Id of the fleet manager in its SPIFFE ID.
        #[arg(long)]
        wfm: Option<String>,
        /// Id of this client; the gateway's deviceId when not given.
        #[arg(long)]
        client: Option<String>,
    },
    /// Say how the client stands: identity, trust, clock, devices and deployments.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say how to leave, and destroy the key once the gateway does not use it any more.
    Leave {
        /// Destroy the key now. Deployments and devices must have been removed at the fleet manager before.
        #[arg(long)]
        destroy_key: bool,
    },
}

/// Does what was asked.
pub fn execute(config: Option<&Config>, est: Option<&Est>, command: MargoCommand) -> Result<(), CliError> {
    let config = config.ok_or_else(|| {
        CliError::Other("there is no [margo] section in fieldgate.toml; docs/margo.md shows what to write".to_owned())
    })?;
    match command {
        MargoCommand::Join { .. } if est.is_some() => enrolled(config, est),
        MargoCommand::Join { trust_domain, wfm, client } => join(config, trust_domain, wfm, client),
        MargoCommand::Status { json } => status(config, json),
        MargoCommand::Leave { destroy_key } => leave(config, destroy_key),
    }
}

fn other(error: &dyn std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// Nothing is to be done by hand.
fn enrolled(config: &Config, est: Option<&Est>) -> Result<(), CliError> {
    if let Some(Est { url, uri, .. }) = est {
        println!("The running gateway enrols its SVID at   {url}");
        println!("The SVID will be                         {}", uri.as_deref().unwrap_or_default());
    }
    check(config)
}

fn join(
    config: &Config,
    trust_domain: Option<String>,
    wfm: Option<String>,
    client: Option<String>,
) -> Result<(), CliError> {
    let files = &config.identity;
    if files.key.exists() {
        println!("There is a key already: {}", files.key.display());
        return check(config);
    }
    let (Some(trust_domain), Some(wfm)) = (trust_domain, wfm) else {
        return Err(CliError::Other(
            "say who the fleet manager is: --trust-domain plant.example --wfm <wfm-id>; its operator knows both"
                .to_owned(),
        ));
    };
    let client = client.unwrap_or_else(|| config.device.as_str().replace('/', "."));
    let name = ClientName::new(&trust_domain, &wfm, &client).map_err(|e| other(&e))?;
    let made = make_svid_request(&name).map_err(|e| other(&e))?;
    let disk = Disk::default();
    if let Some(directory) = files.key.parent() {
        disk.create_directory(directory, Access::Private).map_err(|e| other(&e))?;
    }
    disk.replace(&files.key, made.key.expose().as_bytes(), Access::Private).map_err(|e| other(&e))?;
    let request = files.key.with_extension("csr.pem");
    disk.replace(&request, made.request.as_bytes(), Access::Public).map_err(|e| other(&e))?;
    println!("Made a key, which stays here:     {}", files.key.display());
    println!("Made a request for its SVID:      {}", request.display());
    println!("The SVID will be                  {}", name.id());
    println!("The fleet manager must then be    {}\n", name.wfm());
    println!("1. Give the request to the operator of the trust domain.");
    println!("2. Put the signed chain (PEM, the leaf first) to {}", files.chain.display());
    if let Generation::Rc3 { bundle: BundleSource::File(path), .. } = &config.generation {
        println!("3. Put the trust bundle (JWK set) to {}", path.display());
    }
    println!("The running gateway takes them within seconds. `fieldgate margo status` says what is missing.");
    Ok(())
}

/// Checks identity and trust by the rules of a handshake.
fn check(config: &Config) -> Result<(), CliError> {
    let clock = SystemClock::default().now();
    let now = read_clock(clock, 0);
    if !now.firm {
        println!("clock     not set: certificates cannot be checked; set it (NTP, or `date -s`)");
    }
    if let Mode::Transparent(devices) = &config.mode {
        println!("mode      transparent: {} devices with an identity each", devices.len());
    }
    let own = match OwnSvid::load(&config.identity.chain, &config.identity.key) {
        Ok(own) => own,
        Err(error) => {
            println!("identity  {error}");
            return Ok(());
        }
    };
    println!("identity  {}", own.name().id());
    println!("wfm       {}", own.name().wfm());
    let days = own.validity().not_after.saturating_sub(now.seconds) / 86_400;
    println!("svid      serial {}, {days} days left", own.serial());
    let Generation::Rc3 { bundle, .. } = &config.generation else { return Ok(()) };
    match held(config, bundle) {
        Err(why) => println!("trust     {why}"),
        Ok(bundle) => {
            println!("trust     bundle with sequence {} and {} anchors", bundle.sequence, bundle.anchors().len());
            if let Some(complaint) = own.complaint(&bundle, now.seconds) {
                println!("refused   {complaint} (rule {})", complaint.code());
            }
        }
    }
    Ok(())
}

fn held(config: &Config, source: &BundleSource) -> Result<TrustBundle, String> {
    match source {
        BundleSource::File(path) => {
            let bytes =
                std::fs::read(path).map_err(|error| format!("cannot read the bundle {}: {error}", path.display()))?;
            TrustBundle::parse(&bytes).map_err(|error| error.to_string())
        }
        BundleSource::Uri { .. } | BundleSource::Discovery { .. } => {
            let cached = BundleCache::new(&config.directory, Disk::default()).load(&source.name());
            let cached = cached.map_err(|error| error.to_string())?;
            cached.ok_or_else(|| "no bundle was fetched yet; the running gateway does that".to_owned())
        }
    }
}

fn read_status(directory: &Path) -> Result<ClientStatus, CliError> {
    let path = directory.join(crate::app::MARGO_STATUS);
    let bytes = std::fs::read(&path).map_err(|error| {
        CliError::Other(format!("{}: {error}; does the gateway run with this configuration?", path.display()))
    })?;
    serde_json::from_slice(&bytes).map_err(|_| CliError::odd_answer())
}

fn status(config: &Config, json: bool) -> Result<(), CliError> {
    if json {
        return super::live::print_json(&read_status(&config.directory)?);
    }
    check(config)?;
    let status = read_status(&config.directory)?;
    println!("server    {}", status.url);
    let connection = match (status.retired, status.connected) {
        (true, _) => "the fleet manager has retired this client",
        (_, true) => "the last request was answered",
        _ => "not connected",
    };
    println!(
        "client    {} as {}{}",
        connection,
        status.device,
        if status.problem.is_empty() { String::new() } else { format!(": {}", status.problem) }
    );
    println!("manifest  version {}", status.manifest_version);
    println!("devices   {} of {} reported", status.devices_reported, status.devices);
    println!("outbox    {} statuses wait", status.statuses_waiting);
    let mut table = Table::new(["deployment", "device", "state", "reason"]);
    for line in status.deployments {
        table.row([line.deployment, line.device, line.state, line.reason]);
    }
    print!("{table}");
    Ok(())
}

fn leave(config: &Config, destroy_key: bool) -> Result<(), CliError> {
    let status = read_status(&config.directory).unwrap_or_default();
    if !destroy_key {
        println!("1. Let the fleet manager remove its deployments: {} are here now.", status.deployments.len());
        println!("2. Let it retire this client, or remove it from its policy.");
        println!("3. Remove [margo] from fieldgate.toml (or set enabled = false) and restart the gateway.");
        println!("4. `fieldgate margo leave --destroy-key` destroys the key {}.", config.identity.key.display());
        return Ok(());
    }
    if !status.deployments.is_empty() && !status.retired {
        let text = format!(
            "{} deployments are still on devices; let the fleet manager remove them first",
            status.deployments.len()
        );
        return Err(CliError::Other(text));
    }
    Disk::default().remove(&config.identity.key).map_err(|e| other(&e))?;
    println!(
        "The key {} is gone. The same client id may be used again only with a new key.",
        config.identity.key.display()
    );
    Ok(())
}
