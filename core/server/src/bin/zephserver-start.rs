//! Starts a server in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use zephserver::{Error, Server, Settings};

/// Start a server in the foreground. It stops on `zephserver-stop`, SIGTERM or Ctrl-C; SIGHUP reopens its log.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The settings file
    #[arg(long, value_name = "FILE", default_value = "settings.toml")]
    settings: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("zephserver-start: {error}");
            error.exit_code().into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Error> {
    let settings = Settings::read(&arguments.settings)?;
    // Before anything else: a signal at any time is a stop in order.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| no_signals(arguments, source))?;
    let signals =
        runtime.block_on(async { Signals::new() }).map_err(|source| no_signals(arguments, source))?;
    let server = Arc::new(Server::launch(settings.clone())?);
    let watched = server.clone();
    std::thread::spawn(move || runtime.block_on(signals.forward(&watched)));
    println!("zephserver {} starts, pid {}", env!("CARGO_PKG_VERSION"), std::process::id());
    if server.wait_ready() {
        say_ready(&server, &settings, arguments);
    }
    let ended = server.wait();
    if let Some(error) = &ended.error {
        eprintln!("zephserver-start: {error}");
    }
    for name in &ended.left_behind {
        eprintln!("zephserver-start: {name} did not stop in time and was left behind");
    }
    if ended.error.is_none() {
        println!("Stopped");
    }
    // Threads of services that were left behind end with the process.
    Ok(ended.exit_code())
}

fn no_signals(arguments: &Arguments, source: std::io::Error) -> Error {
    Error::Io { what: "cannot wait for signals; settings", path: arguments.settings.clone(), source }
}

fn say_ready(server: &Server, settings: &Settings, arguments: &Arguments) {
    println!("Ready: {} services", settings.services.len());
    for (service, address) in server.addresses() {
        println!("  {service} listens on {address}");
    }
    println!("  stop it:  zephserver-stop --settings {}", arguments.settings.display());
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn forward(mut self, server: &Server) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => server.request_stop(),
                _ = self.interrupt.recv() => server.request_stop(),
                _ = self.hang_up.recv() => {
                    if let Err(error) = zephserver::reopen_log() {
                        eprintln!("zephserver-start: the log file cannot be opened anew: {error}");
                    }
                }
            }
        }
    }
}
