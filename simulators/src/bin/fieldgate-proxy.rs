//! `fieldgate-proxy`: a TCP proxy that spoils a link on command, from standard input or a control port.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use fieldgate_simulators::proxy::{Command, HELP, Proxy};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A TCP proxy that spoils a link on command. Commands come from standard input and from the control port; `help`
/// lists them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where clients connect, such as 127.0.0.1:1884; port 0 lets the system choose.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Server to forward to.
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
    /// Where commands are taken, one per line; loopback only.
    #[arg(long, value_name = "ADDRESS")]
    control: Option<SocketAddr>,
    /// Commands to begin with, such as --start "latency 50ms"; may be repeated.
    #[arg(long, value_name = "COMMAND")]
    start: Vec<String>,
    /// Allows --listen on an address that others can reach.
    #[arg(long)]
    any_address: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(arguments));
    // Standard input is read by a thread that cannot be interrupted.
    runtime.shutdown_background();
    result
}

async fn serve(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let commands = arguments.start.iter().map(|line| line.parse()).collect::<Result<Vec<Command>, String>>()?;
    let (listen, to) = (arguments.listen, arguments.to);
    let proxy =
        if arguments.any_address { Proxy::start_anywhere(listen, to).await? } else { Proxy::start(listen, to).await? };
    commands.iter().for_each(|command| _ = proxy.obey(command));
    let (proxy, quit) = (Arc::new(proxy), Arc::new(Notify::new()));

    writeln!(std::io::stdout(), "listen {}", proxy.address())?;
    if let Some(address) = arguments.control {
        if !address.ip().is_loopback() {
            return Err(format!("the control port must be on loopback, not {address}").into());
        }
        let control = TcpListener::bind(address).await.map_err(|e| format!("cannot listen on {address}: {e}"))?;
        writeln!(std::io::stdout(), "control {}", control.local_addr()?)?;
        tokio::spawn(accept_control(control, proxy.clone(), quit.clone()));
    }
    writeln!(std::io::stdout(), "ready")?;
    let (input, output) = (BufReader::new(tokio::io::stdin()), tokio::io::stdout());
    tokio::spawn(converse(input, output, proxy.clone(), quit.clone()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = quit.notified() => {}
    }
    Ok(())
}

async fn accept_control(listener: TcpListener, proxy: Arc<Proxy>, quit: Arc<Notify>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (read, write) = stream.into_split();
        tokio::spawn(converse(BufReader::new(read), write, proxy.clone(), quit.clone()));
    }
}

/// One reply per command line, until the lines end.
async fn converse(
    input: impl AsyncBufRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    proxy: Arc<Proxy>,
    quit: Arc<Notify>,
) {
    let mut lines = input.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let reply = match line.trim() {
            "" => continue,
            "help" => HELP.to_owned(),
            line => match line.parse::<Command>() {
                Ok(command) => {
                    let reply = proxy.obey(&command);
                    if command == Command::Quit {
                        quit.notify_one();
                    }
                    reply
                }
                Err(problem) => format!("error: {problem}"),
            },
        };
        if output.write_all(format!("{reply}\n").as_bytes()).await.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}
