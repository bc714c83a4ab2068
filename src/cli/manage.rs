//! Device management on the command line: `onboard`, `approve`, `reject`, `config`, `command`, `audit`, `export`, `import`.
//!
//! Everything but `audit` (which reads the log itself) asks the running gateway through its socket: whoever may open that is
//! an administrator. What cannot be undone asks first, or wants `--yes`.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::CliError;
use super::live::{ask, print_json};
use super::table::Table;
use crate::admin::{Answer, Request};
use crate::contract::{json_value, v1};
use crate::management::socket::{SocketAnswer, SocketAsk};
use crate::model::Value;
use crate::platform::clock::ClockBook;

/// Which devices, and why.
#[derive(Debug, Args)]
pub struct On {
    /// A device, or a pattern such as 'pump-*'.
    devices: String,
    /// Words for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    /// Only a device that reveals this fingerprint.
    #[arg(long, default_value = "")]
    fingerprint: String,
    /// Type (a file in profiles/) of a device that no file declares.
    #[arg(long, default_value = "")]
    profile: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub enum OnboardCommand {
    /// List devices that wait for a decision, or all of them.
    List {
        /// Also those that wait for nothing.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look for devices in a range of addresses, such as "192.0.2.0/28 port 502 units 1-3".
    Scan {
        /// The range.
        range: String,
        /// Protocol.
        #[arg(long, default_value = "modbus-tcp")]
        protocol: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make an enrolment token; it is shown once.
    Token {
        /// Devices that may use it, as an id or a pattern.
        #[arg(default_value = "*")]
        devices: String,
        /// For how many devices.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// For how long, such as "1 h".
        #[arg(long, default_value = "1 d")]
        expires: String,
        /// Type of devices that no file declares.
        #[arg(long, default_value = "")]
        profile: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make an enrolment token useless.
    RevokeToken {
        /// Its id, the part behind `fgt.`.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give an identity a role, or take it away with `none`.
    Grant {
        /// Such as mqtt:local:anna.
        identity: String,
        /// viewer, operator, engineer, administrator or none.
        role: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take devices out of service.
    Suspend(On),
    /// Put them back.
    Resume(On),
    /// Ask devices who they are.
    Identify(On),
    /// Set their clocks to the gateway's time.
    SetClock(On),
    /// Trust the identity that a device shows now.
    AcceptIdentity(On),
    /// The hardware is or will be replaced; the id and the configuration stay.
    Replace(On),
    /// Take back a replacement.
    Cancel(On),
    /// Begin anew with a device that was rejected or decommissioned.
    Readmit(On),
    /// End the life of devices here: credentials, topics and configuration are removed. This cannot be undone.
    Decommission {
        #[command(flatten)]
        on: On,
        /// Erase stored values at once, whatever the policy says, also those that somebody still waits for.
        #[arg(long)]
        erase_data: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show what is in force, where it comes from, and the history.
    Show {
        /// A device, or `gateway`.
        target: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take settings from a JSON file (`-`: standard input): applied, proven by values that arrive, else rolled back.
    Set {
        /// A device, or `gateway`.
        target: String,
        /// The settings, such as {"rate": "5 s"}.
        file: PathBuf,
        /// How long values may take to arrive.
        #[arg(long, default_value = "")]
        prove_within: String,
        /// Words for the history.
        #[arg(long, default_value = "")]
        comment: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Go back to the settings of a version of the history.
    Restore {
        /// A device, or `gateway`.
        target: String,
        /// The version.
        version: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct CommandArgs {
    /// The device.
    device: String,
    /// POINT=VALUE, in engineering units; done in order. With --method: ARGUMENT=VALUE.
    values: Vec<String>,
    /// A method of the device's type instead of writes.
    #[arg(long)]
    method: Option<String>,
    /// Also write points that are marked critical, without asking.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only what was done to this device.
    #[arg(long)]
    device: Option<String>,
    /// Only what this identity did (a part of it is enough).
    #[arg(long)]
    actor: Option<String>,
    /// The newest so many.
    #[arg(long, default_value_t = 100)]
    last: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Devices to hand over, as an id or a pattern.
    #[arg(required_unless_present = "public_key")]
    devices: Option<String>,
    /// The gateway that shall have them; its public key stands in [management.partners].
    #[arg(long, required_unless_present = "public_key")]
    to: Option<String>,
    /// Where the signed document goes; standard output when not given.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Print this gateway's public key for the partner's configuration, and nothing else.
    #[arg(long)]
    public_key: bool,
    /// Take an offer back, by the id of the transfer.
    #[arg(long, value_name = "TRANSFER", conflicts_with_all = ["devices", "to"])]
    cancel: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The document of the partner: an export, a receipt or a release (`-`: standard input).
    file: PathBuf,
    /// Where the answer for the partner goes; standard output when not given.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `fieldgate onboard`
pub async fn onboard(data_dir: &Path, command: OnboardCommand) -> Result<(), CliError> {
    use OnboardCommand as C;
    let request = |action: &str| v1::ManagementRequest { action: action.to_owned(), ..Default::default() };
    let (request, json) = match command {
        C::List { all, json } => return list(data_dir, all, json).await,
        C::Scan { range, protocol, json } => (v1::ManagementRequest { range, protocol, ..request("scan") }, json),
        C::Token { devices, uses, expires, profile, json } => {
            (v1::ManagementRequest { device: devices, uses, expires, profile, ..request("create-token") }, json)
        }
        C::RevokeToken { id, json } => (v1::ManagementRequest { token: id, ..request("revoke-token") }, json),
        C::Grant { identity, role, json } => (v1::ManagementRequest { identity, role, ..request("grant") }, json),
        C::Suspend(on) => return act(data_dir, "suspend", on).await,
        C::Resume(on) => return act(data_dir, "resume", on).await,
        C::Identify(on) => return act(data_dir, "identify", on).await,
        C::SetClock(on) => return act(data_dir, "set-clock", on).await,
        C::AcceptIdentity(on) => return act(data_dir, "accept-identity", on).await,
        C::Replace(on) => return act(data_dir, "replace", on).await,
        C::Cancel(on) => return act(data_dir, "cancel", on).await,
        C::Readmit(on) => return act(data_dir, "readmit", on).await,
        C::Decommission { on, erase_data, yes } => {
            confirm(yes, &format!("End the life of {} here? This cannot be undone", on.devices))?;
            let json = on.json;
            let request = v1::ManagementRequest { erase_data, ..request_on("decommission", on) };
            return report(&manage(data_dir, SocketAsk::Manage(Box::new(request))).await?, json);
        }
    };
    let result = manage(data_dir, SocketAsk::Manage(Box::new(request))).await?;
    report(&result, json)?;
    if !json && !result.token.is_empty() {
        println!("{}", result.token);
        eprintln!("The token is shown this once.");
    }
    Ok(())
}

/// An action on devices: `approve`, `reject` and those of `onboard`.
pub async fn act(data_dir: &Path, action: &str, on: On) -> Result<(), CliError> {
    let json = on.json;
    report(&manage(data_dir, SocketAsk::Manage(Box::new(request_on(action, on)))).await?, json)
}

fn request_on(action: &str, on: On) -> v1::ManagementRequest {
    let On { devices, reason, fingerprint, profile, .. } = on;
    v1::ManagementRequest {
        action: action.to_owned(),
        device: devices,
        reason,
        fingerprint,
        profile,
        ..Default::default()
    }
}

async fn list(data_dir: &Path, all: bool, json: bool) -> Result<(), CliError> {
    let SocketAnswer::Devices(mut list) = socket(data_dir, SocketAsk::List).await? else {
        return Err(CliError::odd_answer());
    };
    list.devices.retain(|d| all || d.state != "active");
    if json {
        return print_json(&list.devices);
    }
    let mut table =
        Table::new(["device", "state", "tier", "address", "says it is", "approved by", "possible", "reason"]);
    for d in list.devices {
        let identity =
            [d.vendor, d.model, d.serial].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(" ");
        let possible = d.possible.join(", ");
        table.row([d.device, d.state, d.tier.to_string(), d.address, identity, d.approved_by, possible, d.reason]);
    }
    print!("{table}");
    Ok(())
}

/// `fieldgate config`
pub async fn config(data_dir: &Path, command: ConfigCommand) -> Result<(), CliError> {
    let device = |target: String| (target != "gateway").then_some(target);
    let (target, document, json) = match command {
        ConfigCommand::Show { target, json } => {
            let SocketAnswer::Config(config) = socket(data_dir, SocketAsk::Config { device: device(target) }).await?
            else {
                return Err(CliError::odd_answer());
            };
            return show(config.map(|c| *c), json);
        }
        ConfigCommand::Set { target, file, prove_within, comment, json } => {
            let settings =
                serde_json::from_str(&read(&file)?).map_err(|e| other(&format!("{}: {e}", file.display())))?;
            let document = v1::DesiredConfig { settings: Some(settings), prove_within, comment, ..Default::default() };
            (target, document, json)
        }
        ConfigCommand::Restore { target, version, json } => {
            (target, v1::DesiredConfig { restore: version, ..Default::default() }, json)
        }
    };
    let asked = SocketAsk::Configure { device: device(target), document: Box::new(document) };
    report(&manage(data_dir, asked).await?, json)
}

fn show(config: Option<v1::ReportedConfig>, json: bool) -> Result<(), CliError> {
    if json {
        return print_json(&config);
    }
    let Some(config) = config else {
        println!("only the files speak: nobody asked for another configuration");
        return Ok(());
    };
    println!("version {} is in force, by {}; {}", config.version, config.by, config.state);
    if !config.result.is_empty() {
        println!("version {} was {}", config.desired_version, config.result);
    }
    for error in &config.errors {
        println!("  {}: {}", if error.path.is_empty() { "/" } else { &error.path }, error.message);
    }
    let mut table = Table::new(["setting", "value"]);
    let effective = serde_json::to_value(&config.effective).unwrap_or_default();
    for (key, value) in effective.as_object().into_iter().flatten() {
        table.row([key.clone(), value.to_string()]);
    }
    print!("{table}");
    let mut table = Table::new(["version", "result", "by", "comment"]);
    for version in config.history {
        table.row([version.version.to_string(), version.result, version.by, version.comment]);
    }
    print!("{table}");
    Ok(())
}

/// `fieldgate command`
pub async fn command(data_dir: &Path, args: CommandArgs) -> Result<(), CliError> {
    let CommandArgs { device, values, method, yes, json } = args;
    let mut pairs = Vec::new();
    for text in &values {
        let (name, value) = text.split_once('=').ok_or_else(|| other(&format!("{text:?}: write POINT=VALUE")))?;
        pairs.push((name.to_owned(), Some(json_value(&typed(value)))));
    }
    let mut command = v1::Command::default();
    match method {
        Some(method) => {
            command.method = method;
            command.arguments = pairs.into_iter().map(|(name, value)| v1::Argument { name, value }).collect();
        }
        None => command.writes = pairs.into_iter().map(|(point, value)| v1::Write { point, value }).collect(),
    }
    let mut result = send(data_dir, &device, command.clone()).await?;
    if result.outcome() == v1::command_result::Outcome::ConfirmationRequired {
        confirm(yes, &format!("{} Do it", result.message))?;
        command.confirmation = std::mem::take(&mut result.confirmation);
        result = send(data_dir, &device, command).await?;
    }
    let done = result.outcome() == v1::command_result::Outcome::Done;
    if json {
        print_json(&result)?;
    } else {
        let text = |value: &Option<pbjson_types::Value>| {
            value.as_ref().and_then(|v| serde_json::to_value(v).ok()).map_or_else(|| "-".to_owned(), |v| v.to_string())
        };
        let mut table = Table::new(["point", "requested", "read back", "outcome", "message"]);
        for write in &result.writes {
            let outcome = write.outcome().as_str_name().to_lowercase();
            let row =
                [write.point.clone(), text(&write.requested), text(&write.read_back), outcome, write.message.clone()];
            table.row(row);
        }
        print!("{table}");
    }
    if done { Ok(()) } else { Err(other(&format!("{}: {}", result.code, result.message))) }
}

async fn send(data_dir: &Path, device: &str, command: v1::Command) -> Result<v1::CommandResult, CliError> {
    let asked = SocketAsk::Command { device: device.to_owned(), command: Box::new(command) };
    match socket(data_dir, asked).await? {
        SocketAnswer::Command(result) => Ok(*result),
        _ => Err(CliError::odd_answer()),
    }
}

/// A number or a boolean where the text is one.
fn typed(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(whole), _) => Value::Int(whole),
            (_, Ok(number)) if number.is_finite() => Value::Double(number),
            _ => Value::Text(text.into()),
        },
    }
}

/// `fieldgate audit`: reads the log itself, also while the gateway runs or after it stopped.
pub fn audit(data_dir: &Path, args: &AuditArgs) -> Result<(), CliError> {
    let mut entries = std::collections::VecDeque::new();
    let object = args.device.as_ref().map(|d| format!("devices/{d}"));
    let settings = ClockBook::open(data_dir);
    crate::store::export::audit(&data_dir.join("store"), &settings, |entry| {
        let named = |o: &String| entry.object == *o || entry.object.strip_prefix(o).is_some_and(|r| r.starts_with('/'));
        let wanted = object.as_ref().is_none_or(named) && args.actor.as_ref().is_none_or(|a| entry.actor.contains(a));
        // An entry that a crash let be written twice has the same id both times.
        let twice = !entry.id.is_empty() && entries.iter().any(|e: &v1::AuditEntry| e.id == entry.id);
        if wanted && !twice {
            entries.push_back(entry);
            if entries.len() > args.last {
                entries.pop_front();
            }
        }
    })
    .map_err(|e| other(&e.to_string()))?;
    if args.json {
        return print_json(&entries);
    }
    let mut table = Table::new(["time", "actor", "action", "object", "outcome", "detail"]);
    for e in entries {
        let time = e.time.as_ref().and_then(|t| serde_json::to_value(t).ok());
        let time = time.and_then(|t| t.as_str().map(str::to_owned)).unwrap_or_default();
        table.row([time, e.actor, e.action, e.object, e.outcome, e.detail]);
    }
    print!("{table}");
    Ok(())
}

/// `fieldgate export`
pub async fn export(data_dir: &Path, args: ExportArgs) -> Result<(), CliError> {
    if args.public_key {
        let key = crate::app::signing_key(data_dir).map_err(|e| other(&e))?;
        println!("{}", key.public().iter().map(|octet| format!("{octet:02x}")).collect::<String>());
        return Ok(());
    }
    if let Some(transfer) = args.cancel {
        let request =
            v1::ManagementRequest { action: "cancel-transfer".into(), document: transfer, ..Default::default() };
        return report(&manage(data_dir, SocketAsk::Manage(Box::new(request))).await?, args.json);
    }
    let (devices, to) = (args.devices.unwrap_or_default(), args.to.unwrap_or_default());
    let result = manage(data_dir, SocketAsk::export(&devices, &to)).await?;
    hand_over(&result, args.output.as_deref(), args.json)
}

/// `fieldgate import`
pub async fn import(data_dir: &Path, args: ImportArgs) -> Result<(), CliError> {
    let result = manage(data_dir, SocketAsk::import(read(&args.file)?.trim())).await?;
    hand_over(&result, args.output.as_deref(), args.json)
}

/// Gives out the signed document of an answer, if it has one.
fn hand_over(result: &v1::ManagementResult, output: Option<&Path>, json: bool) -> Result<(), CliError> {
    use std::os::unix::fs::OpenOptionsExt;
    if let (Some(path), false) = (output, result.document.is_empty()) {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(result.document.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(|e| other(&format!("write {}: {e}", path.display())))?;
    }
    if json {
        return print_json(result);
    }
    eprintln!("{}", result.message);
    if output.is_none() && !result.document.is_empty() {
        println!("{}", result.document);
    }
    Ok(())
}

fn report(result: &v1::ManagementResult, json: bool) -> Result<(), CliError> {
    if json {
        return print_json(result);
    }
    println!("{}", result.message);
    result.devices.iter().for_each(|device| println!("  {device}"));
    Ok(())
}

/// Asks, and turns a refusal into an error with every reason.
async fn manage(data_dir: &Path, asked: SocketAsk) -> Result<v1::ManagementResult, CliError> {
    let SocketAnswer::Result(result) = socket(data_dir, asked).await? else { return Err(CliError::odd_answer()) };
    if result.outcome() == v1::management_result::Outcome::Done {
        return Ok(*result);
    }
    let mut text = format!("{}: {}", result.code, result.message);
    for error in result.errors.iter().skip(1) {
        text.push_str(&format!("\n  {}: {}", error.path, error.message));
    }
    Err(other(&text))
}

async fn socket(data_dir: &Path, asked: SocketAsk) -> Result<SocketAnswer, CliError> {
    let question = serde_json::to_value(asked).map_err(|e| other(&e.to_string()))?;
    let Answer::Json { value } = ask(data_dir, Request::Manage { question }).await? else {
        return Err(CliError::odd_answer());
    };
    match serde_json::from_value::<SocketAnswer>(value) {
        Ok(SocketAnswer::Error(error)) => Err(other(&error)),
        Ok(answer) => Ok(answer),
        Err(_) => Err(CliError::odd_answer()),
    }
}

fn read(file: &Path) -> Result<String, CliError> {
    let read = match file == Path::new("-") {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(file),
    };
    read.map_err(|e| other(&format!("read {}: {e}", file.display())))
}

fn confirm(yes: bool, question: &str) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(other(&format!("{question}? Nobody can be asked here; say --yes")));
    }
    eprint!("{question}? Type yes: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| other(&e.to_string()))?;
    if answer.trim() == "yes" { Ok(()) } else { Err(other("nothing was done")) }
}

fn other(text: &str) -> CliError {
    CliError::Other(text.to_owned())
}
