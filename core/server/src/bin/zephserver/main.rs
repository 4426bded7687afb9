//! The operator's command: asks a running server, checks settings, or prints the log.

mod log_files;
mod logs;
mod nodes;
mod past;
mod show;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use zephserver::client::{ClientError, ask};
use zephserver::{Error, Settings, exit};

/// Ask a running server, check settings, or print the log.
///
/// VERB is `check`, `logs [-f] [-n LINES] [NAME]`, `cluster key [FILE]`, or one of the running server's own: status,
/// services, plugins, history, why, start, disable, restart, reload, rollback, apply, call, cluster, say, events,
/// version, stop, and what its plugins declare; `zephserver help` lists them all.
#[derive(Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// The settings file; it names the control socket
    #[arg(long, value_name = "FILE", default_value = "settings.toml", global = true)]
    settings: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    /// What to do
    verb: String,
    /// The verb's own words
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    take_options(&mut arguments);
    let code = match arguments.verb.as_str() {
        "check" => check(&arguments),
        "cluster" if arguments.words.first().is_some_and(|word| word == "key") => {
            nodes::key(&arguments.words[1..])
        }
        "events" if arguments.words.iter().any(|word| word == "--follow" || word == "-f") => {
            with_settings(&arguments, |settings| nodes::follow(settings, &arguments))
        }
        "logs" => with_settings(&arguments, |settings| logs::print(settings, &arguments.words)),
        _ => with_settings(&arguments, |settings| command(&arguments, settings)),
    };
    code.into()
}

/// `--json` and `--settings FILE` also count after the verb.
fn take_options(arguments: &mut Arguments) {
    if let Some(at) = arguments.words.iter().position(|word| word == "--json") {
        arguments.words.remove(at);
        arguments.json = true;
    }
    if let Some(at) = arguments.words.iter().position(|word| word == "--settings")
        && at + 1 < arguments.words.len()
    {
        arguments.settings = arguments.words.remove(at + 1).into();
        arguments.words.remove(at);
    }
}

fn check(arguments: &Arguments) -> u8 {
    let checked = Settings::read(&arguments.settings).map_err(Error::from).and_then(zephserver::check);
    match checked {
        Ok(remarks) => {
            let file = arguments.settings.display();
            remarks.iter().for_each(|remark| show::line(&format!("{file}: {remark}")));
            show::line(&format!("{file}: in order"));
            exit::OK
        }
        Err(error) => {
            show::error(&error.to_string());
            error.exit_code()
        }
    }
}

fn with_settings(arguments: &Arguments, verb: impl FnOnce(&Settings) -> u8) -> u8 {
    match Settings::read(&arguments.settings) {
        Ok(settings) => verb(&settings),
        Err(faults) => {
            show::error(&faults.to_string());
            exit::USAGE
        }
    }
}

fn command(arguments: &Arguments, settings: &Settings) -> u8 {
    let line = std::iter::once(&arguments.verb).chain(&arguments.words).map(String::as_str);
    let line = line.collect::<Vec<_>>().join(" ");
    if line.contains('\n') {
        show::error("a command is one line; write JSON without line breaks");
        return exit::USAGE;
    }
    match ask(&settings.control_socket, &line) {
        Ok(answer) => say(arguments, &answer),
        Err(error) => unanswered(&error),
    }
}

fn unanswered(error: &ClientError) -> u8 {
    show::error(&error.to_string());
    match error {
        ClientError::NoAnswer { .. } => exit::FAILED,
        _ => exit::UNREACHABLE,
    }
}

fn say(arguments: &Arguments, answer: &Value) -> u8 {
    let error = answer.get("error").filter(|error| error.get("code").is_some());
    if arguments.json {
        show::raw(&answer.to_string());
    } else if error.is_none() {
        show::answer(&arguments.verb, answer);
    }
    let left_behind = answer["left_behind"].as_array().is_some_and(|list| !list.is_empty());
    let Some(error) = error else {
        return match arguments.verb.as_str() {
            "stop" if left_behind => exit::TIMEOUT,
            "apply" if show::has_failed(answer) => exit::FAILED,
            _ => exit::OK,
        };
    };
    if !arguments.json {
        show::error(error["text"].as_str().unwrap_or("unknown error"));
    }
    match error["code"].as_str() {
        Some("not_found") => exit::NOT_FOUND,
        Some("invalid" | "unsupported") => exit::USAGE,
        Some("timeout") => exit::TIMEOUT,
        _ => exit::FAILED,
    }
}
