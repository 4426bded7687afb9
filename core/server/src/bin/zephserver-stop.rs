//! Stops a server, and returns when it has stopped.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use zephserver::client::{ClientError, ask};
use zephserver::{Settings, exit};

/// Stop a server; returns when it has stopped.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The server's control socket
    socket: Option<PathBuf>,
    /// The settings file that names the control socket
    #[arg(long, value_name = "FILE", default_value = "settings.toml", conflicts_with = "socket")]
    settings: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let socket = match arguments.socket {
        Some(socket) => socket,
        None => match Settings::read(&arguments.settings) {
            Ok(settings) => settings.control_socket,
            Err(faults) => {
                eprintln!("zephserver-stop: {faults}");
                return exit::USAGE.into();
            }
        },
    };
    match ask(&socket, "stop") {
        Ok(answer) => match answer["left_behind"].as_array().filter(|list| !list.is_empty()) {
            None => {
                // Whoever closed the pipe wants to hear no more.
                let _ = writeln!(std::io::stdout(), "Stopped");
                exit::OK.into()
            }
            Some(list) => {
                let names = list.iter().filter_map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                eprintln!("zephserver-stop: stopped, but left behind: {names} (they did not stop in time)");
                exit::TIMEOUT.into()
            }
        },
        Err(error) => {
            eprintln!("zephserver-stop: {error}");
            match error {
                ClientError::NoAnswer { .. } => exit::FAILED.into(),
                _ => exit::UNREACHABLE.into(),
            }
        }
    }
}
