//! Starts a server in the foreground.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zephserver::{Error, Server, Settings};

// So that old copies of plugins give back the thread keys that they took.
zeph_abi::export_key_hook!();

/// Prints a line. Who closed the pipe wants no more lines; the server goes on.
macro_rules! say {
    ($($words:tt)*) => { let _ = writeln!(std::io::stdout(), $($words)*); };
}

/// The same for errors.
macro_rules! warn {
    ($($words:tt)*) => { let _ = writeln!(std::io::stderr(), $($words)*); };
}

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
            warn!("zephserver-start: {error}");
            error.exit_code().into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Error> {
    let settings = Settings::read(&arguments.settings)?;
    raise_open_files();
    // Before anything else: a signal at any time is a stop in order.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|source| Error::Io {
        what: "cannot wait for signals; settings",
        path: arguments.settings.clone(),
        source,
    })?;
    let server = Arc::new(Server::launch(settings.clone())?);
    let watched = server.clone();
    std::thread::spawn(move || forward(signals, &watched));
    say!("zephserver {} starts, pid {}", env!("CARGO_PKG_VERSION"), std::process::id());
    if server.wait_ready() {
        say_ready(&server, &settings, arguments);
    }
    let ended = server.wait();
    if let Some(error) = &ended.error {
        warn!("zephserver-start: {error}");
    }
    for name in &ended.left_behind {
        warn!("zephserver-start: {name} did not stop in time and was left behind");
    }
    if ended.error.is_none() {
        say!("Stopped");
    }
    // Threads of services that were left behind end with the process.
    Ok(ended.exit_code())
}

/// As many open files as may be: each connection is one. What the hard limit does not allow is refused
/// and counted by the edges.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        warn!("zephserver-start: the limit of open files stays as it is: {error}");
    }
}

fn say_ready(server: &Server, settings: &Settings, arguments: &Arguments) {
    let services = server.control("services").unwrap_or_default();
    let states = services.as_array().into_iter().flatten();
    let enabled = states.filter(|service| service["state"] == "enabled").count();
    let mut text = format!("Ready: {enabled} of {} services\n", settings.services.len());
    for (service, address) in server.addresses() {
        text += &format!("  {service} listens on {address}\n");
    }
    // In one piece: who waits for "Ready" finds the addresses beside it.
    say!("{text}  stop it:  zephserver-stop --settings {}", arguments.settings.display());
}

/// Not by the async runtime: its way of waiting for signals costs two descriptors in each copy of a plugin that
/// has it built in.
fn forward(mut signals: Signals, server: &Server) {
    for signal in signals.forever() {
        if signal != SIGHUP {
            server.request_stop();
        } else if let Err(error) = zephserver::reopen_log() {
            warn!("zephserver-start: the log file cannot be opened anew: {error}");
        }
    }
}
