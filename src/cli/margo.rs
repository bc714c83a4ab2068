//! `fieldgate margo`: joining a fleet manager, how it stands, and leaving it, in words.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;

use super::CliError;
use super::table::Table;
use crate::config::checked::Est;
use crate::config::format_duration;
use crate::margo::client::{ClientStatus, LeaveFile, Leaving, StatusFiles, Wish};
use crate::margo::config::{Config, Generation, Member};
use crate::margo::identity::{
    BundleCache, BundleSource, ClientName, IdentityFiles, Moment, OwnSvid, TrustBundle, make_svid_request,
};
use crate::platform::clock::{Clock, SystemClock};
use crate::platform::durable::{Access, Disk};
use crate::security::pki::read_clock;

/// How often the status is looked at while somebody waits.
const LOOK: Duration = Duration::from_millis(200);

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
        /// Id of this client; its deviceId when not given.
        #[arg(long)]
        client: Option<String>,
        /// The device, for a transparent gateway, whose devices have an identity each.
        #[arg(long)]
        device: Option<String>,
    },
    /// Say how the client stands: identity, trust, clock, devices and deployments.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Leave: wait until the fleet manager has removed its deployments, and take every device back there. `margo join` stays.
    Leave {
        /// Do not wait for the deployments: what they brought stays on the devices.
        #[arg(long)]
        now: bool,
        /// How long to wait here, in seconds. The gateway goes on leaving afterwards.
        #[arg(long, default_value_t = 30)]
        wait: u64,
        /// Destroy the key once everything was taken back.
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
        MargoCommand::Join { trust_domain, wfm, client, device } => {
            join(config, est, &member(config, device.as_deref())?, trust_domain, wfm, client)
        }
        MargoCommand::Status { json } => status(config, json),
        MargoCommand::Leave { now, wait, destroy_key } => {
            leave(config, now, Duration::from_secs(wait.min(86_400)), destroy_key)
        }
    }
}

fn other(error: &dyn std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// The client that is meant: the only one, or that of a device of a transparent gateway.
fn member(config: &Config, device: Option<&str>) -> Result<Member, CliError> {
    let mut members = config.members();
    if let (None, [_]) = (device, members.as_slice()) {
        return Ok(members.remove(0));
    }
    let named = |member: &Member| member.only.as_ref().map(|only| only.as_str()) == device;
    if let (Some(_), Some(at)) = (device, members.iter().position(named)) {
        return Ok(members.remove(at));
    }
    let known: Vec<&str> = members.iter().filter_map(|member| member.only.as_ref().map(|only| only.as_str())).collect();
    Err(CliError::Other(match (device, known.is_empty()) {
        (_, true) => "this gateway is one client for all of its devices: leave --device out".to_owned(),
        (None, _) => format!("each device has an identity of its own: say which with --device ({})", known.join(", ")),
        (Some(device), _) => {
            format!("{device} has no `cert` and `key` in [[margo.device]]; these have: {}", known.join(", "))
        }
    }))
}

fn join(
    config: &Config,
    est: Option<&Est>,
    member: &Member,
    trust_domain: Option<String>,
    wfm: Option<String>,
    client: Option<String>,
) -> Result<(), CliError> {
    let (files, leave) = (&member.identity, LeaveFile::new(&config.directory));
    if leave.wish().is_some() {
        leave.set(None).map_err(|e| other(&e))?;
        println!("The wish to leave is taken back.");
    }
    if let Some(est) = est.filter(|_| member.only.is_none()) {
        println!("The running gateway enrols its SVID at   {}", est.url);
        println!("The SVID will be                         {}", est.uri.as_deref().unwrap_or_default());
        if !files.key.exists() {
            println!("None was granted yet; the gateway's health and log say why.");
            return Ok(());
        }
    }
    if files.key.exists() {
        println!("There is a key already: {}", files.key.display());
        return check(config, member);
    }
    let (Some(trust_domain), Some(wfm)) = (trust_domain, wfm) else {
        return Err(CliError::Other(
            "say who the fleet manager is: --trust-domain plant.example --wfm <wfm-id>; its operator knows both"
                .to_owned(),
        ));
    };
    let device = member.only.as_ref().map_or(config.device.as_str(), |device| device.as_str());
    let client = client.unwrap_or_else(|| device.replace('/', "."));
    let name = ClientName::new(&trust_domain, &wfm, &client).map_err(|e| other(&e))?;
    let made = make_svid_request(&name).map_err(|e| other(&e))?;
    let disk = Disk::default();
    if let Some(directory) = files.key.parent() {
        disk.create_directory(directory, Access::Private).map_err(|e| other(&e))?;
    }
    disk.replace(&files.key, made.key.expose().as_bytes(), Access::Private).map_err(|e| other(&e))?;
    let request = request_file(files);
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
fn check(config: &Config, member: &Member) -> Result<(), CliError> {
    let clock = SystemClock::default().now();
    let now = read_clock(clock, 0);
    let doubt = if now.firm {
        ""
    } else {
        ", which nobody has set: certificates cannot be checked; set it (NTP, or `date -s`)"
    };
    println!("clock     {}{doubt}", Moment(now.seconds));
    let files = &member.identity;
    if !files.key.exists() {
        println!("identity  there is no key yet ({}); {}", files.key.display(), files.remedy());
        return Ok(());
    }
    if !files.chain.exists() {
        if files.enrolled.is_some() {
            println!("identity  there is no SVID yet; {}", files.remedy());
            return Ok(());
        }
        let request = request_file(files);
        println!(
            "identity  there is no SVID yet: let the operator sign {}, and put the chain to {}",
            request.display(),
            files.chain.display()
        );
        return Ok(());
    }
    let own = match OwnSvid::load(&files.chain, &files.key) {
        Ok(own) => own,
        Err(error) => {
            println!("identity  {error}");
            return Ok(());
        }
    };
    println!("identity  {}", own.name().id());
    if let Some(complaint) = files.misnamed(&own) {
        println!("refused   {complaint}");
    }
    println!("wfm       {}", own.name().wfm());
    let days = own.validity().not_after.saturating_sub(now.seconds) / 86_400;
    println!("svid      serial {}, {days} days left", own.serial());
    let Generation::Rc3 { bundle, .. } = &config.generation else { return Ok(()) };
    match held(member, bundle) {
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

fn held(member: &Member, source: &BundleSource) -> Result<TrustBundle, String> {
    match source {
        BundleSource::File(path) => {
            let bytes =
                std::fs::read(path).map_err(|error| format!("cannot read the bundle {}: {error}", path.display()))?;
            TrustBundle::parse(&bytes).map_err(|error| error.to_string())
        }
        BundleSource::Uri { .. } | BundleSource::Discovery { .. } => {
            let cached = BundleCache::new(&member.directory, Disk::default()).load(&source.name());
            let cached = cached.map_err(|error| error.to_string())?;
            cached.ok_or_else(|| "no bundle was fetched yet; the running gateway does that".to_owned())
        }
    }
}

fn read_status(directory: &Path) -> Result<ClientStatus, CliError> {
    StatusFiles::new(directory)
        .read()
        .map_err(|error| CliError::Other(format!("{error}; does the gateway run with this configuration?")))
}

fn status(config: &Config, json: bool) -> Result<(), CliError> {
    let members = config.members();
    if json {
        let all: Result<Vec<ClientStatus>, CliError> = members.iter().map(|m| read_status(&m.directory)).collect();
        return super::live::print_json(&all?);
    }
    for (at, member) in members.iter().enumerate() {
        if at > 0 {
            println!("");
        }
        if let Some(device) = &member.only {
            println!("device    {device}");
        }
        check(config, member)?;
        show(&read_status(&member.directory)?);
    }
    Ok(())
}

fn show(status: &ClientStatus) {
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
    match status.leaving {
        Leaving::No => {}
        Leaving::Left => println!("leaving   it has left; `fieldgate margo join` joins again"),
        Leaving::Deployments | Leaving::Devices => {
            println!("leaving   it leaves; `fieldgate margo leave` says what it waits for");
        }
    }
    println!(
        "manifest  version {}; {}",
        status.manifest_version,
        last_poll(status.polled_ms, SystemClock::default().wall_ms())
    );
    println!("devices   {} of {} reported", status.devices_reported, status.devices);
    println!("outbox    {} statuses wait", status.statuses_waiting);
    let mut table = Table::new(["deployment", "device", "state", "reason"]);
    for line in status.deployments.iter().cloned() {
        table.row([line.deployment, line.device, line.state, line.reason]);
    }
    print!("{table}");
}

/// When the fleet manager last said what is deployed; a gateway that stands still shows here.
fn last_poll(polled_ms: i64, now_ms: i64) -> String {
    if polled_ms == 0 {
        return "no poll was answered yet".to_owned();
    }
    let passed = Duration::from_secs(u64::try_from(now_ms.saturating_sub(polled_ms)).unwrap_or(0) / 1_000);
    format!("the last poll was answered {} ago", format_duration(passed))
}

fn leave(config: &Config, now: bool, wait: Duration, destroy_key: bool) -> Result<(), CliError> {
    let file = LeaveFile::new(&config.directory);
    file.set(Some(if now { Wish::AtOnce } else { Wish::WhenEmpty })).map_err(|e| other(&e))?;
    let began = Instant::now();
    let (mut left, mut said) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        left.extend(config.members().iter().filter_map(what_is_left));
        if !left.is_empty() && left != said {
            println!("{}", left.join("\n"));
            said.clone_from(&left);
        }
        if left.is_empty() || began.elapsed() >= wait {
            break;
        }
        std::thread::sleep(LOOK);
    }
    if !left.is_empty() {
        let text = format!("not left yet; the gateway goes on with it.\n{}", left.join("\n"));
        return Err(CliError::Other(text));
    }
    println!("Left: the fleet manager was told that every device is gone, and nothing is sent to it any more.");
    if destroy_key {
        return config.members().iter().try_for_each(destroy);
    }
    println!("1. Let its operator remove this client from the policy, so that the SVID is of no use.");
    println!("2. `fieldgate margo leave --destroy-key` destroys the key.");
    println!(
        "3. Remove [margo] from fieldgate.toml, or set enabled = false; or join again with `fieldgate margo join`."
    );
    Ok(())
}

/// What keeps a client from having left, in words.
fn what_is_left(member: &Member) -> Option<String> {
    let whose = member.only.as_ref().map(|device| format!("{device}: ")).unwrap_or_default();
    let Ok(status) = read_status(&member.directory) else {
        return Some(format!("{whose}the gateway never ran with this configuration; it begins to leave when it runs"));
    };
    let why = if status.problem.is_empty() { String::new() } else { format!(" ({})", status.problem) };
    let waiting = status.statuses_waiting;
    Some(match status.leaving {
        _ if status.retired => return None,
        Leaving::Left => return None,
        Leaving::No => format!("{whose}the gateway has not begun; it does within seconds if it runs"),
        Leaving::Deployments if status.deployments.is_empty() => {
            format!("{whose}{waiting} statuses are still to be told to the fleet manager{why}")
        }
        Leaving::Deployments => format!(
            "{whose}{} deployments are still here: let the fleet manager remove them, or leave what they brought on the devices with --now{why}",
            status.deployments.len()
        ),
        Leaving::Devices => {
            format!("{whose}{} devices are still to be taken back at the fleet manager{why}", status.devices_known)
        }
    })
}

/// Destroys the key, and what only means something with it.
fn destroy(member: &Member) -> Result<(), CliError> {
    let disk = Disk::default();
    let files = &member.identity;
    BundleCache::new(&member.directory, disk.clone()).clear().map_err(|e| other(&e))?;
    for path in [files.key.clone(), request_file(files)] {
        if path.exists() {
            disk.remove(&path).map_err(|e| other(&e))?;
        }
    }
    println!("The key {} is gone. The same client id may be used again only with a new key.", files.key.display());
    Ok(())
}

/// Where the request for the SVID lies.
fn request_file(files: &IdentityFiles) -> PathBuf {
    files.key.with_extension("csr.pem")
}
